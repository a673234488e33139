"""Scores: which filters stay is learned by gradient descent on the loss itself, the weights standing still.

A trained net has a score for each filter. For a number of steps only the filters of largest score are read, the loss
is that of the objective, under attack where that is one, and the scores move along its gradient; then the others are
removed for good and the weights are trained on. A filter that looks small but holds the net up against attacks stays.

After Sehwag, Wang, Mittal, Jana, "HYDRA: Pruning adversarially robust neural networks", NeurIPS 2020, which scores each
weight; the scores of filters are ours.

    symbol    name here              shape
    s         state "score.<g>"      (n,), one for each filter of a group
    m         1 for the k largest    (n,)
    W         weights that read      columns of the layers behind the group, see `ironrank.surgery.filters`
    v         state "speed.<g>"      (n,), momentum

    (1)  m_i = 1 if s_i is one of the k largest of its group, else 0
    (2)  the net is taken at the columns  m_i W_i ; a filter that nobody reads is as good as removed
    (3)  g_i = sum over readers <dL/d(m_i W_i), W_i> = dL/dm_i             straight-through: used as dL/ds_i
    (4)  v <- momentum v + g ,  s <- s - rate v
    (5)  after ``steps`` steps: all but the k filters of largest score are removed; the optimizer moves the weights

Scores start at the norm of each filter over the largest of its group, as HYDRA starts at scaled magnitudes. The mask is
on what reads and not on what makes a channel: there the gradient of a filter that is off is alive, and batch norm does
not rescale the mask away. Shortcuts without weights pass no channel that is off, and no gradient on to its score.

When not to use it: where ``steps`` cannot be many; scores then hardly leave the norms, which magnitude has for free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.methods.base import Backward, State
from ironrank.methods.filter_state import Noted, note, noted
from ironrank.methods.filters import FilterPruning, columns, largest, norms
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Scores(FilterPruning):
    """Learn which filters stay, then fine-tune.

    Attributes:
        steps: Steps that train the scores; the weights stand still meanwhile.
        rate: Learning rate of the scores.
        momentum: Their momentum.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> method = Scores(budget="params=2x")
        >>> method.finish(net, method.init(net))[0]
        Linear(in_features=8, out_features=3, bias=True)
    """

    name: ClassVar[str] = "scores"
    begins: ClassVar[str] = "trained"
    gentle: ClassVar[bool] = True
    steps: int = setting(
        1000, "steps that train the scores, before the weights", ge=0, paper="20 of 120 epochs"
    )
    rate: float = setting(0.1, "learning rate of the scores", gt=0, paper="0.1")
    momentum: float = setting(0.9, "momentum of the scores", ge=0, lt=1, paper="0.9")

    def paces(self, steps: int) -> dict[str, int]:
        """Return half of the steps for the scores; see `Method.paces`."""
        return {"steps": steps // 2}

    def init(self, model: nn.Module) -> State:
        """Start the scores at the norms of the filters.

        Args:
            model: The dense model.

        Returns:
            Scores, their momentum, the groups, and whether filters are removed yet.
        """
        plan = self.plan(model)
        state = note(plan, "in")
        for group in plan.groups:
            if f"kept.{group.name}" in state:
                size = norms(model, group)
                state[f"score.{group.name}"] = size / size.max().clamp_min(torch.finfo(size.dtype).tiny)
                state[f"speed.{group.name}"] = torch.zeros_like(size)
        state["removed"] = torch.tensor(0)
        device = next(model.parameters()).device
        return {name: tensor.to(device) for name, tensor in state.items()}

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of this file for the equations.

        Args:
            model: The model, whole until ``steps`` are taken.
            optimizer: Any torch optimizer of its parameters.
            state: From `init`, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step, of the net with the filters that are on.
        """
        if not state["removed"] and t >= self.steps:
            self._remove(model, state)
            state["removed"] = torch.ones_like(state["removed"])
        if state["removed"]:
            return super().step(model, optimizer, state, backward, t)
        groups = noted(state, "in")
        with _masked(model, groups, state) as weights:  # (1), (2)
            loss = backward()
        with torch.no_grad():
            for group in groups:
                slope = _slope(model, group, weights)  # (3)
                speed = state[f"speed.{group.name}"].mul_(self.momentum).add_(slope)
                state[f"score.{group.name}"].sub_(speed, alpha=self.rate)  # (4)
        return loss

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Remove the filters that are off, where the training ended before that.

        Args:
            model: The model, changed in place.
            state: From `init`.

        Returns:
            The same model, within the budget.
        """
        return model if state["removed"] else self._remove(model, state)

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return whether filters are removed yet.

        Args:
            model: The model.
            state: From `init`.

        Returns:
            ``removed``, 0 or 1; ``ratio``, how many times smaller the net becomes.
        """
        return {name: float(state[name]) for name in ("removed", "ratio")}

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Refuse; see `Method.attach`."""
        raise IronrankError("scores cannot be attached: it removes filters during the training; use train")

    def _remove(self, model: nn.Module, state: State) -> nn.Module:  # (5)
        scores = {group.name: state[f"score.{group.name}"] for group in noted(state, "in")}
        return self.cut(model, self.plan(model), scores)


@contextmanager
def _masked(model: nn.Module, groups: list[Noted], state: State) -> Iterator[dict[str, Tensor]]:
    """Let nobody read the filters that are off, while this lasts.

    Args:
        model: The model.
        groups: The groups, with what reads them.
        state: The scores.

    Yields:
        The weights of the readers as they are, by layer.
    """
    layers: dict[str, Any] = {
        layer: model.get_submodule(layer) for group in groups for layer, _ in group.layers
    }
    held = {name: layer.weight.detach().clone() for name, layer in layers.items() if _has_weight(layer)}
    sources = {name: layer.source for name, layer in layers.items() if not _has_weight(layer)}
    try:
        for group in groups:
            score = state[f"score.{group.name}"]
            off = torch.ones(len(score), dtype=torch.bool, device=score.device)
            off[largest(score, group.kept)] = False
            for name, where in group.layers:
                _mute(layers[name], where[off].flatten())
        yield held
    finally:
        for name, weight in held.items():
            layers[name].weight.data.copy_(weight)
        for name, source in sources.items():
            layers[name].set_width([layers[name].inputs, *source])


def _has_weight(layer: nn.Module) -> bool:
    return getattr(layer, "weight", None) is not None


@torch.no_grad()
def _mute(layer: Any, channels: Tensor) -> None:
    if _has_weight(layer):
        layer.weight[:, channels] = 0
    else:
        off = set(channels.tolist())
        layer.set_width([layer.inputs, *(-1 if j in off else j for j in layer.source)])


def _slope(model: nn.Module, group: Noted, weights: dict[str, Tensor]) -> Tensor:
    """Return dL/dm (n,) from the gradients at the masked weights: equation (3)."""
    total = torch.zeros((), dtype=torch.float64, device=group.layers[0][1].device)
    for name, where in group.layers:
        if name in weights:
            reader: Any = model.get_submodule(name)
            if reader.weight.grad is not None:
                total = total + (columns(reader.weight.grad, where) * columns(weights[name], where)).sum(1)
    return total
