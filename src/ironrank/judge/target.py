"""A net that is audited, with what belongs to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

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
        """Return a hash of structure, weights and plain attributes of the judged form and the sources.

        Returns:
            16 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for name, net in (("", self.model), *sorted(self.sources.items())):
            digest.update(f"{name}\n{net}".encode())
            for place, module in net.named_modules():
                digest.update(f"{place} {_plain(module)}".encode())
            for key, tensor in net.state_dict().items():
                digest.update(key.encode())
                if isinstance(tensor, torch.Tensor):
                    digest.update(
                        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                    )
        return digest.hexdigest()[:16]


def _plain(module: nn.Module) -> list[tuple[str, object]]:
    """Return what a module holds beside tensors and modules and a hash can tell, such as a temperature."""
    held = ((key, value) for key, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    return sorted((key, value) for key, value in held if key != "training")
