"""Adversarial examples to look at: a few test images, what an attack made of them, and what the net then read.

Shown are the first images that the net gets right and the attack turns; where these are too few, the first that
withstood it fill up. The same net, images and seed give the same pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.attacks.base import Attack, evaluation_mode
from ironrank.data import Images
from ironrank.files import write_tensors

FILE = "examples.safetensors"
SHOWN = 6
AMONG = 64  # images that are attacked


def examples(
    model: nn.Module,
    images: Images,
    attack: Attack,
    *,
    seed: int = 0,
    shown: int = SHOWN,
    among: int = AMONG,
) -> dict[str, Tensor]:
    """Attack the first images and keep a few.

    Args:
        model: Maps pixels (b, c, h, w) in [0, 1] to logits (b, classes).
        images: Test images, in the published order.
        attack: The attack.
        seed: Seed of its random starts.
        shown: Images that are kept, at most.
        among: Images that are attacked, at most.

    Returns:
        ``clean`` and ``attacked``, float32 (k, c, h, w) in [0, 1]; ``index`` in the test set, ``label``, ``read`` (the
        class without the attack) and ``read_attacked``, int64 (k,). All on the CPU.
    """
    x, y = images.pixels(torch.arange(min(among, len(images)))), images.y[:among]
    with evaluation_mode(model), torch.no_grad():
        read = model(x).argmax(1)
    right = (read == y).nonzero().flatten()
    moved = attack(model, x[right], y[right], generator=torch.Generator().manual_seed(seed))
    with evaluation_mode(model), torch.no_grad():
        read_moved = model(moved).argmax(1) if len(right) else y[right]
    turned = read_moved != y[right]
    order = torch.argsort(~turned, stable=True)[:shown]
    kept = right[order]
    found = {"clean": x[kept], "attacked": moved[order], "index": kept, "label": y[kept], "read": read[kept],
             "read_attacked": read_moved[order]}  # fmt: skip
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def facts(attack: Attack, seed: int, among: int) -> dict[str, Any]:
    """Return what must be known about the examples: the attack in words, its ball, the seed, images attacked."""
    return {"attack": attack.describe(), "norm": attack.norm, "eps": attack.eps, "seed": seed, "among": among}


def write_examples(folder: Path, model: nn.Module, images: Images, attack: Attack, seed: int = 0) -> Path:
    """Draw examples and keep them as ``examples.safetensors``, with their facts in its header.

    Args:
        folder: The run folder.
        model: Maps pixels to logits, in its deployed form.
        images: Test images.
        attack: The attack.
        seed: Seed of its random starts.

    Returns:
        The file.
    """
    notes = facts(attack, seed, min(AMONG, len(images)))
    write_tensors(folder / FILE, examples(model, images, attack, seed=seed), {"examples": json.dumps(notes)})
    return folder / FILE
