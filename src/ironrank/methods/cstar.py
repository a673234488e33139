"""CSTAR: compact, structured and robust in one problem, solved by ADMM, with ranks chosen for the whole net at once.

The net stays dense while it trains on the loss of its objective, adversarial or not, and every weight is pulled towards
a copy of itself that is low-rank. The copies are projections, at ranks that share out one budget among all layers; the
pull grows until weight and copy agree. Then the layers are rewritten by their factors, and little is lost.

After CSTAR: Phan, Yin, Sui, Yuan, Zonouz, "CSTAR: Towards compact and structured deep neural networks with adversarial
robustness", AAAI 2023. What is confirmed: low rank and robustness in one optimisation, a projection in Tucker-2 form,
ranks determined globally, ratios from 2x to 64x, Linf 8/255 at step 2/255. Its equations are not public in full: those
below, ADMM included, are a reconstruction, from the abstract and from what the same group's published ADMM code for
other papers does.

    symbol         name here          shape
    W              layer.weight       (n, c, k_1, ..., k_d), or (n, m); trained
    Z              state "Z.<name>"   the same; low-rank
    Y              state "Y.<name>"   the same; the dual variable, scaled by 1/rho
    R              state "rank.<name>"  form, r_1, r_2
    rho            state "rho"        weight of the pull
    P_R            `nearest`          projection: truncated SVD for matrix forms, HOOI for Tucker-2

Problem:  min_W E[loss]  subject to  rank W_l <= R_l for every layer,  sum of cost_l(R_l) <= budget.

    (1)  W-step: the optimizer moves W along the gradient of  loss + rho/2 sum_l |W_l - Z_l + Y_l|^2
    (2)  R <- the choice within the budget that drops least of W                 while ranks are being chosen
    (3)  Z-step: Z_l <- P_R(W_l + Y_l)
    (4)  Y-step: Y_l <- Y_l + W_l - Z_l
    (5)  rho <- min(growth rho, rho_max), and Y <- Y rho_old / rho_new, since Y is scaled

(1) at every step, (2) to (5) at every ``every``-th. At the start Y = 0 and Z = P_R(W). At the end each layer becomes
P_R(W): the nearest net to the trained one, whose loss is the one that was trained and validated. P_R(W + Y) would carry
over the dual, which remembers all former gaps, and where W = Z both are the same.

Deviations from the group's code: its ranks are given by hand, rho is constant, Z and Y move once per epoch. One-by-one
convolutions of shortcuts are left dense there; here the choice decides, and the first and the last layer stay dense.

When not to use it: where the net has to be small while it trains (memory and time are those of the dense net), and
where training is so short that W and Z cannot meet (watch ``primal``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers import full_rank
from ironrank.methods import targets
from ironrank.methods.admm import ADMM
from ironrank.methods.base import State
from ironrank.ranks import Choice, check_reach, fit, parse_budget
from ironrank.ranks.cost import check_wish
from ironrank.settings import setting
from ironrank.surgery import Plan, Row, apply_plan, factored_layers, plan

ENDS = ("dense", "low-rank")


@dataclass(frozen=True, kw_only=True)
class CSTAR(ADMM):
    """Train towards low rank under one budget, and rewrite the layers at the end.

    Attributes:
        budget: What the whole deployed net may cost: "params=8x", "params=25%", "params=1.2M", "macs=4x", "bytes=2MB".
            Biases, batch norm and layers that stay dense count. No latency: a time that is measured would differ from
            one process, or one resumed run, to another, and the ranks with it.
        form: Form of convolutions, "tucker2", "channel", "spatial", or "auto" for the best of all, layer by layer.
            Linear and 1 x 1 layers are always truncated as matrices.
        rho: Weight of the pull at the start.
        rho_growth: Factor on rho at every update of Z and Y.
        rho_max: rho grows no further; one that starts above it stays. Keep ``lr rho / (1 - momentum)`` well below 1.
        every: Steps between two updates of Z and Y. The default is a quarter of an epoch of CIFAR-10 at batch 128; take
            less where the whole training has fewer than some 50 updates.
        choose: The first so many updates choose the ranks anew; then they are frozen.
        choose_on: What the choice looks at, "weights" for W or "shifted" for W + Y, as the Z-step does. In Y what is
            dropped adds up from update to update until it is worth a rank: where W follows slowly, weak directions
            come and go, and the ranks that are frozen are those of the moment.
        min_rank: Smallest rank of a layer that does not stay dense.
        round_to: Ranks are multiples of this, or full.
        errors: What the choice adds up over layers: "absolute", squared norms, or "relative", shares of each layer's.
        exclude: Name patterns of layers to leave dense.
        first: The first layer that is not excluded.
        last: The last such layer.
        input_shape: Shape of one input, such as (3, 32, 32); needed for a budget of macs only.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> method = CSTAR(budget="params=2x", rho=0.1, every=1, first="low-rank")
        >>> optimizer, x, y = torch.optim.SGD(net.parameters(), lr=0.1), torch.randn(8, 64), torch.arange(8)
        >>> attached = method.attach(net, optimizer)
        >>> for _ in range(3):
        ...     loss = nn.functional.cross_entropy(net(x), y)  # or of adversarial examples
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> small = attached.finish()
        >>> sum(p.numel() for p in small.parameters()) <= 4810 / 2
        True
    """

    name: ClassVar[str] = "cstar"
    budget: str = setting("params=8x", "cost of the whole deployed net", paper="2x to 64x")
    form: str = setting("tucker2", "form of convolutions", paper="tucker2")
    rho: float = setting(0.001, "weight of the pull at the start", gt=0)
    rho_growth: float = setting(1.3, "factor on rho at every update", ge=1)
    rho_max: float = setting(0.1, "largest rho", gt=0)
    every: int = setting(100, "steps between two updates of Z and Y", ge=1)
    choose: int = setting(10, "updates that choose the ranks anew", ge=0)
    choose_on: str = setting(
        "weights", "what the choice of ranks looks at: W, or W + Y", choices=("weights", "shifted")
    )
    min_rank: int = setting(1, "smallest rank of a layer that does not stay dense", ge=1)
    round_to: int = setting(1, "ranks are multiples of this, or full", ge=1)
    errors: str = setting("absolute", "what the choice adds up over layers", choices=("absolute", "relative"))
    exclude: tuple[str, ...] = setting((), "name patterns of layers to leave dense")
    first: str = setting("dense", "form of the first layer", choices=ENDS)
    last: str = setting("dense", "form of the last layer", choices=ENDS)
    input_shape: tuple[int, ...] = setting((), "shape of one input, for a budget of macs")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed.
        """
        super().__post_init__()
        check_wish(self.form)
        cost = parse_budget(self.budget).cost
        if cost == "latency":
            raise IronrankError(f"cstar.budget={self.budget!r}: allowed is params, macs, bytes; measured times would "
                                "make the ranks differ from run to run, so use ironrank.factorize")  # fmt: skip
        if cost == "macs" and not self.input_shape:
            raise IronrankError(f"cstar.budget={self.budget!r} needs cstar.input_shape, such as (3, 32, 32)")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Leave the model dense; refuse one that has no layer to compress, or cannot become as small.

        Args:
            model: The dense model; only its shapes matter.

        Returns:
            The same model, unchanged.
        """
        check_reach(model, self.names(model), self.budget, form=self.form, example=self._example(model),
                    min_rank=self.min_rank, round_to=self.round_to)  # fmt: skip
        return model

    def init(self, model: nn.Module) -> State:
        """Choose ranks for the weights as they are: Y = 0, Z = P_R(W).

        Args:
            model: The dense model.

        Returns:
            Z, Y and the ranks of each layer, rho, the number of updates, and what `watch` shows.
        """
        weights = targets.weights_of(model, self.names(model))
        state: State = {"rho": torch.tensor(self.rho, dtype=torch.float64), "updates": torch.tensor(0)}
        targets.set_ranks(state, self.plan(model, weights))
        for name, W in weights.items():
            state[f"Y.{name}"] = torch.zeros(W.shape, dtype=W.dtype, device=W.device)
        targets.set_targets(state, weights)
        state["dual"] = torch.tensor(0.0, dtype=torch.float64)
        return state

    def ahead(self, model: nn.Module, state: State) -> None:
        """Add the pull to the gradients: the second term of (1)."""
        targets.pull(model, state)

    def within(self, model: nn.Module, params: int) -> CSTAR:
        """Return these settings with a budget of so many parameters; see `Method.within`."""
        return replace(self, budget=f"params={params}")

    @torch.no_grad()
    def update(self, model: nn.Module, state: State) -> None:
        """Choose ranks, project, move the dual, raise rho: equations (2) to (5), in place.

        Args:
            model: The dense model.
            state: From `init`.
        """
        weights = targets.weights_of(model, targets.layers_of(model, state))
        shifted = {name: (W + state[f"Y.{name}"]).contiguous() for name, W in weights.items()}
        if int(state["updates"]) < self.choose:
            seen = weights if self.choose_on == "weights" else shifted
            targets.set_ranks(state, self.plan(model, seen))  # (2)
        before = {name: state[f"Z.{name}"] for name in weights}
        targets.set_targets(state, shifted)  # (3)
        low = targets.pulled(model, state)  # the Z of a layer that stays dense is but its weight
        moved = sum(float((state[f"Z.{name}"] - before[name]).double().square().sum()) for name in low)
        state["dual"] = torch.tensor(float(state["rho"]) * math.sqrt(moved), dtype=torch.float64)
        rho = self.raised(float(state["rho"]))
        for name, V in shifted.items():
            state[f"Y.{name}"] = (V - state[f"Z.{name}"]) * (float(state["rho"]) / rho)  # (4), (5)
        state["rho"], state["updates"] = torch.tensor(rho, dtype=torch.float64), state["updates"] + 1

    @torch.no_grad()
    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Rewrite each layer as P_R(W), at the ranks of the state; the net is then within the budget.

        Args:
            model: The trained dense model, changed in place.
            state: From `init`.

        Returns:
            The same model, its layers factored or dense.
        """
        rows = []
        for name, layer in targets.pulled(model, state).items():
            form, rank = targets.decoded(state[f"rank.{name}"])
            layer.weight.copy_(targets.closest(layer.weight, form, rank, state.get(f"V.{name}")))
            shape = tuple(layer.weight.shape)
            rows.append(Row(name, type(layer).__name__, shape, full_rank(shape, form), rank, "", form))
        return apply_plan(model, Plan(tuple(rows), core=False))

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return how far weights and targets are apart.

        Args:
            model: The model.
            state: From `init`.

        Returns:
            ``primal``, the norm of W - Z over that of W, all layers together; ``dual``, rho times the norm of what Z
            moved at the last update, in layers that do not stay dense; ``rho``; ``ratio``, how many times smaller the
            present ranks make the net.
        """
        shown = {name: float(state[name]) for name in ("dual", "rho", "ratio")}
        return super().watch(model, state) | {"primal": targets.gap(model, state)} | shown

    def names(self, model: nn.Module) -> list[str]:
        """Return the full names of the layers that may become low-rank; frozen ones stay, since nothing pulls them.

        Args:
            model: The dense model.

        Returns:
            The names, in the order of the model.

        Raises:
            IronrankError: If there is none, all are frozen, a pattern matches none, or the model is factored already.
        """
        if factored_layers(model):
            raise IronrankError("cstar compresses dense layers: this net is factored, start from a dense one")
        free = [row.name for row in plan(model, exclude=self.exclude).rows if not row.reason]
        if not free:
            raise IronrankError("cstar: no layer of the model can become low-rank: allowed are linear layers and "
                                "convolutions without groups that are not excluded; exclude less")  # fmt: skip
        chosen = free[1 if self.first == "dense" else 0 : len(free) - (self.last == "dense")]
        if chosen and not (chosen := [name for name in chosen if _trained(model, name)]):
            raise IronrankError("cstar pulls weights by their training: all that may become low-rank here are frozen; "
                                "thaw them, or cut them by factorize")  # fmt: skip
        if not chosen:
            ends = "and" if len(free) == 1 else "or"
            raise IronrankError(f"cstar: no layer is left to compress, since the first and the last of {len(free)} "
                                f"stay dense: set first {ends} last to 'low-rank'")  # fmt: skip
        return chosen

    @property
    def finds_ranks(self) -> bool:
        """Whether ranks change during training: at the first ``choose`` updates."""
        return self.choose > 0

    def plan(self, model: nn.Module, weights: dict[str, Tensor] | None = None) -> Choice:
        """Choose forms and ranks of all layers within the budget: equation (2).

        Args:
            model: The dense model, whose cost counts.
            weights: What the errors are measured on, by name; by default the weights of the model.

        Returns:
            The choice; ``print`` shows it as a table.
        """
        weights = targets.weights_of(model, self.names(model)) if weights is None else weights
        factors = None
        if self.errors == "relative":
            norms = {name: float(W.double().square().sum()) for name, W in weights.items()}
            factors = {name: 1 / norm if norm else 1.0 for name, norm in norms.items()}
        return fit(model, weights, self.budget, form=self.form, example=self._example(model), weights=weights,
                   factors=factors, min_rank=self.min_rank, round_to=self.round_to)  # fmt: skip

    def _example(self, model: nn.Module) -> Tensor | None:
        return next(model.parameters()).new_zeros(1, *self.input_shape) if self.input_shape else None


def _trained(model: nn.Module, name: str) -> bool:
    weight: Any = model.get_submodule(name).weight
    return bool(weight.requires_grad)
