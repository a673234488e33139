"""Low-rank targets of dense weights: what ADMM keeps beside a net, and how it pulls.

A state holds, for each layer by its full name, Z (the target), Y (the scaled dual), V (the input basis from which the
next Tucker-2 projection starts) and the rank, as a tensor: form, r_1, r_2. All have the plain layout that a file gives
back, so that a training that resumes multiplies the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.layers.forms import FORMS, Rank, from_matrix, to_matrix
from ironrank.linalg import Tucker2, hooi, low_rank, side_by_side
from ironrank.methods.base import State
from ironrank.ranks import Choice

_FORMS = ("dense", *FORMS)


def encoded(form: str, rank: Rank | None) -> Tensor:
    """Return a form and its rank as a tensor (3,) of integers; absent ranks are 0.

    Example:
        >>> encoded("tucker2", (8, 4)), decoded(encoded("tucker2", (8, 4)))
        (tensor([3, 8, 4]), ('tucker2', (8, 4)))
    """
    pair = rank if isinstance(rank, tuple) else (rank or 0, 0)
    return torch.tensor([_FORMS.index(form), *pair])


def decoded(code: Tensor) -> tuple[str, Rank | None]:
    """Return the form and the rank that `encoded` wrote."""
    kind, first, second = code.tolist()
    form = _FORMS[kind]
    return form, (first, second) if form == "tucker2" else first or None


def layers_of(model: nn.Module, state: State) -> list[str]:
    """Return the names of the layers that a state is about, in the order of the model."""
    return [name for name, _ in model.named_modules() if f"rank.{name}" in state]


def weights_of(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return the weights of layers by name, detached."""
    found: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    return {name: weight.detach() for name, weight in found.items()}


@torch.no_grad()
def nearest(
    W: Tensor, form: str, rank: Rank | None, start: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the projection of a weight on a form and rank.

    Matrix forms are projected exactly, by the smaller Gram matrix, which costs so little that a warm start would save
    nothing worth its error. Tucker-2 takes one HOOI sweep from the last basis, or two from HOSVD.

    Args:
        W: Weight (n, c, k_1, ..., k_d).
        form: "dense", "channel", "spatial" or "tucker2".
        rank: Its rank.
        start: Input basis V (c, r_2) of the last projection, of the same rank.

    Returns:
        A weight of the same shape, and the input basis for the next time (None but for Tucker-2).
    """
    if isinstance(rank, tuple):
        known = None if start is None else Tucker2(start, start, start)  # of a start only V is read
        factors = hooi(W, rank, known, sweeps=1 if known else 2)
        return factors.dense(), factors.V.contiguous()
    if rank is None:
        return W.clone(), None
    return from_matrix(low_rank(to_matrix(W, form), rank).dense(), tuple(W.shape), form).contiguous(), None


def closest(W: Tensor, form: str, rank: Rank | None, start: Tensor | None = None) -> Tensor:
    """Return the better of two projections, from the last basis and from none.

    One sweep from a basis that belongs to another weight may stay at a poor subspace; see `nearest` for the arguments.

    Returns:
        A weight of the same shape.
    """
    found = [nearest(W, form, rank)[0]]
    if start is not None:
        found.append(nearest(W, form, rank, start)[0])
    return min(found, key=lambda near: float((W - near).double().square().sum()))


def set_ranks(state: State, choice: Choice) -> None:
    """Write a choice into a state, in place; bases that no longer fit are dropped.

    Args:
        state: The state.
        choice: Form and rank of each layer.
    """
    for name, option in choice.by_name.items():
        new = encoded(option.form, option.rank)
        if not torch.equal(state.get(f"rank.{name}", new).cpu(), new):
            state.pop(f"V.{name}", None)
        state[f"rank.{name}"] = new
    state["ratio"] = torch.tensor(choice.ratio, dtype=torch.float64)


def set_targets(state: State, shifted: dict[str, Tensor]) -> None:
    """Set every Z to the projection of ``W + Y`` at the ranks of the state, all layers side by side, in place.

    Args:
        state: The state.
        shifted: ``W + Y`` by name.
    """

    def project(name: str) -> tuple[Tensor, Tensor | None]:
        return nearest(shifted[name], *decoded(state[f"rank.{name}"]), state.get(f"V.{name}"))

    names = sorted(shifted, key=lambda name: -shifted[name].numel())  # dearest first
    for name, (Z, V) in zip(names, side_by_side(project, names), strict=True):
        state[f"Z.{name}"] = Z
        if V is not None:
            state[f"V.{name}"] = V


def pulled(model: nn.Module, state: State) -> dict[str, Any]:
    """Return the layers with a target, by name; layers that stay dense have none."""
    return {
        name: model.get_submodule(name)
        for name in layers_of(model, state)
        if decoded(state[f"rank.{name}"])[0] != "dense"
    }


@torch.no_grad()
def pull(model: nn.Module, state: State) -> None:
    """Add ``rho (W - Z + Y)`` to the gradient of every weight that has one and a target.

    It is the gradient of `coupling`, without a graph to build and walk, and outside autocast.

    Args:
        model: The dense model, with gradients.
        state: The state.
    """
    rho = float(state["rho"])
    for name, layer in pulled(model, state).items():
        if layer.weight.grad is not None:
            gap = layer.weight - state[f"Z.{name}"] + state[f"Y.{name}"]
            layer.weight.grad.add_(gap, alpha=rho)


def coupling(model: nn.Module, state: State) -> Tensor:
    """Return the term of the loss that `pull` is the gradient of: ``rho/2 sum |W - Z + Y|^2``.

    Args:
        model: The dense model.
        state: The state.

    Returns:
        A scalar.
    """
    terms = [
        (layer.weight - state[f"Z.{name}"] + state[f"Y.{name}"]).square().sum()
        for name, layer in pulled(model, state).items()
    ]
    return 0.5 * float(state["rho"]) * sum(terms, torch.zeros(()))


@torch.no_grad()
def gap(model: nn.Module, state: State) -> float:
    """Return ``|W - Z| / |W|``, over all layers with a target; 0 where there is none."""
    between = whole = 0.0
    for name, layer in pulled(model, state).items():
        between += float((layer.weight - state[f"Z.{name}"]).double().square().sum())
        whole += float(layer.weight.double().square().sum())
    return math.sqrt(between / whole) if whole else 0.0
