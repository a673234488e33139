"""What the data says about a layer's directions: second moments of its inputs, and how much the loss feels its weight.

Whitening. A layer sees columns x (the patches of a convolution) with second moment ``C = E[x x^T]``, and a changed
weight changes its output by ``E|D x|^2 = tr(D C D^T) = |D L|_F^2`` for any ``L L^T = C``. So errors are measured,
and weights are projected, in that metric: on ``W L``, then times ``L^{-1}``. For the channel form, and for linear
layers, this is exact. The spatial and the Tucker-2 form mix positions in their factors: there L is made from the
mean moment of vertical strips, and of single channel vectors, as if different positions were uncorrelated.

Sensitivity. To second order, near a minimum, a change D of a weight raises the loss by about ``sum F_ij D_ij^2 /
2``, with F the diagonal of the Fisher matrix, the mean squared gradient of a single example. In its place stands the
squared gradient of a batch, which is in proportion to F where the mean gradient is small against its noise. One number
for each layer, the mean over its entries, multiplies its errors. Where both are given it is divided by the mean
square of the layer's inputs: a weight's gradient is that of the output times the input, so F holds the inputs too,
and they would count twice.

    C (c K, c K)     in the order of ``weight.flatten(1)``; summed in float64 from products of float64 columns
    L                lower triangular, of C plus a ridge of 1e-6 times its mean diagonal

Source: whitening as in Wang et al., "SVD-LLM", 2024, after Yuan et al., "ASVD", 2023; squared gradients as weights
as in Hsu et al., "Language model compression with weighted low-rank factorization", 2022, there for each row, here
for each layer. Using the gradient of an adversarial loss, and both for a choice under one budget, is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.attacks.base import evaluation_mode
from ironrank.errors import IronrankError
from ironrank.layers.forms import Rank, from_matrix, to_matrix
from ironrank.linalg.precision import full_precision
from ironrank.linalg.projection import low_rank
from ironrank.linalg.tucker import hooi
from ironrank.ranks.cost import call, input_of

_RIDGE = 1e-6


class Root:
    """A square root L of a second moment, and the change of metric of a weight that it makes.

    Args:
        C: Second moment of what the form's first factor acts on.
        form: "channel", "spatial" or "tucker2".
    """

    def __init__(self, C: Tensor, form: str) -> None:
        ridge = _RIDGE * C.diagonal().mean().clamp(min=torch.finfo(C.dtype).tiny)
        self.L, self.form = (
            torch.linalg.cholesky(C + ridge * torch.eye(len(C), dtype=C.dtype, device=C.device)),
            form,
        )

    def tilt(self, weight: Tensor) -> Tensor:
        """Return a weight in the metric: ``W L``, in float64, in the shape of the weight."""
        return self._on_matrix(weight, lambda W: W @ self.L.to(W.device))

    def untilt(self, weight: Tensor) -> Tensor:
        """Return the weight of a tilted one: ``W L^{-1}``."""
        return self._on_matrix(
            weight, lambda W: torch.linalg.solve_triangular(self.L.to(W.device), W, upper=False, left=False)
        )

    def _on_matrix(self, weight: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        W = weight.detach().double()
        if self.form == "tucker2":
            return change(W.transpose(1, -1)).transpose(1, -1)
        return from_matrix(change(to_matrix(W, self.form)), tuple(weight.shape), self.form)


class Moments:
    """Second moments of a layer's inputs, and their roots by form.

    Args:
        C: ``E[x x^T]`` (c K, c K) of the columns of its matrix, float64.
        kernel: Kernel size, () for a linear layer.
    """

    def __init__(self, C: Tensor, kernel: tuple[int, ...]) -> None:
        self.C, self.kernel = C, kernel
        self._roots: dict[str, Root] = {}

    @property
    def power(self) -> float:
        """Mean square of an input: the mean diagonal of C."""
        return float(self.C.diagonal().mean())

    def energy(self, weight: Tensor) -> float:
        """Return the mean squared norm of the output of a weight (n, c, k_1, ..., k_d): ``tr(W C W^T)``."""
        W = weight.detach().double().flatten(1)
        return float((W @ self.C.to(W.device) * W).sum())

    def __getitem__(self, form: str) -> Root:
        """Return the root for a form, made when it is first asked for."""
        if form not in self._roots:
            self._roots[form] = Root(self.reduced(form), form)
        return self._roots[form]

    def reduced(self, form: str) -> Tensor:
        """Return the second moment of what the first factor of a form acts on.

        Args:
            form: "channel" for whole columns, "spatial" for vertical strips, "tucker2" for channel vectors.

        Returns:
            C, or its mean over the positions that the form does not see together.
        """
        if form == "channel":
            return self.C
        c = len(self.C) // math.prod(self.kernel)
        if form == "tucker2":
            blocks = self.C.reshape(c, -1, c, math.prod(self.kernel))
            return torch.einsum("akbk->ab", blocks) / math.prod(self.kernel)
        kh, kw = self.kernel
        strips = torch.einsum("aijbkj->aibk", self.C.reshape(c, kh, kw, c, kh, kw)) / kw
        return strips.reshape(c * kh, c * kh)


def patches(layer: Any, x: Tensor) -> Tensor:
    """Return the columns that a layer's matrix acts on.

    Args:
        layer: A dense linear or convolution layer.
        x: Its input.

    Returns:
        Columns (c K, p), p positions in all.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).mT
    dims = layer.weight.ndim - 2
    x = x if x.dim() == dims + 2 else x.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    form = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    spans = [[slice(o * d, s - (k - 1 - o) * d, t) for o in range(k)] for s, k, t, d in form]
    shifted = [x[(slice(None), slice(None), *window)] for window in itertools.product(*spans)]
    return torch.stack(shifted, 2).flatten(3).permute(1, 2, 0, 3).flatten(0, 1).flatten(1)


