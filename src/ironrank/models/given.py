"""A module of the user's own, in the place of an architecture of this package.

The run folder says that there was one, and no more: no code and no class of it is stored or imported. Whoever
trains, resumes or loads such a run passes the module again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.models.base import Model
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Given(Model):
    """The module that is passed to the training: ``train(run, out, model=net)``.

    It takes pixels (b, c, h, w) in [0, 1] and returns logits (b, classes); whatever normalizes them is a part
    of it. Training starts from the weights that it has, and changes a copy.
    """

    name = "given"
    title: str = setting("", "what it is, for people")

    def build(self, spec: DataSpec) -> nn.Module:
        """Refuse: there is nothing to build it from.

        Args:
            spec: Not used.

        Raises:
            IronrankError: Always.
        """
        raise IronrankError(
            "model 'given' is a module of your own: pass it, as in train(run, out, model=net), or by --model"
        )
