"""Dense training: the weights are what they are. The baseline of every table.

After a stage that left factors (`Run.start`), these are what is trained: plain fine-tuning in factored form.

When not to use it: when the model must be smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ironrank.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Train the model as it is.

    Example:
        >>> from torch import nn
        >>> Dense().prepare(nn.Linear(3, 3))
        Linear(in_features=3, out_features=3, bias=True)
    """

    name: ClassVar[str] = "dense"
