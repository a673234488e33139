"""What audit.json and audit.safetensors hold."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor

from ironrank import __version__
from ironrank.bench.machine import machine
from ironrank.judge.check import Check
from ironrank.judge.ensemble import PROBE, SURVIVORS, UNIVERSAL
from ironrank.judge.question import SCHEMA, Asked
from ironrank.judge.sanity import curve_of
from ironrank.judge.tally import CLEAN, Tally
from ironrank.judge.verdict import verdict_of


def answer_of(
    asked: Asked, tally: Tally, checks: list[Check], flags: list[str], name: str | None, command: str
) -> dict[str, Any]:
    """Return the content of audit.json but for the question's identity.

    Args:
        asked: What was asked.
        tally: What the attacks found.
        checks: The sanity tests.
        flags: What else is worth knowing.
        name: Label; None for that of the target.
        command: How it was asked for.

    Returns:
        Plain values.
    """
    question, n = asked.question, len(tally.right)
    ran = [result.trial.where for result in tally.results if result.inside and not result.error]
    more = sum(where in (PROBE, SURVIVORS) for where in ran) if tally.probe < n else 0
    verdict, robust = verdict_of(
        int(tally.standing.sum()), n, len(ran) - more, checks, more=more, probe=tally.probe
    )
    return {
        "schema": SCHEMA,
        "name": name or asked.target.name,
        "target": asked.target.text,
        "level": question.level if isinstance(question.level, str) else "own",
        "threat": {"norm": question.norm, "eps": question.eps},
        "data": asked.samples.name,
        "n": n,
        "seed": question.seed,
        "clean": tally.right.double().mean().item(),
        "robust": robust,
        "verdict": verdict,
        "attacks": _attacks(tally),
        "curve": [{"eps": eps, "accuracy": accuracy, "n": tally.probe} for eps, accuracy in curve_of(tally)],
        "checks": [check.plain() for check in checks],
        "flags": flags + [f"{r.trial.name} could not be run: {r.error}" for r in tally.results if r.error],
        "universal": _universal(tally),
        "versions": {
            "ironrank": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": machine(torch.get_num_threads()) | {"device": question.device},
        "command": command,
    }


def _attacks(tally: Tally) -> list[dict[str, Any]]:
    """Describe the attacks inside the ball that ran, in order, with what each left of those before it."""
    rows, stand = [], tally.right.clone()
    for result in (r for r in tally.results if r.inside and (not r.error or r.broken.any())):
        alone = stand & result.broken
        stand &= ~result.broken
        trial = result.trial
        rows.append({
            "name": trial.name, "describe": trial.attack.describe(), "kind": trial.kind, "eps": trial.attack.eps,
            "accuracy": tally.accuracy(result), "n": tally.count(result), "attacked": int(result.attacked.sum()),
            "first_to_break": int(alone.sum()), "standing": stand.double().mean().item(),
            "seconds": round(result.seconds, 3),
        })  # fmt: skip
    return rows


def _universal(tally: Tally) -> dict[str, Any] | None:
    """Describe what one perturbation does to images that it was not made on; None where it did not run."""
    result = next((result for result in tally.results if result.trial.name == UNIVERSAL), None)
    if result is None or result.error:
        return None
    broken = result.broken[: tally.probe][result.attacked[: tally.probe]]
    unseen = broken[1::2]  # see `OneForAll`
    return {"describe": result.trial.attack.describe(), "eps": result.trial.attack.eps, "made_on": len(broken[::2]),
            "n": len(unseen), "accuracy": 1 - unseen.double().mean().item() if len(unseen) else None}  # fmt: skip


def survivors_of(tally: Tally) -> dict[str, Tensor]:
    """Return what audit.safetensors holds: per attack the images it ran on and those it broke, and the worst case."""
    kept = {CLEAN: tally.right, "standing": tally.standing}
    for result in tally.results:
        kept[f"{result.trial.name}.attacked"], kept[f"{result.trial.name}.broken"] = (
            result.attacked,
            result.broken,
        )
    return kept
