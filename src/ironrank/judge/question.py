"""What is asked of an audit: net, images, threat, level and seed, in a form that can be kept and compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ironrank import __version__
from ironrank.attacks.threat import NORMS, check_radius
from ironrank.data import DATASETS, Data, Dataset
from ironrank.errors import IronrankError, nearest
from ironrank.judge.blocks import Work
from ironrank.judge.ensemble import LEVELS, Level, trials_of
from ironrank.judge.guests import check_autoattack
from ironrank.judge.ledger import Ledger
from ironrank.judge.samples import Samples, blocks_of, samples_of
from ironrank.judge.subject import Subject, subject_of
from ironrank.judge.target import Target
from ironrank.judge.targets import open_target
from ironrank.settings import decode, encode

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is asked; checked where it is made.

    Attributes:
        what: A module, a target, or where to find one; see `ironrank.judge.targets.open_target`.
        data: The images.
        norm: ``Linf`` or ``L2``.
        eps: Radius, pixel units, above 0.
        level: A key of `LEVELS`, or a level of your own.
        n: Number of the first images; None for those of the level, 0 for all.
        seed: Seed of everything random.
        twin: A net of the same task, whose adversarial images are tried as well.
        device: Torch device.
    """

    what: Target | nn.Module | Path | str
    data: Data
    norm: str = "Linf"
    eps: float
    level: str | Level = "quick"
    n: int | None = None
    seed: int = 0
    twin: nn.Module | Path | str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            IronrankError: If one is not allowed.
        """
        if self.norm not in NORMS:
            raise IronrankError(f"audit with norm={self.norm!r}: allowed is {', '.join(NORMS)}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise IronrankError(
                f"audit with eps={self.eps:g}: a number above 0 is needed, in pixel units, such as 8/255"
            )
        check_radius(self.norm, self.eps, "audit with eps")
        if isinstance(self.level, str) and self.level not in LEVELS:
            raise IronrankError(f"audit at level {self.level!r}: {nearest(self.level, list(LEVELS))}")
        if self.n is not None and self.n < 0:
            raise IronrankError(f"audit of n={self.n} images: at least 1 is needed, or 0 for all")

    @property
    def length(self) -> Level:
        """The level as numbers."""
        return LEVELS[self.level] if isinstance(self.level, str) else self.level

    def opened(self) -> Asked:
        """Load net and images, and look at both."""
        n = self.length.images if self.n is None else self.n
        samples = samples_of(self.data, n or None).to(self.device)
        if self.length.autoattack:
            check_autoattack(samples)
        target = open_target(self.what, self.twin).to(self.device)
        return Asked(self, target, samples, subject_of(target, samples, self.norm, self.eps, self.seed))

    def plain(self) -> dict[str, Any]:
        """Return the question as JSON values, for another process.

        Raises:
            IronrankError: If net or images are only in the memory of this one.
        """
        if (
            isinstance(self.what, nn.Module)
            or isinstance(self.twin, nn.Module)
            or not isinstance(self.data, Dataset)
        ):
            raise IronrankError(
                "jobs above 1: other processes have to find net and images by name; pass a run folder or "
                "'module:function' and a data set, or take jobs=1"
            )
        level = self.level if isinstance(self.level, str) else encode(self.level)
        what = self.what.text if isinstance(self.what, Target) else str(self.what)
        return {"what": what, "data": encode(self.data), "norm": self.norm, "eps": self.eps, "level": level,
                "n": self.n, "seed": self.seed, "twin": None if self.twin is None else str(self.twin),
                "device": self.device}  # fmt: skip


def question_of(plain: dict[str, Any]) -> Question:
    """Return the question that `Question.plain` described."""
    data = decode(Dataset, plain["data"], {Dataset: DATASETS}, "data")
    level = plain["level"]
    if not isinstance(level, str):
        values = {key: value for key, value in level.items() if key != "name"}
        level = Level(**{**values, "curve": tuple(values["curve"])})
    return Question(**{**plain, "data": data, "level": level})


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with its net and images.

    Attributes:
        question: What is asked.
        target: The net.
        samples: The images.
        subject: The net with its threat.
    """

    question: Question
    target: Target
    samples: Samples
    subject: Subject

    def identity(self) -> dict[str, Any]:
        """Return what tells this question from others, as JSON values: weights and pixels count, places do not."""
        question = self.question
        return {"schema": SCHEMA, "net": self.target.fingerprint(), "images": self.samples.fingerprint(),
                "norm": question.norm, "eps": question.eps, "level": encode(question.length),
                "n": len(self.samples), "seed": question.seed, "ironrank": __version__}  # fmt: skip

    def work(self, ledger: Ledger) -> Work:
        """Return what is to be done."""
        level = self.question.length
        blocks = blocks_of(len(self.samples), min(level.probe, len(self.samples)), level.block)
        trials = trials_of(self.subject, level, tuple(self.samples.x.shape[1:]))
        return Work(self.subject, self.samples, blocks, trials, ledger)
