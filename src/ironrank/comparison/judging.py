"""How a trained cell is judged, and what is kept: numbers in `judged.json`, the fate of each image beside them.

An image counts as withstood if the net is right on it, and no attack of the protocol changes that: PGD on cross-entropy
and on the margin, several random starts each, on the gradients of the deployed net itself. Attacks after the first see
only the images that are left. The curve over eps goes on to chance: a net that is still right far beyond the ball hides
its gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.artifact import load_model
from ironrank.attacks.base import Attack
from ironrank.comparison.cells import Cell
from ironrank.comparison.question import Protocol
from ironrank.data import Images, mix
from ironrank.files import read_tensors, write_tensors
from ironrank.judge import evaluate, withstood
from ironrank.judge.accuracy import correct
from ironrank.judge.both import BothPGD
from ironrank.judge.ensemble import grey
from ironrank.judge.evaluate import CURVE, for_inference
from ironrank.training.start import kept

SURVIVORS = "survivors.safetensors"
CURVE_IMAGES, CURVE_STEPS = 200, 20
KEPT = ("params_deployed", "params_stored", "macs", "bytes", "max_cond", "form_gap", "device", "versions")


def judge(cell: Cell, protocol: Protocol, folder: Path) -> dict[str, Any]:
    """Judge the net of a trained cell, and keep which images it is right on.

    Args:
        cell: The cell.
        protocol: How to judge.
        folder: Its run folder; gets the file `SURVIVORS`.

    Returns:
        Plain values: accuracies are fractions, sizes those of the deployed form.
    """
    run = cell.run
    model = load_model(folder, kept(run)).to(run.device)
    images = run.data.load("test").to(run.device)
    net, first = for_inference(model), images.first(protocol.n)
    right, robust = correct(net, images), survivors(net, first, protocol.attacks, seed=0)
    radii = radii_of(protocol, images)
    curve = course_over(net, first.first(CURVE_IMAGES), protocol.norm, radii)
    write_tensors(folder / SURVIVORS, {"clean": right, "robust": robust, "curve": curve})
    described = evaluate(model, images.first(min(len(images), 500)), [], latency_runs=1)
    shares = curve.double().mean(1).tolist()
    return {key: described[key] for key in KEPT} | {
        "clean": _share(right), "robust": _share(robust), "n": len(first), "n_clean": len(images),
        "curve": [{"eps": eps, "accuracy": share} for eps, share in zip(radii, shares, strict=True)],
        "curve_n": curve.shape[1], "protocol": dataclasses.asdict(protocol), "weights": kept(run),
        "net": cell.net, "budget": cell.budget, "training": cell.training, "seed": run.seed,
    }  # fmt: skip


def radii_of(protocol: Protocol, images: Images) -> list[float]:
    """Return the radii of the curve: up to five times eps, and on to where every image can become plain grey.

    Args:
        protocol: How nets are judged; norm and eps count.
        images: What they are judged on.

    Returns:
        Radii, rising; at the last one no net can be right but by chance.
    """
    radii = [factor * protocol.eps for factor in CURVE]
    last = grey(protocol.norm, protocol.eps, images.pixels(torch.tensor([0])).numel())
    return radii if last <= radii[-1] else [*radii, last]


def survivors(net: nn.Module, images: Images, attacks: Sequence[Attack], seed: int) -> Tensor:
    """Return, for each image, whether the net is right on it and stays so under every attack.

    Args:
        net: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.
        attacks: The attacks, in order; each sees what is left by those before.
        seed: Seed of their random starts.

    Returns:
        bool (n,), on the CPU.
    """
    left = correct(net, images)
    for number, attack in enumerate(attacks):
        places = left.nonzero()[:, 0]
        if len(places):
            left[places] = withstood(net, images.take(places), attack, mix(seed, "judge", number))
    return left


def course_over(net: nn.Module, images: Images, norm: str, radii: Sequence[float]) -> Tensor:
    """Return which images stay right as the ball grows; one lost at a radius is lost at all larger ones.

    Args:
        net: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.
        norm: Norm of the ball.
        radii: Its radii, rising.

    Returns:
        bool (len(radii), n), on the CPU.
    """
    left, rows = correct(net, images), []
    for eps in radii:
        if eps > 0:
            places = left.nonzero()[:, 0]
            left = left.clone()
            if len(places):
                attack = BothPGD(norm=norm, eps=eps, steps=CURVE_STEPS)
                left[places] = withstood(net, images.take(places), attack, 0)
        rows.append(left)
    return torch.stack(rows)


def fates(folder: Path) -> dict[str, Tensor]:
    """Return what `judge` kept of each image: "clean" (all test images), "robust" (n,), "curve" (radii, images)."""
    return read_tensors(folder / SURVIVORS)[0]


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
