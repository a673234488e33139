"""What methods share whose ranks adapt in training: truncation at a tolerance, limits, and a size to end within.

    s_1 >= ... >= s_r     singular values of a core S
    theta  tolerance      r' = the smallest rank with |(s_{r'+1}, ..., s_r)| <= theta |S|_F

A Tucker-2 core is truncated in both channel modes; each gets ``theta / sqrt(2)``, so that here too what is dropped is
at most ``theta |S|_F`` (the squared error of a truncated HOSVD is at most the sum of both tails). A rank then lies
between ``min_rank`` and the share ``keep`` of the full rank, and is at most ``max_rank``. A first or last layer of
"full-rank" is never truncated.

A size to end within (``budget``) is met at every truncation, not only at the end: where the ranks that the tolerance
leaves make the net too large, the tolerance counts as the least larger one, the same for all layers, that makes it
small enough. So what is validated is what is saved, and the last truncation drops no more than the others did. How a
method of this family should meet a size the sources do not say: this is ours.

Ranks may adapt during the first ``steps`` steps only. After the last of these the net is truncated, whatever the method
is at, and from then on nothing widens or cuts it: cores, biases and dense layers are trained by one gradient a step,
one step of the optimizer on each batch. So the last steps mend what the last truncation broke.
"""

from __future__ import annotations

import copy
import dataclasses
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from ironrank.errors import IronrankError
from ironrank.layers import Rank
from ironrank.linalg import side_by_side
from ironrank.methods.base import State
from ironrank.methods.limits import clipped, full_ends, left, limited, smallest_size, thetas_of
from ironrank.methods.lowrank import LowRank, apply_some
from ironrank.methods.turning import Pieces, decompose, draw_spectrum, refuse_half, truncate
from ironrank.ranks import Budget, parse_budget
from ironrank.ranks.cores import Pair, limit_of, pair_of, size_at
from ironrank.settings import setting
from ironrank.surgery import Plan, factored_layers, last_match, layers_with_core, trained_cores
from ironrank.surgery.choose import rank_in

Layers = dict[str, Any]
SPECTRA = ("weights", "half-normal")


