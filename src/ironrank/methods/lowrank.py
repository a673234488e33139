"""What low-rank methods share: which layers they take, and at which rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Self

from torch import nn

from ironrank.errors import IronrankError
from ironrank.layers import FORMS, parts
from ironrank.methods.base import Method
from ironrank.ranks import parse_budget
from ironrank.ranks.cost import count_params
from ironrank.settings import setting
from ironrank.surgery import Plan, apply_plan, factored_layers, plan

ENDS = ("low-rank", "full-rank", "dense")
_KEEPS = 1000  # a keep that is searched for is a multiple of 1 / 1000


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """Base of the methods whose layers hold factors of a fixed rank.

    Attributes:
        keep: Kept fraction of each layer's full rank; ``keep=0.2`` is what the papers call 80 % nominal compression.
        ranks: Rank by name pattern, in place of ``keep`` for the layers that match; a pair for Tucker-2 layers.
        form: Form of the layers: "channel", "spatial", "tucker2", or "auto" for the cheapest that keeps as much, see
            `ironrank.surgery.plan`. A layer without that form gets the channel form.
        exclude: Name patterns of layers to leave dense.
        round_to: Ranks from ``keep`` are rounded up to a multiple of this.
        budget: Size of the whole deployed net, such as "params=8x", in place of ``keep``: forms and ranks of all layers
            are chosen together, and a layer where no rank is worth its cost stays dense.
        first: The first layer.
        last: The last layer.
    """

    keep: float = setting(0.2, "kept fraction of each layer's full rank", gt=0, le=1, paper="0.5, 0.2")
    ranks: dict[str, int | tuple[int, int]] = setting({}, "rank by name pattern, in place of keep")
    form: str = setting("channel", "low-rank form of the layers", choices=(*FORMS, "auto"))
    exclude: tuple[str, ...] = setting((), "name patterns of layers to leave dense")
    round_to: int = setting(1, "round ranks from keep up to a multiple of this", ge=1)
    budget: str = setting("", "size of the whole net, such as params=8x, in place of keep")
    first: str = setting("low-rank", "form of the first layer", choices=ENDS, paper="low-rank")
    last: str = setting("full-rank", "form of the last layer", choices=ENDS, paper="full-rank")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed, or the budget needs an input of the model.
        """
        super().__post_init__()
        if self.budget and self.keep != type(self).keep:
            raise IronrankError(
                f"{self.label()}.keep={self.keep:g} and {self.label()}.budget={self.budget!r}: give one of them"
            )
        self.check_budget()

    def check_budget(self) -> None:
        """Refuse a budget that is misspelled, or needs an input of the model.

        Raises:
            IronrankError: If it is refused.
        """
        if self.budget and (cost := parse_budget(self.budget).cost) not in ("params", "bytes"):
            raise IronrankError(
                f"{self.label()}.budget={self.budget!r}: allowed is params, bytes; for {cost}, use ironrank.factorize"
            )

    def plan(self, model: nn.Module, core: bool = True) -> Plan:
        """Choose layers and ranks.

        Args:
            model: The dense model.
            core: Whether layers held as a matrix get a core S.

        Returns:
            The plan.
        """
        rows = plan(model, form="channel" if self.form == "auto" else self.form).rows
        free = [
            row for row in rows if not row.reason and not any(fnmatchcase(row.name, p) for p in self.exclude)
        ]
        ends = (
            {free[-1].name: (self.last, free[-1]), free[0].name: (self.first, free[0])}
            if len(free) > 1
            else {}
        )
        dense = [name for name, (form, _) in ends.items() if form == "dense"]
        full = {name: row.full_rank for name, (form, row) in ends.items() if form == "full-rank"}
        forms = (
            dict.fromkeys(full, "channel") if self.form == "auto" else {}
        )  # the form that the rank is full in
        size = {"budget": self.budget} if self.budget else {"keep": self.keep}
        return plan(model, **size, exclude=[*self.exclude, *dense], ranks=full | self.ranks,
                    round_to=self.round_to, core=core, form=self.form, forms=forms)  # fmt: skip

    def deployed(self, model: nn.Module) -> int:
        """Return the number of parameters of a net once the method has prepared it and its layers are deployed.

        Args:
            model: The dense model; only shapes matter.

        Returns:
            The number; each layer counts in its smaller form.
        """
        total = count_params(model)
        for row in self.plan(model).rows:
            if row.rank is not None:
                total -= max(0, math.prod(row.shape) - sum(parts(row.shape, row.form, row.rank)))
        return total

    def within(self, model: nn.Module, params: int) -> Self:
        """Return these settings at the largest keep, the same for all layers, whose net is small enough.

        Args:
            model: The dense model; only its shapes matter.
            params: The largest number of parameters of the deployed net.

        Returns:
            The method. Its last layer keeps the form it has here, unless that alone is too much.

        Raises:
            IronrankError: If rank 1 everywhere is too much.
        """
        for last in dict.fromkeys((self.last, "low-rank")):
            if self._at(1, last).deployed(model) <= params:
                low, high = 1, _KEEPS + 1
                while high - low > 1:
                    middle = (low + high) // 2
                    fits = self._at(middle, last).deployed(model) <= params
                    low, high = (middle, high) if fits else (low, middle)
                return self._at(low, last)
        raise IronrankError(
            f"{self.label()} within {params:,} parameters: rank 1 everywhere has more; ask for less compression"
        )

    def in_reach(self, model: nn.Module, params: int) -> Self:
        """Return these settings, in Tucker-2 form where rank 1 everywhere is too much in their own.

        Args:
            model: The dense model; only its shapes matter.
            params: The largest number of parameters of the deployed net.

        Returns:
            The method.
        """
        reached = self._at(1, "low-rank").deployed(model) <= params
        return self if reached else replace(self, form="tucker2")

    def _at(self, steps: int, last: str) -> Self:
        return replace(self, keep=steps / _KEEPS, last=last, budget="")

    def refuse_factored(self, model: nn.Module) -> None:
        """Refuse a net that holds factors already, where the method truncates dense weights.

        Args:
            model: The model.

        Raises:
            IronrankError: If one of its layers is factored.
        """
        if factored_layers(model):
            raise IronrankError(
                f"{self.label()} truncates dense layers, and this net is factored already: start from a dense run"
            )

    def factorize(self, model: nn.Module, core: bool) -> nn.Module:
        """Replace the chosen layers, in place, by what is nearest to their weights in their form.

        Args:
            model: The dense model, changed in place.
            core: Whether layers held as a matrix get a core S.

        Returns:
            The same model.

        Raises:
            IronrankError: If no layer is chosen; under a budget that they meet all may stay dense.
        """
        made = self.plan(model, core)
        return apply_plan(model, made) if self.budget else apply_some(model, made, self.label())


def apply_some(model: nn.Module, made: Plan, label: str) -> nn.Module:
    """Apply a plan in which at least one layer becomes low-rank.

    Args:
        model: The dense model, changed in place.
        made: The plan.
        label: Name of the method.

    Returns:
        The same model.

    Raises:
        IronrankError: If the plan leaves all layers dense.
    """
    if all(row.rank is None for row in made.rows):
        raise IronrankError(
            f"{label}: no layer of the model becomes low-rank: allowed are linear layers and convolutions without "
            "groups that are not excluded; exclude less, or take method dense"
        )
    return apply_plan(model, made)
