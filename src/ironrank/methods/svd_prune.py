"""SVD training: a net trained in the form of its singular value decomposition, with few singular values, then pruned.

Every layer holds ``U diag(s) V^T`` at full rank from the start, and gradients move U, s and V. One penalty keeps the
bases orthonormal, so that s stay the singular values; another makes s sparse. After a number of steps the smallest are
dropped and training goes on at the ranks that are left. No decomposition is computed but the first.

After Yang, Tang, Wen, Yan, Hu, Li, Li, Chen, "Learning low-rank deep neural networks via singular vector orthogonality
regularization and singular value sparsification", 2020. Known from its abstract: full-rank decomposition first,
training on it, orthogonality regularization, sparsity-inducing regularizers on s, pruning at the end. The formulas are
those that go by its name in other people's code; the paper's own text was not at hand.

    symbol       name here            shape
    U, V         layer.U, layer.V     (n, r), (m, r)
    s            diagonal of layer.S  (r,), of any sign
    lambda_o     orthogonality
    lambda_s     sparsity
    e            energy               share of the squares of s that may be dropped

    (1)  loss = objective + lambda_o sum_l (|U^T U - I|^2 + |V^T V - I|^2) / r^2 + lambda_s sum_l h(s)
    (2)  h(s) = |s|_1 / |s|_2  (Hoyer), or |s|_1
    (3)  the optimizer moves U, V and the diagonal of S; off it, gradients are dropped
    (4)  after ``steps`` steps: the smallest |s| of each layer are dropped whose squares add up to at most e |s|^2
    (5)  training goes on with lambda_s = 0

Under a budget, e is the smallest share, the same for all layers, whose deployed net is within it.

When not to use it: where memory is short while training (full rank takes twice the dense weights, or more); to bound
the condition number, which sparse singular values rather raise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers import parts
from ironrank.linalg import USV
from ironrank.linalg.precision import full_precision
from ironrank.methods.base import Backward, Method, State
from ironrank.ranks import parse_budget
from ironrank.ranks.cost import count_params
from ironrank.settings import setting
from ironrank.surgery import Plan, apply_plan, factored_layers, layers_with_core, plan

PENALTIES = ("hoyer", "l1")
_HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class SVDPrune(Method):
    """Train in the form of the SVD, drop small singular values, fine-tune.

    Attributes:
        energy: Share of the squares of a layer's singular values that may be dropped.
        budget: Size of the whole deployed net, such as "params=8x", in place of ``energy``.
        steps: Steps before singular values are dropped.
        orthogonality: Weight of the penalty on the bases.
        sparsity: Weight of the penalty on the singular values.
        penalty_of: "hoyer" or "l1".
        form: "channel" or "spatial".
        exclude: Name patterns of layers to leave dense.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> method = SVDPrune(budget="params=1.5x")
        >>> net = method.prepare(net)
        >>> net[0].rank, method.finish(net, method.init(net))[0].rank
        (8, 2)
    """

    name: ClassVar[str] = "svd-prune"
    energy: float = setting(0.01, "share of the squared singular values that may be dropped", ge=0, lt=1)
    budget: str = setting("", "size of the whole net, such as params=8x, in place of energy")
    steps: int = setting(1000, "steps before singular values are dropped", ge=0)
    orthogonality: float = setting(1.0, "weight of the penalty on the bases", ge=0)
    sparsity: float = setting(0.01, "weight of the penalty on the singular values", ge=0)
    penalty_of: str = setting("hoyer", "penalty on the singular values", choices=PENALTIES)
    form: str = setting("channel", "low-rank form of convolutions", choices=("channel", "spatial"))
    exclude: tuple[str, ...] = setting((), "name patterns of layers to leave dense")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed.
        """
        super().__post_init__()
        if self.budget and parse_budget(self.budget).cost != "params":
            raise IronrankError(f"svd-prune.budget={self.budget!r}: allowed is params, such as params=8x")

    def plan(self, model: nn.Module) -> Plan:
        """Say which layers get the form of their SVD, at full rank.

        Args:
            model: The dense model.

        Returns:
            The plan.

        Raises:
            IronrankError: If the budget is out of reach.
        """
        made = plan(model, 1.0, exclude=self.exclude, form=self.form)
        if self.budget:
            whole = count_params(model)
            rows = [row for row in made.rows if row.rank is not None]
            saved = (math.prod(row.shape) - sum(parts(row.shape, row.form, 1)) for row in rows)
            least = whole - sum(max(0, number) for number in saved)
            if least > parse_budget(self.budget).limit(whole):
                raise IronrankError(
                    f"svd-prune.budget={self.budget!r}: rank 1 everywhere has {least:,} parameters of {whole:,}; "
                    "ask for less compression"
                )
        return made

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give the layers the form of their SVD; the function stays the same.

        Args:
            model: The dense model, changed in place.

        Returns:
            The same model.

        Raises:
            IronrankError: If it is factored already, or the budget is out of reach.
        """
        if factored_layers(model):
            raise IronrankError(
                "svd-prune decomposes dense layers, and this net is factored: start from a dense one"
            )
        return apply_plan(model, self.plan(model))

    @torch.no_grad()
    def init(self, model: nn.Module) -> State:
        """Make every core diagonal, where it is not; the function stays the same.

        Args:
            model: The prepared model.

        Returns:
            Whether singular values were dropped yet.
        """
        for _, layer in layers_with_core(model):
            if torch.count_nonzero(layer.S - layer.S.diagonal().diag()):  # an average of weights, say
                P, s, Qt = torch.linalg.svd(layer.S)
                layer.set_factors(USV(layer.U @ P, s.diag(), layer.V @ Qt.mT))
        return {"pruned": torch.tensor(0)}

    def penalty(self, model: nn.Module, state: State) -> Tensor | float:
        """Return what keeps bases orthonormal and singular values few: equation (1).

        Args:
            model: The prepared model.
            state: From `init`.

        Returns:
            A scalar.
        """
        total: Tensor | float = 0.0
        sparsity = 0.0 if state["pruned"] else self.sparsity
        for _, layer in layers_with_core(model):
            total = total + self.orthogonality * (_apart(layer.U) + _apart(layer.V))
            if sparsity:
                total = total + sparsity * _spread(layer.S.diagonal(), self.penalty_of)
        return total

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of this file for the equations.

        Args:
            model: The prepared model.
            optimizer: Any torch optimizer of its parameters.
            state: From `init`, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step.
        """
        if not state["pruned"] and t >= self.steps:
            self.prune(model, optimizer)  # (4)
            state["pruned"] = torch.ones_like(state["pruned"])
        loss = backward()
        for _, layer in layers_with_core(model):
            if layer.S.grad is not None:
                layer.S.grad = layer.S.grad.diagonal().diag()  # (3)
        optimizer.step()
        return loss

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Drop singular values, where the training ended before that; see `Method.finish`."""
        if not state["pruned"]:
            self.prune(model)
        return model

    def within(self, model: nn.Module, params: int) -> Self:
        """Return these settings with a budget of so many parameters; see `Method.within`."""
        method = replace(self, budget=f"params={params}")
        method.plan(model)  # refuses what is out of reach
        return method

    def paces(self, steps: int) -> dict[str, int]:
        """Return half of the steps before values are dropped; see `Method.paces`."""
        return {"steps": steps // 2}

    @torch.no_grad()
    def prune(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Drop the smallest singular values of each layer, in place: equation (4).

        Args:
            model: The prepared model.
            optimizer: Its optimizer, whose moments lose the same columns.
        """
        layers = layers_with_core(model)
        energy = self._energy_within(model, layers) if self.budget else self.energy
        for _, layer in layers:
            s = layer.S.diagonal()
            keep = torch.argsort(s.abs(), descending=True, stable=True)[: rank_at(s, energy)].sort().values
            if len(keep) < len(s):
                before = {name: getattr(layer, name).shape for name in ("U", "S", "V")}
                layer.set_factors(USV(layer.U[:, keep], s[keep].diag(), layer.V[:, keep]))
                if optimizer is not None:
                    _carry(optimizer, layer, before, keep)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Refuse; see `Method.attach`."""
        raise IronrankError("svd-prune cannot be attached: it drops ranks during the training; use train")

    def _energy_within(self, model: nn.Module, layers: list[tuple[str, Any]]) -> float:
        """Return the smallest share of energy, the same for all layers, at which the net is within the budget."""
        sizes = [math.prod(layer.weight_shape) for _, layer in layers]
        held = sum(sum(factor.numel() for factor in layer.factors()) for _, layer in layers)
        rest = count_params(model) - held
        limit = parse_budget(self.budget).limit(rest + sum(sizes))
        spectra = [layer.S.diagonal() for _, layer in layers]

        def fits(energy: float) -> bool:
            ranks = [rank_at(s, energy) for s in spectra]
            thin = [
                sum(parts(layer.weight_shape, layer.form, r))
                for (_, layer), r in zip(layers, ranks, strict=True)
            ]
            return rest + sum(map(min, thin, sizes)) <= limit

        low, high = 0.0, 1.0  # at 1 all ranks are 1
        if fits(low):
            return low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high


def rank_at(s: Tensor, energy: float) -> int:
    """Return how many singular values stay when the smallest are dropped, up to a share of the sum of squares.

    Args:
        s: Singular values (r,), in any order and of any sign.
        energy: The share.

    Returns:
        The rank, at least 1.

    Example:
        >>> s = torch.tensor([3.0, -1.0, 2.0, 0.0])
        >>> [rank_at(s, energy) for energy in (0.0, 0.08, 0.4, 1.0)]
        [3, 2, 1, 1]
    """
    squares = s.detach().double().square().sort().values
    dropped = int((squares.cumsum(0) <= energy * squares.sum()).sum())
    return max(1, len(s) - dropped)


@full_precision
def _apart(basis: Tensor) -> Tensor:
    """Return ``|B^T B - I|^2 / r^2``."""
    gram = basis.mT @ basis
    return (gram - torch.eye(len(gram), dtype=basis.dtype, device=basis.device)).square().mean()


def _spread(s: Tensor, kind: str) -> Tensor:
    """Return h(s) of equation (2)."""
    size = s.abs().sum()
    return size if kind == "l1" else size / s.norm().clamp_min(torch.finfo(s.dtype).tiny)


def _carry(optimizer: torch.optim.Optimizer, layer: Any, before: dict[str, Any], keep: Tensor) -> None:
    """Let the moments of a layer's factors lose what the factors lost."""
    for name, shape in before.items():
        moments = optimizer.state.get(getattr(layer, name), {})
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == shape:
                moments[key] = (value[keep][:, keep] if name == "S" else value[:, keep]).contiguous()
