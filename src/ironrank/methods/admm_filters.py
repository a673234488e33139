"""ADMM on filters: a net is trained on its objective while all but k filters of each group are pulled to zero.

The net stays whole while it trains, adversarially or not, and every filter is pulled towards a copy of itself; the
copies of all but the k largest filters of a group are zero. The pull grows until weight and copy agree. Then the
filters whose copies are zero are removed for good, and little is lost.

After Ye, Xu, Liu, Cheng, Lambrechts, Zhang, Zhou, Ma, Wang, Lin, "Adversarial robustness vs. model compression, or
both?", ICCV 2019. Known from its code: projection of the filters by their norms, rho 0.001 times 1.3 at every update,
retraining with the zeros fixed.

    symbol       name here           shape
    W            the parameters      of all that makes a filter: rows of weights, biases, scales and shifts of norms
    Z            state "Z.<name>"    the same; k filters of each group are not zero
    Y            state "Y.<name>"    the same; the dual variable, scaled by 1/rho
    k            state "kept.<g>"    number of filters that stay
    P_k          `ADMMFilters._project`  keeps the k filters of largest norm; the nearest point with k filters

Problem:  min_W E[loss]  subject to  at most k_g filters of group g are not zero, for every group.

    (1)  W-step: the optimizer moves W along the gradient of  loss + rho/2 |W - Z + Y|^2
    (2)  Z-step: Z <- P_k(W + Y)
    (3)  Y-step: Y <- Y + W - Z
    (4)  rho <- min(growth rho, rho_max), and Y <- Y rho_old / rho_new, since Y is scaled

(1) at every step, (2) to (4) at every ``every``-th. At the start Y = 0 and Z = P_k(W). At the end the k filters of
largest norm of W stay.

Deviations: the published code takes the rows of each convolution by themselves, keeps zeros in the net, and states a
share for each layer. Here coupled layers lose filters together, biases and batch norm are a part of a filter (behind a
batch norm the size of a row alone means nothing), k follows from one budget for the net, and the rows are removed.

When not to use it: where training is so short that W and Z cannot meet (watch ``primal``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ironrank.methods.admm import ADMM
from ironrank.methods.base import State
from ironrank.methods.filter_state import Noted, lengths, makers, note, noted
from ironrank.methods.filters import FilterPruning, largest
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class ADMMFilters(ADMM, FilterPruning):
    """Train towards few filters, and remove the others at the end.

    Attributes:
        rho: Weight of the pull at the start.
        rho_growth: Factor on rho at every update of Z and Y.
        rho_max: rho grows no further. Keep ``lr rho / (1 - momentum)`` well below 1.
        every: Steps between two updates of Z and Y.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> method = ADMMFilters(budget="params=2x")
        >>> small = method.finish(net, method.init(net))
        >>> small[0]
        Linear(in_features=8, out_features=3, bias=True)
    """

    name: ClassVar[str] = "admm-filters"
    rho: float = setting(0.001, "weight of the pull at the start", gt=0, paper="0.001")
    rho_growth: float = setting(1.3, "factor on rho at every update", ge=1, paper="1.3")
    rho_max: float = setting(0.1, "largest rho", gt=0)
    every: int = setting(100, "steps between two updates of Z and Y", ge=1, paper="20 epochs")

    def init(self, model: nn.Module) -> State:
        """Find groups and numbers of filters: Y = 0, Z = P_k(W).

        Args:
            model: The dense model.

        Returns:
            Z, Y, the groups, rho, the number of updates, and what `watch` shows.
        """
        state = note(self.plan(model), "out")
        state = {name: tensor.to(next(model.parameters()).device) for name, tensor in state.items()}
        state |= {"rho": torch.tensor(self.rho, dtype=torch.float64), "updates": torch.tensor(0)}
        state["dual"] = torch.tensor(0.0, dtype=torch.float64)
        weights = {name: p.detach() for name, p in makers(model, noted(state, "out")).items()}
        state |= {f"Y.{name}": torch.zeros_like(W) for name, W in weights.items()}
        return state | self._project(noted(state, "out"), weights)

    @torch.no_grad()
    def ahead(self, model: nn.Module, state: State) -> None:
        """Add the pull to the gradients: the second term of (1)."""
        rho = float(state["rho"])
        for name, parameter in makers(model, noted(state, "out")).items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - state[f"Z.{name}"] + state[f"Y.{name}"], alpha=rho)

    @torch.no_grad()
    def update(self, model: nn.Module, state: State) -> None:
        """Project, move the dual, raise rho: equations (2) to (4), in place.

        Args:
            model: The dense model.
            state: From `init`.
        """
        groups = noted(state, "out")
        shifted = {name: W + state[f"Y.{name}"] for name, W in makers(model, groups).items()}
        new = self._project(groups, shifted)  # (2)
        moved = sum(float((Z - state[key]).double().square().sum()) for key, Z in new.items())
        state["dual"] = torch.tensor(float(state["rho"]) * math.sqrt(moved), dtype=torch.float64)
        rho = self.raised(float(state["rho"]))
        for name, V in shifted.items():
            state[f"Y.{name}"] = (V - new[f"Z.{name}"]) * (float(state["rho"]) / rho)  # (3), (4)
        state |= new | {"rho": torch.tensor(rho, dtype=torch.float64), "updates": state["updates"] + 1}

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Remove all but the k largest filters of each group.

        Args:
            model: The trained dense model, changed in place.
            state: From `init`.

        Returns:
            The same model, within the budget.
        """
        groups = noted(state, "out")
        weights = {name: p.detach() for name, p in makers(model, groups).items()}
        return self.cut(model, self.plan(model), {group.name: lengths(group, weights) for group in groups})

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return how far weights and targets are apart.

        Args:
            model: The model.
            state: From `init`.

        Returns:
            ``primal``, the norm of W - Z over that of W; ``dual``, rho times the norm of what Z moved at the last
            update; ``rho``; ``ratio``, how many times smaller the net becomes.
        """
        weights = {name: p.detach().double() for name, p in makers(model, noted(state, "out")).items()}
        whole = sum(float(W.square().sum()) for W in weights.values())
        apart = sum(float((W - state[f"Z.{name}"]).square().sum()) for name, W in weights.items())
        shown = {name: float(state[name]) for name in ("dual", "rho", "ratio")}
        return {"primal": math.sqrt(apart / whole) if whole else 0.0} | shown

    def names(self, model: nn.Module) -> list[str]:
        """Return the full names of the layers whose filters are pulled."""
        groups = self.plan(model).groups
        layers = {member.layer for group in groups for member in group.side("out")}
        return [
            name for name in sorted(layers) if getattr(model.get_submodule(name), "weight", None) is not None
        ]

    def _project(self, groups: list[Noted], tensors: dict[str, Tensor]) -> State:
        """Return P_k of what stands for the parameters, as the state's Z."""
        Z = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for group in groups:
            gone = torch.ones(len(group.layers[0][1]), dtype=torch.bool)
            gone[largest(lengths(group, tensors), group.kept)] = False
            for layer, where in group.layers:
                for name in Z:
                    if name.rpartition(".")[0] == layer:
                        Z[name][where[gone.to(where.device)].flatten()] = 0
        return {f"Z.{name}": tensor for name, tensor in Z.items()}
