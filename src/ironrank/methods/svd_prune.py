"""SVD training: a net trained in the form of its singular value decomposition, with few singular values, then pruned.

Every layer holds ``U diag(s) V^T`` at full rank from the start, and gradients move U, s and V. One penalty pulls the
bases towards orthonormal columns, so that s stay near the singular values; another makes s sparse. After a number of
steps the layers are decomposed again, small singular values are dropped, and training goes on at the ranks that are
left.

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
    (4)  after ``steps`` steps: U, s, V <- the SVD of ``U diag(s) V^T``
    (5)  the smallest s of each layer are dropped whose squares add up to at most e |s|^2
    (6)  training goes on with lambda_s = 0, at ``rate`` times the learning rate

(4) is ours: the penalty over r^2 is weak where r is large, and without (4) what is dropped are not singular values of
the net. Under a budget, the ranks in (5) are those of all layers together that drop least (`ironrank.ranks.fit`). One
share for all layers was tried there: the spectra of full-rank training are so flat that it is one share of the rank,
and the first and the last layer starve. (6): the bases of (4) are orthonormal, those before it were longer, so all of
the scale is in s then, and a step of U moves the weight by s^2 times its gradient: at the full rate training diverged.

When not to use it: where memory is short while training (full rank takes twice the dense weights, or more); to bound
the condition number, which sparse singular values rather raise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers import parts
from ironrank.linalg import USV
from ironrank.linalg.precision import full_precision
from ironrank.linalg.svd import checked_svd
from ironrank.methods.base import Backward, Method, State
from ironrank.methods.lowrank import apply_some
from ironrank.optim import slowed
from ironrank.ranks import fit, parse_budget
from ironrank.ranks.cost import count_params
from ironrank.settings import setting
from ironrank.surgery import Plan, deploy, factored_layers, plan, trained_cores

PENALTIES = ("hoyer", "l1")


@dataclass(frozen=True, kw_only=True)
class SVDPrune(Method):
    """Train in the form of the SVD, drop small singular values, fine-tune.

    Attributes:
        energy: Share of the squares of a layer's singular values that may be dropped.
        budget: Size of the whole deployed net, such as "params=8x", in place of ``energy``.
        steps: Steps before singular values are dropped.
        orthogonality: Weight of the penalty on the bases.
        sparsity: Weight of the penalty on the singular values.
        rate: Factor on the learning rate of all weights after singular values are dropped.
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
    rate: float = setting(0.1, "factor on the learning rate after values are dropped", gt=0, le=1)
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

    @property
    def finds_ranks(self) -> bool:
        """Whether ranks change during training: they are cut once, after ``steps``."""
        return True

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
            rows = [row for row in made.rows if row.rank is not None and _trained(model, row.name)]
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
        return apply_some(model, self.plan(model), self.label())

    @torch.no_grad()
    def init(self, model: nn.Module) -> State:
        """Make every core diagonal, where it is not; the function stays the same.

        Args:
            model: The prepared model.

        Returns:
            Whether singular values were dropped yet.
        """
        for _, layer in trained_cores(model):
            if torch.count_nonzero(layer.S - layer.S.diagonal().diag()):  # an average of weights, say
                P, s, Qt = checked_svd(layer.S)
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
        for _, layer in trained_cores(model):
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
        for _, layer in trained_cores(model):
            if layer.S.grad is not None:
                layer.S.grad = layer.S.grad.diagonal().diag()  # (3)
        with slowed(optimizer, self.rate if state["pruned"] else 1.0):
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
        """Decompose the layers again and drop their small singular values, in place: equations (4) and (5).

        Args:
            model: The prepared model.
            optimizer: Its optimizer, whose moments of these factors begin anew.
        """
        ranks = self._ranks(model) if self.budget else {}
        for name, layer in trained_cores(model):
            P, s, Qt = checked_svd(layer.matrix())
            r = ranks[name] if self.budget else rank_at(s, self.energy)
            layer.set_factors(USV(P[:, :r], s[:r].diag(), Qt[:r].mT))
            if optimizer is not None:
                for factor in (layer.U, layer.S, layer.V):
                    optimizer.state.pop(factor, None)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Refuse; see `Method.attach`."""
        raise IronrankError("svd-prune cannot be attached: it drops ranks during the training; use train")

    def _ranks(self, model: nn.Module) -> dict[str, int]:
        """Return the ranks within the budget that drop least of all layers together."""
        layers = dict(trained_cores(model))
        chosen = fit(deploy(model, dense=True), layers, self.budget, form=self.form).by_name
        # a layer that is better dense has no rank there, and keeps its full one
        return {name: cast(int, chosen[name].rank or layer.rank) for name, layer in layers.items()}


def _trained(model: nn.Module, name: str) -> bool:
    weight: Any = model.get_submodule(name).weight
    return weight.requires_grad


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
