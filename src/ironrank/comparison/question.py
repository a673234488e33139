"""What a comparison asks: one recipe, some methods, budgets and seeds; and what may not change when it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironrank.attacks import PGD
from ironrank.attacks.base import Attack
from ironrank.errors import IronrankError, nearest
from ironrank.methods import METHODS, CondLR, Dense, Method
from ironrank.methods.condlr import NO_BOUND
from ironrank.objectives import Clean, Madry, Objective
from ironrank.recipes.stages import at_full_eps, images_of
from ironrank.settings import encode
from ironrank.training import Run
from ironrank.training.folder import identity

CLEAN, ADVERSARIAL = "clean", "adversarial"
TRAININGS = {"recipe": (), CLEAN: (CLEAN,), ADVERSARIAL: (ADVERSARIAL,), "both": (CLEAN, ADVERSARIAL)}
DENSE, NARROW = Dense.name, "narrow"
UNBOUNDED = "condlr-unbounded"  # CondLR whose cores are left alone
ABLATION = (UNBOUNDED, CondLR.name)  # low rank alone, and with bounded condition numbers: else the same
EQUAL = ("size", "latency")
STEPS = 10  # of the attack in training, where the recipe has none


@dataclass(frozen=True)
class Protocol:
    """How trained nets are judged: PGD on cross-entropy and on the margin, some restarts each, worst case of an image.

    Attributes:
        norm: Norm of the ball.
        eps: Its radius, pixel units.
        n: Test images that are attacked, the first ones.
        steps: Steps of PGD.
        restarts: Random starts on each loss.
    """

    norm: str
    eps: float
    n: int
    steps: int
    restarts: int

    @property
    def attacks(self) -> list[PGD]:
        """One attack for each loss and each restart."""
        kinds = [PGD(norm=self.norm, eps=self.eps, steps=self.steps, loss=loss) for loss in ("ce", "margin")]
        return [kind for kind in kinds for _ in range(self.restarts)]


@dataclass(frozen=True)
class Question:
    """A comparison, all words understood.

    Attributes:
        base: The dense run of the recipe, with its first seed.
        settings: The methods, by name, with the recipe's settings where it uses one of them.
        budgets: Percent less than the dense net.
        seeds: Seeds of the runs.
        trainings: Words for the objectives: "clean", "adversarial".
        ablation: Whether the pair of `ABLATION` is trained both ways.
        equal: What is equal within a budget: "size" or "latency".
        protocol: How nets are judged.
        ramp: Share of a training from random weights in which the attack's eps grows to its full size.
        own: The recipe's settings of methods, also of those that are not asked for.
    """

    base: Run
    settings: dict[str, Method]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    trainings: tuple[str, ...]
    ablation: bool
    equal: str
    protocol: Protocol
    ramp: float = 0.0
    own: dict[str, Method] = dataclasses.field(default_factory=dict)

    @property
    def wanted(self) -> Iterator[tuple[str, str]]:
        """Training and name of each net: the dense one, the narrow one and the methods; then those of the ablation."""
        pairs = [(training, net) for training in self.trainings for net in (DENSE, NARROW, *self.settings)]
        if self.ablation:
            pairs += [(training, net) for training in (CLEAN, ADVERSARIAL) for net in (DENSE, *ABLATION)]
        yield from dict.fromkeys(pairs)

    def method(self, net: str) -> Method:
        """Return the settings of a method by its name."""
        if net == UNBOUNDED:
            return dataclasses.replace(self.method(CondLR.name), tau=NO_BOUND, taus={})  # type: ignore[call-arg]
        return self.settings.get(net) or self.own.get(net) or METHODS[net]()

    def run(self, training: str, seed: int) -> Run:
        """Return the dense run with one training and one seed."""
        return dataclasses.replace(self.base, objective=objectives(self.base)[training], seed=seed)

    def identity(self) -> dict[str, Any]:
        """Return what a folder keeps of a comparison: methods, budgets and seeds may be added, this may not change."""
        return {"format": 2, "run": identity(encode(self.base)), "ramp": self.ramp, "equal": self.equal,
                "protocol": dataclasses.asdict(self.protocol)}  # fmt: skip


def ask(
    run: Run,
    methods: str | Sequence[str],
    budgets: Sequence[float],
    seeds: int,
    equal: str,
    training: str,
    ablation: bool,
    n: int,
    steps: int,
    restarts: int,
    settings: Mapping[str, Method] | None = None,
) -> Question:
    """Check the words of a comparison.

    Args:
        run: What the recipe gives.
        methods: "all", or names.
        budgets: Percent less than the dense net.
        seeds: How many seeds.
        equal: "size" or "latency".
        training: "recipe", "clean", "adversarial" or "both".
        ablation: Whether the ablation is wanted.
        n: Test images that are attacked.
        steps: Steps of PGD.
        restarts: Random starts on each loss.
        settings: Methods by name, where the recipe has settings of its own; those of the run itself come first.

    Returns:
        The question.

    Raises:
        IronrankError: If a word is unknown or a number out of range.
    """
    stages = stages_of(run)
    base, ramp = _dense(stages)
    for word, value, allowed in (("equal", equal, EQUAL), ("train", training, tuple(TRAININGS))):
        if value not in allowed:
            raise IronrankError(f"{word}={value!r}: {nearest(value, list(allowed))}")
    for name, count in (("seeds", seeds), ("n", n), ("steps", steps), ("restarts", restarts)):
        if count < 1:
            raise IronrankError(f"{name}={count}: allowed is at least 1")
    own = {**(settings or {}), **{stage.method.name: stage.method for stage in stages}}
    norm, eps = base.objective.threat or (base.validate.norm, base.validate.eps)
    return Question(
        base=base,
        settings={name: own.get(name) or METHODS[name]() for name in _names(methods)},
        budgets=_budgets(budgets),
        seeds=tuple(range(base.seed, base.seed + seeds)),
        trainings=TRAININGS[training] or ((CLEAN,) if base.objective.threat is None else (ADVERSARIAL,)),
        ablation=ablation,
        equal=equal,
        protocol=Protocol(norm, eps, n, steps, restarts),
        ramp=ramp,
        own=own,
    )


def stages_of(run: Run) -> list[Run]:
    """Return a run and its earlier stages, the first stage first."""
    return [*(stages_of(run.start) if isinstance(run.start, Run) else []), run]


def _dense(stages: Sequence[Run]) -> tuple[Run, float]:
    """Return the dense run, and the share of its steps in which the attack's eps grows."""
    first = stages[0]
    if first.start is not None:
        raise IronrankError(
            f"start={first.start}: a comparison trains every net from its first step; take start=none"
        )
    base = dataclasses.replace(first, method=Dense(), epochs=sum(stage.epochs for stage in stages))
    steps = getattr(first.objective, "ramp", 0)
    if not steps or not first.epochs:
        return base, 0.0
    share = (
        (1 + 1e-9) * steps * first.batch_size / (first.epochs * images_of(first))
    )  # rounded down to steps later
    return at_full_eps(base), share


