"""The cells of a comparison: every net at every budget with every seed, all trained for equally many epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ironrank.comparison.question import DENSE, NARROW, Question
from ironrank.errors import IronrankError
from ironrank.models import count, width_for
from ironrank.recipes.stages import course
from ironrank.settings import encode
from ironrank.training import Run, decode_run


@dataclass(frozen=True)
class Cell:
    """One training of one net.

    Attributes:
        net: "dense", "narrow" or the name of a method.
        budget: Percent less than the dense net; None at dense size.
        training: "clean" or "adversarial".
        run: What is trained; it knows its seed.
    """

    net: str
    budget: float | None
    training: str
    run: Run

    @property
    def name(self) -> str:
        """The name of its folder."""
        budget = "" if self.budget is None else f"_{self.budget:g}"
        return f"{self.net}{budget}_{self.training}_s{self.run.seed}"

    @property
    def kind(self) -> tuple[str, str, float | None]:
        """What its row of the table is about: training, net and budget."""
        return self.training, self.net, self.budget

    def encode(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "net": self.net,
            "budget": self.budget,
            "training": self.training,
            "run": encode(self.run),
        }

    @classmethod
    def decode(cls, value: dict[str, Any]) -> Cell:
        """Read what `encode` made."""
        return cls(value["net"], value["budget"], value["training"], decode_run(value["run"]))


class LeftOut(NamedTuple):
    """A row that cannot be: its training, net and budget, and why."""

    training: str
    net: str
    budget: float | None
    reason: str


Size = Callable[
    [str, float], Run
]  # net and budget to the run of that size; an IronrankError where there is none


def cells_of(question: Question, size: Size) -> tuple[list[Cell], list[LeftOut]]:
    """List the cells, seed by seed, so that the first tables are whole ones.

    Args:
        question: What is asked.
        size: Gives a net its size: `by_params`, or the search of `ironrank.comparison.latency`.

    Returns:
        The cells, and the rows that cannot be.

    Raises:
        IronrankError: If nothing but the dense net is left.
    """
    found: list[Cell] = []
    left_out: list[LeftOut] = []
    for training, net in question.wanted:
        fixed = net == DENSE or (net != NARROW and of_dense_size(question, net))
        for budget in (None,) if fixed else question.budgets:
            try:
                sized = _unsized(question, net) if budget is None else size(net, budget)
                found += [_cell(question, net, budget, training, sized, seed) for seed in question.seeds]
            except IronrankError as error:
                left_out.append(LeftOut(training, net, budget, str(error)))
    if left_out and all(cell.net == DENSE for cell in found):
        raise IronrankError(f"no net can be compared with the dense one; the first: {left_out[0].reason}")
    return sorted(found, key=lambda cell: cell.run.seed), left_out


def _cell(question: Question, net: str, budget: float | None, training: str, sized: Run, seed: int) -> Cell:
    plain = dataclasses.replace(question.run(training, seed), model=sized.model)
    return Cell(net, budget, training, course(plain, sized.method, ramp=question.ramp))


def of_dense_size(question: Question, net: str) -> bool:
    """Return whether a method leaves the size of a net as it is."""
    base = question.base
    return question.method(net).within(_shapes(base), count(base.model, base.data.spec)) is None


def _unsized(question: Question, net: str) -> Run:
    return dataclasses.replace(question.base, method=question.method(net))


def by_params(question: Question) -> Size:
    """Return what gives a net so many percent fewer deployed parameters than the dense one has."""
    whole = count(question.base.model, question.base.data.spec)
    known: dict[tuple[str, float], Run] = {}

    def size(net: str, budget: float) -> Run:
        if (net, budget) not in known:
            known[net, budget] = within(question, net, int(whole * (1 - budget / 100)))
        return known[net, budget]

    return size


def within(question: Question, net: str, params: int) -> Run:
    """Return the base run with a net of at most so many deployed parameters, its method in one stage.

    Args:
        question: What is asked.
        net: "narrow" or the name of a method.
        params: The largest number of parameters.

    Returns:
        The run.

    Raises:
        IronrankError: If it cannot be that small.
    """
    base = question.base
    if net == NARROW:
        width = width_for(base.model, base.data.spec, params)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, width=width))  # type: ignore[call-arg]
    method = question.method(net).within(_shapes(base), params)
    if method is None:
        raise IronrankError(f"{net} does not change the size of a net")
    return dataclasses.replace(base, method=method)


def _shapes(run: Run) -> torch.nn.Module:
    with torch.device("meta"):
        return run.model.build(run.data.spec)