@dataclass(frozen=True, kw_only=True)
class Adaptive(LowRank):
    """Base of the methods that adapt ranks.

    Attributes:
        tolerance: theta.
        keep: Largest rank, as a share of the full rank; training starts there.
        ranks: Largest rank by name pattern, in place of ``keep``.
        min_rank: Smallest rank.
        max_rank: Largest rank as a number, for all layers; 0 for none.
        round_to: Ranks are rounded up to a multiple of this.
        spectrum: Singular values of the cores at the start: those of the weights that are given, or "half-normal",
            absolute values of normal random numbers. A random matrix has a flat spectrum, of which a large tolerance
            cuts off a part at every truncation until nothing is left to train; a half-normal one is steep and large.
        budget: Size of the whole deployed net that is not exceeded after a truncation, such as "params=8x": where theta
            leaves more, it counts as the least larger one that meets the size, the same for all layers.
        steps: Steps in which ranks adapt, before the ones at fixed rank; 0 for all.
    """

    keep: float = setting(0.5, "largest rank, as a share of the full rank", gt=0, le=1)
    tolerance: float = setting(0.1, "share of a core's norm that truncation may drop", ge=0, lt=1)
    min_rank: int = setting(2, "smallest rank", ge=1)
    max_rank: int = setting(0, "largest rank as a number; 0 for none", ge=0)
    spectrum: str = setting("weights", "singular values of the cores at the start", choices=SPECTRA)
    budget: str = setting("", "size of the whole net after each truncation, such as params=8x")
    steps: int = setting(0, "steps in which ranks adapt, before those at fixed rank; 0 for all", ge=0)

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed, or the budget needs an input of the model.
        """
        super(LowRank, self).__post_init__()  # beside a budget, keep means something else here
        self.check_budget()
        if 0 < self.max_rank < self.min_rank:
            raise IronrankError(f"{self.label()}.max_rank={self.max_rank}: allowed is 0, or at least "
                                f"{self.label()}.min_rank={self.min_rank}")  # fmt: skip

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give the chosen layers a core and two bases, from their weights; or adopt a net that is factored already.

        A factored net, such as a compressed one, keeps form, rank and function until the first truncation.

        Args:
            model: The model, changed in place.

        Returns:
            The same model.

        Raises:
            IronrankError: If the budget is out of reach, or weights are held in half precision.
        """
        refuse_half(model, self.label())
        if adopted := factored_layers(model):
            for _, layer in adopted:
                layer.orthonormalize()
        else:
            apply_some(model, self.plan(model), self.label())
            if self.spectrum == "half-normal":
                for layer in adaptive_layers(model).values():
                    draw_spectrum(layer)
        if self.budget:
            layers = adaptive_layers(model)
            least = {name: low for name, (low, _) in self.bounds(model).items()}
            if (size := self._size(model, layers, least)) > limit_of(model, layers, self._budget):
                raise IronrankError(f"{self.label()}.budget={self.budget!r}: at its smallest ranks the net has "
                                    f"{size:,.0f} {self._budget.cost}; ask for less, or lower min_rank")  # fmt: skip
        return model

    @property
    def finds_ranks(self) -> bool:
        """Whether ranks change during training: always."""
        return True

    def plan(self, model: nn.Module, core: bool = True) -> Plan:
        """Choose layers and the ranks that training starts from: the largest ones.

        Args:
            model: The dense model.
            core: Whether layers held as a matrix get a core S.

        Returns:
            The plan.
        """
        made = LowRank.plan(replace(self, budget=""), model, core)
        ends = full_ends((row.name for row in made.rows if row.rank is not None), self.first, self.last)
        free = [row.name not in ends or row.rank != row.full_rank for row in made.rows]
        rows = (
            limited(row, self.min_rank, self.max_rank) if f else row
            for f, row in zip(free, made.rows, strict=True)
        )
        return dataclasses.replace(made, rows=tuple(rows))

    def bounds(self, model: nn.Module) -> dict[str, tuple[Pair, Pair]]:
        """Return the smallest and the largest ranks of U and V of each layer whose core is trained.

        Args:
            model: The prepared model; a frozen layer too may be its first or last one.

        Returns:
            Two pairs for each.
        """
        held = full_ends((name for name, _ in layers_with_core(model)), self.first, self.last)
        layers = adaptive_layers(model)
        return {name: self._bounds(name, layer, name in held) for name, layer in layers.items()}

    def _bounds(self, name: str, layer: Any, held: bool) -> tuple[Pair, Pair]:
        full, shape = pair_of(layer.full_rank), layer.weight_shape
        if held and layer.rank == layer.full_rank:
            return full, full
        given = last_match(name, self.ranks)
        rank = pair_of(rank_in(name, shape, layer.form, self.keep, given, self.round_to))
        most = clipped(rank, self.min_rank, self.max_rank, full, shape)
        return (min(self.min_rank, most[0]), min(self.min_rank, most[1])), most

    def adapts(self, t: int) -> bool:
        """Return whether ranks may change in step t, counted from 0."""
        return self.steps == 0 or t < self.steps

    @torch.no_grad()
    def truncate(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        tolerance: float | None = None,
        crossed: bool = False,
    ) -> None:
        """Cut every layer to the rank that the tolerance leaves, and further where the budget asks for it.

        Args:
            model: The model, with orthonormal bases; changed in place.
            optimizer: Its optimizer, whose moments are carried along.
            tolerance: theta; by default that of the settings.
            crossed: See `ironrank.methods.turning.turn`.
        """
        layers, theta = adaptive_layers(model), self.tolerance if tolerance is None else tolerance
        names = sorted(layers, key=lambda name: -layers[name].S.numel())  # the dearest first
        found = side_by_side(lambda name: decompose(layers[name]), names)
        pieces = dict(zip(names, found, strict=True))
        ranks = self._ranks(model, layers, pieces, theta)
        for name, layer in layers.items():
            truncate(layer, ranks[name], pieces[name], optimizer, crossed)

    def _ranks(
        self, model: nn.Module, layers: Layers, pieces: Mapping[str, Pieces], theta: float
    ) -> dict[str, Pair]:
        """Choose the ranks of one truncation: those of theta, or of the least larger one that meets the budget."""
        bounds = self.bounds(model)

        def at(theta: float) -> dict[str, Pair]:
            return {
                name: left(layer, pieces[name].spectra, theta, bounds[name], self.round_to)
                for name, layer in layers.items()
            }

        if not self.budget:
            return at(theta)
        limit = limit_of(model, layers, self._budget)

        def fits(theta: float) -> bool:
            return self._size(model, layers, at(theta)) <= limit

        if fits(theta):
            return at(theta)
        found = (thetas_of(pieces[name].spectra, layer.form) for name, layer in layers.items())
        thetas = [theta, *sorted(t for some in found for t in some if t > theta)]
        met = bisect_left(thetas, True, lo=1, key=fits)
        return at(thetas[min(met, len(thetas) - 1)])  # at the largest all ranks are the smallest

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Make sure that the net is within its budget.

        Args:
            model: The trained model, changed in place.
            state: Not used.

        Returns:
            The same model.
        """
        layers = adaptive_layers(model)
        ranks = {name: pair_of(layer.rank) for name, layer in layers.items()}
        if self.budget and self._size(model, layers, ranks) > limit_of(model, layers, self._budget):
            self.truncate(model, tolerance=0.0)
        return model

    def within(self, model: nn.Module, params: int) -> Self:
        """Return these settings with a budget of so many parameters; see `Method.within`.

        Args:
            model: The dense model; only its shapes matter.
            params: The largest number of parameters of the deployed net.

        Returns:
            The method, at tolerance 0, so that the net is not smaller than asked. Its first and last layer keep the
            form they have here, unless that alone is too much.

        Raises:
            IronrankError: If the smallest ranks are too much.
        """
        ends = ((self.first, self.last), (self.first, "low-rank"), ("low-rank", "low-rank"))
        for first, last in dict.fromkeys(ends):
            made = replace(self, first=first, last=last, tolerance=0.0, budget=f"params={params}")
            rows = {row.name: row for row in made.plan(model).rows if row.rank is not None}
            if smallest_size(model, rows, full_ends(rows, first, last), self.min_rank) <= params:
                return made
        raise IronrankError(f"{self.label()} within {params:,} parameters: at its smallest ranks the net has more; "
                            "ask for less compression, or lower min_rank")  # fmt: skip

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return what is worth logging of the net as it would be saved now.

        Args:
            model: The prepared model.
            state: The method's state.

        Returns:
            What `Method.watch` returns; ``params``, the size of the deployed net; ``rank.<layer>``, and for Tucker-2
            ``rank.<layer>.out`` and ``.in``.
        """
        final = self.finish(copy.deepcopy(model), state)
        shown, layers = super().watch(final, state), adaptive_layers(final)
        ranks = {name: pair_of(layer.rank) for name, layer in layers.items()}
        shown["params"] = size_at(final, layers, ranks, "params")
        for name, layer in layers.items():
            shown |= _named(name, layer.rank)
        return shown

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Refuse, since a step needs more than one gradient; see `Method.attach`."""
        raise IronrankError(f"method '{self.label()}' cannot be attached: its steps take more than one gradient; in "
                            f"your own loop call {type(self).__name__}.step")  # fmt: skip

    @property
    def _budget(self) -> Budget:
        return parse_budget(self.budget)

    def _size(self, model: nn.Module, layers: Layers, ranks: Mapping[str, Pair]) -> float:
        return size_at(model, layers, ranks, self._budget.cost)


def adaptive_layers(model: nn.Module) -> Layers:
    """Return the layers whose core is trained, by full name."""
    return dict(trained_cores(model))


def _named(name: str, rank: Rank) -> dict[str, float]:
    if isinstance(rank, int):
        return {f"rank.{name}": float(rank)}
    return {f"rank.{name}.out": float(rank[0]), f"rank.{name}.in": float(rank[1])}
