r"""Averaged weights: an exponential mean over the steps, which is what is judged and saved.

    (1)  mean <- d_t mean + (1 - d_t) weights,   d_t = min(decay, (1 + t) / (10 + t)),   t steps taken before this one

Early in training d_t is small, so that the mean does not hang on to the initial weights. Running statistics of batch
norms are averaged like weights: to first order they are the statistics of the averaged weights, while copied ones
would belong to the latest. Counters are copied.

A mean of orthonormal bases has columns shorter than one, and a mean of cores may leave a method's constraint set. So
the averaged model is brought back before it is judged: QR of both bases, what they lose goes into the core, which
changes no output, and then `Method.init`, which enters the constraint set.

The factors are averaged one by one, not the weights that they stand for: that costs r (n + m) and not n m, and is
the same to first order as long as a method moves its bases without turning them (the steps of CondLR are horizontal).
A method that turns bases, or changes their rank, replaces them as a whole (`Factored.set_factors`); the means of such
factors are no mean of the weights. From the first time on the mean of such a layer is that of its weight, n m numbers,
and what is judged is the nearest layer of the present rank. Without a core, factors of another shape start anew.

Source of the warm-up: the moving averages of TensorFlow (``num_updates``).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.methods import Method
from ironrank.surgery import layers_with_core


class Average:
    """The exponential mean of a model's weights and buffers.

    Args:
        model: The model at the start.
        decay: Largest d_t, in (0, 1).
        tensors: The mean so far, from a checkpoint.
    """

    def __init__(self, model: nn.Module, decay: float, tensors: dict[str, Tensor] | None = None) -> None:
        self.decay = decay
        self.tensors = tensors or {key: value.detach().clone() for key, value in model.state_dict().items()}
        whole = {name for name, _ in layers_with_core(model) if _weight(name) in self.tensors}
        self._seen = {name: layer.replaced for name, layer in layers_with_core(model) if name not in whole}

    @torch.no_grad()
    def update(self, model: nn.Module, t: int) -> None:
        """Take in the weights after a step: equation (1).

        Args:
            model: The model.
            t: Number of the step, from 0.
        """
        new, now = 1 - decay_at(self.decay, t), model.state_dict()
        for name, layer in layers_with_core(model):
            if layer.replaced != self._seen.get(name):
                self._make_whole(name, layer)
                now = {key: value for key, value in now.items() if key not in _factors(name)}
                now[_weight(name)] = layer.dense()
        self.tensors = {key: _mean(self.tensors.get(key), value, new) for key, value in now.items()}

    def _make_whole(self, name: str, layer: Any) -> None:
        """From now on keep the mean of a layer's weight, unless that is done already."""
        if _weight(name) in self.tensors:
            return
        U, S, V = (self.tensors[key] for key in _factors(name))
        twin = copy.deepcopy(layer)
        twin.set_factors(type(layer.factors())(U, S, V))
        self.tensors[_weight(name)] = twin.dense().detach().contiguous()

    @torch.no_grad()
    def model(self, model: nn.Module, method: Method) -> nn.Module:
        """Return a copy of the model at the averaged weights, inside the method's constraint set.

        Args:
            model: The model, left as it is.
            method: Its method.

        Returns:
            The copy.
        """
        averaged, means = copy.deepcopy(model), dict(self.tensors)
        layers = layers_with_core(averaged)
        for name, layer in layers:
            if (weight := means.pop(_weight(name), None)) is not None:
                layer.set_weight(weight)
        averaged.load_state_dict(averaged.state_dict() | means)
        for _, layer in layers:
            layer.orthonormalize()
        if layers:
            method.init(averaged)
        return averaged


def decay_at(decay: float, t: int) -> float:
    """Return d_t of equation (1).

    Args:
        decay: Its limit.
        t: Number of the step, from 0.

    Returns:
        The share of the old mean that is kept.

    Example:
        >>> decay_at(0.999, 0), decay_at(0.999, 90), decay_at(0.5, 90)
        (0.1, 0.91, 0.5)
    """
    return min(decay, (1 + t) / (10 + t))


def _mean(old: Tensor | None, value: Tensor, new: float) -> Tensor:
    if old is None or old.shape != value.shape or not value.is_floating_point():
        return value.detach().clone()
    return old.lerp_(value, new)


def _factors(name: str) -> list[str]:
    return [f"{name}.{factor}" for factor in "USV"]


def _weight(name: str) -> str:
    return f"{name}.weight"
