"""A net that is audited, with what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ironrank.judge.fingerprint import fingerprint
from ironrank.training.run import Run


@dataclass(frozen=True, eq=False)
class Target:
    """A net to be audited.

    Attributes:
        name: What people call it.
        text: What it is, such as the path that was given.
        model: The judged form: pixels (b, c, h, w) in [0, 1] to logits (b, classes).
        forms: Other forms of the same function, by name.
        sources: Nets that attacks are transferred from, by name.
        run: The run it comes from, if any.
        blind: Why its gradients cannot be had; empty where they can.
    """

    name: str
    text: str
    model: nn.Module
    forms: Mapping[str, nn.Module] = field(default_factory=dict)
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    run: Run | None = None
    blind: str = ""

    def to(self, device: torch.device | str) -> Target:
        """Move all nets to a device."""
        for net in (self.model, *self.forms.values(), *self.sources.values()):
            net.to(device)
        return self

    def fingerprint(self) -> str:
        """Return a hash of the judged form, its other forms and the sources."""
        named = {f"form {name}": net for name, net in self.forms.items()}
        named |= {f"source {name}": net for name, net in self.sources.items()}
        names = sorted(named)
        return f"{fingerprint(self.model, *(named[name] for name in names))} {' '.join(names)}".strip()
