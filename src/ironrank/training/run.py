"""A run: everything that decides what a training does, in one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ironrank.attacks import ATTACKS
from ironrank.attacks.base import Attack
from ironrank.attacks.pgd import PGD
from ironrank.attacks.threat import check_radius
from ironrank.data import DATASETS, Dataset
from ironrank.errors import IronrankError
from ironrank.files import read_json
from ironrank.methods import METHODS, Dense, Method
from ironrank.models import MODELS, Model
from ironrank.objectives import OBJECTIVES, Clean, Objective
from ironrank.optim import OPTIMIZERS, SCHEDULES, SGD, Constant, Optimizer, Schedule
from ironrank.settings import Settings, decode, setting
from ironrank.training.guards import Guard

FAMILIES: dict[type[Settings], Any] = {
    Dataset: DATASETS,
    Model: MODELS,
    Attack: ATTACKS,
    Objective: OBJECTIVES,
    Method: METHODS,
    Optimizer: OPTIMIZERS,
    Schedule: SCHEDULES,
    Guard: {Guard.name: Guard},
}


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """One training: data, model, objective and method are independent of each other; any combination runs.

    ``start`` is an earlier stage whose weights this run starts from: another run, trained first into the sub-folder
    ``start``, or the path of a run folder.
    """

    name: ClassVar[str] = "run"
    recipe: str = setting("", "recipe it came from")
    data: Dataset = setting(text="data set")
    model: Model = setting(text="architecture")
    objective: Objective = setting(Clean(), "what is minimised")
    method: Method = setting(Dense(), "what happens to the weights")
    optimizer: Optimizer = setting(SGD(), "optimizer")
    schedule: Schedule = setting(Constant(), "factor on the learning rate")
    epochs: int = setting(20, "passes over the training images", ge=0)
    clip: float = setting(
        0.0, "greatest norm of the gradient that a step follows; 0 is off", ge=0, paper="1 (RobustDLRT)"
    )
    batch_size: int = setting(128, "images per step, over all processes", ge=1)
    seed: int = setting(0, "seed of everything random", ge=0)
    device: str = setting("cpu", "torch device, such as cpu or cuda")
    precision: str = setting("float32", "forward and backward", choices=("float32", "bfloat16"))
    channels_last: bool = setting(True, "memory layout of images and dense kernels")
    validate: Attack = setting(PGD(steps=10), "attack on held-out images, for the best checkpoint")
    validate_images: int = setting(1000, "held-out images that are attacked each epoch", ge=1)
    average: float = setting(
        0.0, "decay of the mean of the weights that is judged and saved; 0 is off", ge=0, lt=1
    )
    guard: Guard = setting(Guard(), "what is done about overfitting to an attack")
    log_every: int = setting(100, "steps between two lines of metrics.jsonl", ge=1)
    start: Run | str | None = setting(None, "earlier stage, or run folder, that it starts from")


def check_radii(run: Run) -> None:
    """Refuse radii of training and validation that are not meant in pixel units.

    Args:
        run: The run.

    Raises:
        IronrankError: If one is refused.
    """
    balls = {"eps": run.objective.threat, "validate.eps": (run.validate.norm, run.validate.eps)}
    for what, ball in balls.items():
        if ball is not None:
            check_radius(*ball, what)


def score(run: Run, robust: float, clean: float) -> tuple[float, float]:
    """Return what makes one epoch better than another, the first number first.

    Without an adversary robust accuracy counts second: it is often highest when little has been learnt.

    Args:
        run: The run.
        robust: Validation accuracy under attack.
        clean: Validation accuracy.

    Returns:
        The numbers in their order.
    """
    return (clean, robust) if run.objective.threat is None else (robust, clean)


def read_run(folder: Path | str) -> Run:
    """Read the run of a run folder.

    Args:
        folder: The folder.

    Returns:
        The run.

    Raises:
        IronrankError: If there is none, or it cannot be read.
    """
    there = Path(folder) / "run.json"
    if not there.is_file():
        raise IronrankError(
            f"cannot read {there}: '{folder}' is no run folder; name one that `ironrank train` made"
        )
    return decode_run(read_json(there))


def decode_run(value: Any) -> Run:
    """Read a run from the JSON values of ``run.json``.

    Args:
        value: What `ironrank.settings.encode` made of a run.

    Returns:
        The run.

    Raises:
        IronrankError: If it is no run or names something unknown.
    """
    if not isinstance(value, dict):
        raise IronrankError("run.json holds no run: restore it or train again")
    try:
        return decode(Run, value, FAMILIES, "run")
    except TypeError as error:
        raise IronrankError(f"run.json is incomplete: {error}") from None