@full_precision
@torch.no_grad()
def second_moments(model: nn.Module, names: Iterable[str], batches: Iterable[Any]) -> dict[str, Moments]:
    """Return the second moments of the inputs of layers over batches, the model in evaluation mode.

    Takes ``(c K)^2`` numbers of 8 bytes for each layer: 170 MB for 512 channels in and a 3 x 3 kernel.

    Args:
        model: The model.
        names: Full names of dense linear and convolution layers.
        batches: Inputs of the model, or pairs whose first is the input.

    Returns:
        Moments by name.

    Raises:
        IronrankError: If there was no batch, or a layer was never called.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1))
        >>> second_moments(net, ["0"], [torch.eye(2)])["0"].C
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, layer: Any, x: Tensor) -> None:
        columns = patches(layer, x.detach().double())
        sums[name] = columns @ columns.mT + sums.get(name, 0)
        counts[name] += columns.shape[1]

    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, named, name=name: add(name, layer, input_of(args, named)), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            call(model, x.to(next(model.parameters()).device) if isinstance(x, Tensor) else x)
    finally:
        for hook in hooks:
            hook.remove()
    if silent := [name for name in layers if name not in sums]:
        raise IronrankError(
            f"no input of layer '{silent[0]}' was seen: give at least one batch, and exclude layers never called"
        )
    return {name: Moments(C / counts[name], tuple(layers[name].weight.shape[2:])) for name, C in sums.items()}


def sensitivity(
    model: nn.Module,
    names: Iterable[str],
    objective: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    seed: int = 0,
) -> dict[str, float]:
    """Return how much the loss feels each layer's weight: its mean squared gradient, over batches.

    Args:
        model: The model; it is put in evaluation mode meanwhile, and no gradient is left behind.
        names: Full names of dense layers.
        objective: An objective such as `Madry`, called as ``objective(model, x, y, generator=...)``.
        batches: Pairs of inputs and labels.
        seed: Seed of the attack's noise.

    Returns:
        A factor for each layer; their mean is 1.

    Raises:
        IronrankError: If there was no batch, or the loss does not depend on any of the layers.
    """
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    totals = dict.fromkeys(weights, 0.0)
    still = [weight for weight in weights.values() if not weight.requires_grad]
    try:
        for weight in still:
            weight.requires_grad_(True)
        with evaluation_mode(model):
            for squares in _squared_gradients(model, weights, objective, batches, seed):
                totals = {name: totals[name] + square for name, square in squares.items()}
    finally:
        for weight in still:
            weight.requires_grad_(False)
    mean = sum(totals.values()) / max(len(totals), 1)
    if not 0 < mean < math.inf:
        raise IronrankError(
            "sensitivity: the loss has no finite, nonzero gradient in these layers; give other batches"
        )
    return {name: total / mean for name, total in totals.items()}


def _squared_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    objective: Callable[..., Tensor],
    batches: Iterable[Any],
    seed: int,
) -> Iterator[dict[str, float]]:
    device = next(model.parameters()).device
    for number, (x, y) in enumerate(batches):
        noise = torch.Generator().manual_seed(seed + number)
        with torch.enable_grad():
            loss = objective(model, x.to(device), y.to(device), generator=noise)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        yield {
            name: 0.0 if g is None else g.double().square().mean().item()
            for name, g in zip(weights, gradients, strict=True)
        }


@torch.no_grad()
def project(
    weight: Tensor, form: str, rank: Rank | None, root: Root | None = None, sweeps: int = 2
) -> Tensor:
    """Return the nearest weight of a form and rank, in the metric of the data where a root is given.

    Args:
        weight: Weight (n, c, k_1, ..., k_d).
        form: "channel", "spatial", "tucker2", or "dense" for the weight itself.
        rank: Its rank.
        root: Square root of the second moment for this form.
        sweeps: HOOI sweeps of a Tucker-2 form.

    Returns:
        A weight of the same shape and type.
    """
    if form == "dense":
        return weight.detach().clone()
    tilted = weight.detach() if root is None else root.tilt(weight)
    if isinstance(rank, tuple):
        near = hooi(tilted, rank, sweeps=sweeps).dense()
    else:
        assert rank is not None
        near = from_matrix(low_rank(to_matrix(tilted, form), rank).dense(), tuple(weight.shape), form)
    return (near if root is None else root.untilt(near)).to(weight.dtype)
