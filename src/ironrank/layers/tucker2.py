"""Tucker-2 convolutions in one, two and three dimensions.

The kernel (n, c, k_1, ..., k_d) is held as a basis U (n, r1) of its output channels, a basis V (c, r2) of its input
channels and a core S (r1, r2, k_1, ..., k_d). The layer acts as a 1 x 1 convolution with V^T, at the positions of the
input, then the convolution with S, which has the stride, padding and dilation, then a 1 x 1 convolution with U.

Source: Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications",
2016.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers.convolution import FactoredConvolution, Stage, filled
from ironrank.layers.forms import Rank, Shape
from ironrank.linalg import Tucker2, check_ranks, hooi
from ironrank.linalg.precision import thin_qr


class _Tucker2Conv(FactoredConvolution):
    """Convolution whose kernel is held in Tucker-2 form; arguments as in `FactoredConvolution`, rank is (r1, r2)."""

    form = "tucker2"
    forms = ("tucker2",)

    def _hold(self, rank: Any, core: bool, bias: bool, where: dict) -> None:
        if not core:
            raise IronrankError("core=False: a Tucker-2 layer always has a core")
        super()._hold(rank, core, bias, where)

    def _shapes(self, rank: Any) -> dict[str, Shape]:
        if not (isinstance(rank, tuple) and len(rank) == 2):
            raise IronrankError(f"rank {rank} of a Tucker-2 layer: expected a pair (r1, r2)")
        n, c, *size = self.weight_shape
        check_ranks(self.weight_shape, rank)
        return {"U": (n, rank[0]), "V": (c, rank[1]), "S": (*rank, *size)}

    @property
    def rank(self) -> Rank:
        """The pair (r1, r2)."""
        return self.U.shape[1], self.V.shape[1]

    def factors(self) -> Tucker2:
        """Return U, S and V as they are."""
        return Tucker2(self.U, self._core, self.V)

    def matrix(self) -> Tensor:
        """Return the unfolding by output channels (n, c K), of which U spans the columns."""
        return self.dense().flatten(1)

    def dense(self) -> Tensor:
        """Return the kernel that the layer stands for (n, c, k_1, ..., k_d)."""
        return self._once("dense", lambda: self.factors().dense())

    def unfoldings(self) -> tuple[Tensor, Tensor]:
        """Return the core as seen from U and from V: ``S_(1)`` (r1, r2 K) and ``S_(2)`` (r2, r1 K)."""
        return self._core.flatten(1), self._core.transpose(0, 1).flatten(1)

    @property
    def _core(self) -> nn.Parameter:
        assert self.S is not None
        return self.S

    def _rank_of(self, factors: Any) -> Rank:
        return factors.U.shape[-1], factors.V.shape[-1]

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Set the factors to the Tucker-2 approximation of a dense kernel (`hooi`, two sweeps), at the layer's ranks.

        Args:
            weight: Dense kernel (n, c, k_1, ..., k_d).
        """
        assert isinstance(self.rank, tuple)
        self.set_factors(hooi(weight.detach(), self.rank))

    @torch.no_grad()
    def orthonormalize(self) -> None:
        """Bring U and V to orthonormal columns and what they lose into the core; the function stays the same."""
        (Q, R), (P, T) = (thin_qr(basis) for basis in (self.U, self.V))
        self.set_factors(Tucker2(Q, Tucker2(R, self._core.to(R), T).dense(), P))

    def stages(self, lanes: int = 1) -> list[Stage]:
        """Return the three thin convolutions that the layer acts by.

        Args:
            lanes: Both ranks are filled up with zeros to a multiple of this.

        Returns:
            The stages.
        """
        U, V = filled(self.U, lanes), filled(self.V, lanes)
        core: Tensor = self._core
        spare = [0, V.shape[1] - core.shape[1], 0, U.shape[1] - core.shape[0]]
        core = F.pad(core, [0, 0] * self.dims + spare) if any(spare) else core
        inner = Stage(core, self.stride, self.padding, self.dilation)
        return [self._pointwise(V.mT), inner, self._pointwise(U)]

    def _first_size(self, size: Shape, output: Shape) -> Shape:
        return size

    def _hidden(self, p: int, q: int) -> int:
        return p * self.U.shape[1] + q * self.V.shape[1]

    def _macs_to_build(self) -> int:
        (r1, r2), (n, c, *size) = self._core.shape[:2], self.weight_shape
        return math.prod(size) * c * r1 * (r2 + n)


class Tucker2Conv1d(_Tucker2Conv):
    """Tucker-2 convolution in one dimension; arguments as in `FactoredConvolution`, the rank is (r1, r2)."""

    dims = 1


class Tucker2Conv2d(_Tucker2Conv):
    """Tucker-2 convolution in two dimensions; arguments as in `FactoredConvolution`, the rank is (r1, r2).

    Example:
        >>> layer = Tucker2Conv2d(8, 16, 3, rank=(6, 4), padding=1)
        >>> layer(torch.zeros(2, 8, 5, 5)).shape, layer.rank
        (torch.Size([2, 16, 5, 5]), (6, 4))
    """

    dims = 2


class Tucker2Conv3d(_Tucker2Conv):
    """Tucker-2 convolution in three dimensions; arguments as in `FactoredConvolution`, the rank is (r1, r2)."""

    dims = 3
