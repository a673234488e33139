"""Factored linear layer."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers.factored import Factored
from ironrank.layers.forms import Shape


class FactoredLinear(Factored):
    """Linear layer whose weight is held as factors: ``y = U S V^T x + b``.

    Takes the arguments of `torch.nn.Linear` and, after the features, the rank.

    Args:
        in_features: m, size of each input.
        out_features: n, size of each output.
        rank: r, from 1 to min(n, m).
        bias: Whether to add a bias (n,).
        core: Whether there is a core S; without it the layer is ``U V^T``.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        IronrankError: If the rank is not between 1 and min(n, m).

    Example:
        >>> layer = FactoredLinear(8, 4, rank=2)
        >>> layer(torch.zeros(3, 8)).shape, layer.dense().shape
        (torch.Size([3, 4]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        core: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._hold(rank, core, bias, {"device": device, "dtype": dtype})

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, core: bool = True) -> Factored:
        """Return the factored layer nearest to a dense one (truncated SVD); another name of `from_dense`.

        Args:
            linear: The dense layer.
            rank: r, from 1 to min(n, m).
            core: Whether there is a core S.

        Returns:
            The factored layer, on the same device, of the same type and mode.
        """
        return cls.from_dense(linear, rank, core)

    @classmethod
    def _of_sizes(cls, dense: Any, rank: Any, core: bool, form: str, device: torch.device) -> Factored:
        if form != "channel":
            raise IronrankError(f"form={form!r} of a linear layer: allowed is channel")
        bias = dense.bias is not None
        return cls(dense.in_features, dense.out_features, rank, bias, core, device, dense.weight.dtype)

    @property
    def weight_shape(self) -> Shape:
        """(out_features, in_features)."""
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer in its cheapest form.

        Args:
            x: Inputs (..., in_features).

        Returns:
            Outputs (..., out_features).
        """
        rows, first = self.positions(tuple(x.shape))
        if self._dense_is_cheaper(rows, first):
            return F.linear(x, self.matrix(), self.bias)
        hidden = F.linear(x, self.V.mT)
        if self.S is not None and self._kept is None and rows < self.out_features:
            # the core acts on fewer rows as a layer than as part of U S
            return F.linear(F.linear(hidden, self.S), self.U, self.bias)
        return F.linear(hidden, self.merged().U, self.bias)

    def positions(self, shape: Shape) -> tuple[int, int]:
        """Return the number of input rows, twice: both factors act on each."""
        rows = math.prod(shape) // max(1, self.in_features)
        return rows, rows

    @torch.no_grad()
    def deploy(self, dense: bool | None = None) -> nn.Module:
        """Return plain torch layers of the same function.

        Args:
            dense: True for one dense layer, False for two thin ones, None for the smaller.

        Returns:
            A `Linear`, or a `Sequential` of two.
        """
        dense = self.deploys_dense if dense is None else dense
        A, V = self.merged()
        where = {"device": self.U.device, "dtype": self.U.dtype}
        last = nn.Linear(
            self.in_features if dense else A.shape[1], self.out_features, self.bias is not None, **where
        )
        last.weight.copy_(self.matrix() if dense else A)
        if self.bias is not None:
            last.bias.copy_(self.bias)
        if dense:
            return last.train(self.training)
        first = nn.Linear(self.in_features, A.shape[1], bias=False, **where)
        first.weight.copy_(V.mT)
        return nn.Sequential(first, last).train(self.training)

    def extra_repr(self) -> str:
        """Sizes and rank, for ``print(model)``."""
        form = "" if self.S is not None else ", core=False"
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, bias={bias}{form}"
