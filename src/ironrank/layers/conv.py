"""Factored convolutions in one, two and three dimensions, held as one matrix.

In the channel form the kernel (n, c, k_1, ..., k_d) is the matrix (n, m), m = c k_1 ... k_d. The layer acts as a
convolution of r filters (the rows of V^T, with the stride, padding and dilation of the layer) followed by a 1 x 1
convolution with U S.

In the spatial form, of two dimensions, the kernel (n, c, k_h, k_w) is the matrix (n k_w, c k_h). The layer acts as a
convolution of r filters k_h x 1 (the rows of V^T) followed by one of n filters 1 x k_w (the rows of U S, k_w by k_w);
stride, padding and dilation go to both, by axis. At equal parameters it is the faster one, and it keeps more ranks.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ironrank.layers.convolution import FactoredConvolution, Stage, filled
from ironrank.layers.forms import Shape


class _FactoredConv(FactoredConvolution):
    """Convolution whose kernel is held as a matrix, ``W = U S V^T``; arguments as in `FactoredConvolution`."""

    forms: ClassVar[tuple[str, ...]] = ("channel",)

    def stages(self, lanes: int = 1) -> list[Stage]:
        """Return the two thin convolutions that the layer acts by.

        Args:
            lanes: The rank is filled up with zeros to a multiple of this.

        Returns:
            The stages.
        """
        A, V = (filled(factor, lanes) for factor in self.merged())
        if self.form == "spatial":
            return self._spatial(A, V)
        first = V.mT.reshape(V.shape[1], *self.weight_shape[1:])
        return [Stage(first, self.stride, self.padding, self.dilation), self._pointwise(A)]

    def _spatial(self, A: Tensor, V: Tensor) -> list[Stage]:
        n, c, high, wide = self.weight_shape
        padding = (self.padding,) * 2 if isinstance(self.padding, str) else self.padding
        (up, left), (s, t), (d, e) = padding, self.stride, self.dilation
        down = Stage(
            V.mT.reshape(V.shape[1], c, high, 1), (s, 1), up if isinstance(up, str) else (up, 0), (d, 1)
        )
        kernel = A.reshape(n, wide, A.shape[1]).transpose(1, 2).unsqueeze(2)  # (n, r, 1, k_w)
        return [down, Stage(kernel, (1, t), left if isinstance(left, str) else (0, left), (1, e))]

    def _first_size(self, size: Shape, output: Shape) -> Shape:
        return (output[0], size[1]) if self.form == "spatial" else output


class FactoredConv1d(_FactoredConv):
    """Factored convolution in one dimension; arguments as in `FactoredConvolution`."""

    dims = 1


class FactoredConv2d(_FactoredConv):
    """Factored convolution in two dimensions; arguments as in `FactoredConvolution`.

    Example:
        >>> FactoredConv2d(8, 16, 3, rank=20, form="spatial").V.shape
        torch.Size([24, 20])
    """

    dims = 2
    forms = ("channel", "spatial")


class FactoredConv3d(_FactoredConv):
    """Factored convolution in three dimensions; arguments as in `FactoredConvolution`."""

    dims = 3
