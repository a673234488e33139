"""What a run says before it begins: what would mislead, or makes little sense; nothing is refused."""

from __future__ import annotations

from pathlib import Path

from ironrank.errors import IronrankError
from ironrank.methods.admm import ADMM
from ironrank.models import Given
from ironrank.training.progress import Event
from ironrank.training.run import Run, read_run


def remarks(run: Run, start: str | None, steps: int) -> list[Event]:
    """Say where a method, the ball and images of validation, or what is counted in steps, do not fit the training.

    Args:
        run: The run.
        start: Folder or file of the earlier stage, or None.
        steps: Steps of the training.

    Returns:
        Lines for metrics.jsonl.
    """
    found: list[Event] = []
    if run.method.gentle and start is None and not isinstance(run.model, Given):
        found.append({"event": "the method is meant for a trained net, and begins with random weights",
                      "method": run.method.label(), "to_give_one": "start=FOLDER"})  # fmt: skip
    threat, watched = run.objective.threat, (run.validate.norm, run.validate.eps)
    if threat not in (None, watched):
        (norm, eps), (validated, radius) = threat, watched
        found.append({"event": "validation looks at another ball than training", "trained_norm": norm,
                      "trained_eps": eps, "validated_norm": validated, "validated_eps": radius})  # fmt: skip
    teacher = getattr(run.objective, "teacher", "")
    for what, folder in ("an earlier stage", start), ("the teacher", teacher):
        held = run.data.validation
        if held and folder and (before := _held(Path(folder), run, held)) < held:
            found.append({"event": f"validation looks at images that {what} was trained on",
                          "share_of_them": 1 - before / held})  # fmt: skip
    return found + (_too_long(run, steps) if steps else [])


def _too_long(run: Run, steps: int) -> list[Event]:
    """Say where eps is still growing when the training ends, and where a method by ADMM makes too few updates."""
    found: list[Event] = []
    if (ramp := getattr(run.objective, "ramp", 0)) >= steps:
        found.append({"event": "eps does not grow to its full size in this training", "steps": steps,
                      "objective.ramp": ramp})  # fmt: skip
    if not isinstance(run.method, ADMM):
        return found
    updates, choose = steps // run.method.every, getattr(run.method, "choose", 0)
    if updates == 0:
        found.append({"event": "the training ends before the first update of the method's targets", "steps": steps,
                      "method.every": run.method.every})  # fmt: skip
    elif updates <= choose:
        found.append({"event": "ranks are chosen anew until the training ends", "updates": updates,
                      "method.choose": choose})  # fmt: skip
    return found


def _held(start: Path, run: Run, held: float) -> float:
    """Return the share of images that all earlier stages on the same data held out too, at most ``held``."""
    try:
        earlier = read_run(start)
    except IronrankError:  # weights without a run, or settings that only the user's own code knows
        return held
    if type(earlier.data) is not type(run.data):
        return held
    held = min(held, earlier.data.validation)
    return held if earlier.start is None else _held(_folder(earlier.start, start), run, held)


def _folder(start: Run | str, inside: Path) -> Path:
    return Path(start) if isinstance(start, str) else inside / "start"