def _names(methods: str | Sequence[str]) -> list[str]:
    words = methods.split(",") if isinstance(methods, str) else list(methods)
    names = [word.strip() for word in words if word.strip()]
    if names == ["all"]:
        names = list(METHODS)
    for name in names:
        if name not in METHODS and name != NARROW:
            raise IronrankError(f"method '{name}': {nearest(name, [*METHODS, 'all'])}")
    return [
        name for name in dict.fromkeys(names) if name not in (DENSE, NARROW)
    ]  # these two always take part


def _budgets(budgets: Iterable[float]) -> tuple[float, ...]:
    found = sorted(set(budgets))
    for budget in found:
        if not (math.isfinite(budget) and 0 < budget < 100):
            raise IronrankError(
                f"budget {budget:g}: allowed is above 0 and below 100 (percent less than the dense net)"
            )
    if not found:
        raise IronrankError(
            "budgets: at least one is needed, such as 50,80,90 (percent less than the dense net)"
        )
    return tuple(found)


def objectives(run: Run) -> dict[str, Objective]:
    """Return the objective of each training: the run's own, and its counterpart in the same ball.

    Args:
        run: The dense run.

    Returns:
        "clean" and "adversarial". Where the recipe has no adversary, it is PGD in the ball of its validation.
    """
    if run.objective.threat is not None:
        return {CLEAN: Clean(label_smoothing=run.objective.label_smoothing), ADVERSARIAL: run.objective}
    ball: Attack = run.validate
    attack = PGD(norm=ball.norm, eps=ball.eps, steps=STEPS, keep="last")
    return {
        CLEAN: run.objective,
        ADVERSARIAL: Madry(attack=attack, label_smoothing=run.objective.label_smoothing),
    }
