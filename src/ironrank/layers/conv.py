"""Factored convolutions in one, two and three dimensions.

The kernel (n, c, k_1, ..., k_d) is held as the matrix (n, m), m = c k_1 ... k_d. The layer acts as a convolution of
r filters (the rows of V^T, with the stride, padding and dilation of the layer) followed by a 1 x 1
convolution with U S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers.factored import Factored

Size = int | tuple[int, ...]
_DENSE: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Convolution kernels work on this many channels at a time; a rank between two multiples is filled up with zeros, which
# changes no value and is up to three times faster (25 filters of 5 x 5 on AVX2: 8.3 ms a forward, 24: 2.6, 32: 3.4).
_LANES = 8
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class _FactoredConv(Factored):
    """Convolution whose kernel is held as factors, ``W = U S V^T``.

    Takes the arguments of the dense torch layer, with the rank after the kernel size.

    Args:
        in_channels: c.
        out_channels: n.
        kernel_size: (k_1, ..., k_d), or one number for all.
        rank: r, from 1 to min(n, m).
        stride: Stride.
        padding: Padding, or "same" or "valid".
        dilation: Dilation.
        groups: Only 1: each group of a grouped convolution has a matrix of its own, which one factorization of the
            whole kernel would mix.
        bias: Whether to add a bias (n,).
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        core: Whether there is a core S.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        IronrankError: If the rank is not between 1 and min(n, m), or groups is not 1.
    """

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        rank: int,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        core: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise IronrankError(
                f"groups={groups}: a factored convolution needs groups=1; leave this layer dense"
            )
        # The dense twin on no device checks the arguments and keeps torch's own form of each.
        twin = _DENSE[self.dims](in_channels, out_channels, kernel_size, stride, padding, dilation,
                                 bias=False, padding_mode=padding_mode, device="meta")  # fmt: skip
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = twin.kernel_size, twin.stride, twin.dilation
        self.padding, self.padding_mode = twin.padding, padding_mode
        self._pad = twin._reversed_padding_repeated_twice
        m = in_channels * math.prod(self.kernel_size)
        self._hold(out_channels, m, rank, core, bias, {"device": device, "dtype": dtype})

    @classmethod
    def from_conv(cls, conv: Any, rank: int, core: bool = True) -> _FactoredConv:
        """Return the factored layer nearest to a dense one (truncated SVD); the bias is copied.

        Args:
            conv: The dense convolution of as many dimensions, with groups=1.
            rank: r, from 1 to min(n, m).
            core: Whether there is a core S.

        Returns:
            The factored layer, on the same device, of the same type and mode.
        """
        layer = cls.like(conv, rank, core, fresh=False)
        layer.set_weight(conv.weight)
        if layer.bias is not None:
            layer.bias.data.copy_(conv.bias.data)
        return layer

    @classmethod
    def like(cls, conv: Any, rank: int, core: bool = True, fresh: bool = True) -> _FactoredConv:
        """Return a factored layer with the sizes, device, type and mode of a dense one.

        Args:
            conv: The dense convolution.
            rank: r.
            core: Whether there is a core S.
            fresh: Whether to draw its weights; without, they are what the memory holds.

        Returns:
            The factored layer.
        """
        device = conv.weight.device if fresh else torch.device("meta")
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, rank, conv.stride, conv.padding,
                    conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, core,
                    device, conv.weight.dtype)  # fmt: skip
        layer = layer if fresh else layer.to_empty(device=conv.weight.device)
        return layer.train(conv.training)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out_channels, in_channels, k_1, ..., k_d)."""
        return self.out_channels, self.in_channels, *self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer in its cheapest form.

        Args:
            x: Inputs (b, in_channels, ...), or without the batch dimension.

        Returns:
            Outputs (b, out_channels, ...).
        """
        if self._dense_is_cheaper(self._positions(x)):
            return self._convolve(x, self._like(x, self.dense()), self.bias)
        A, V = self.merged()
        if spare := -self.rank % _LANES:
            A, V = F.pad(A, (0, spare)), F.pad(V, (0, spare))
        hidden = self._convolve(x, self._like(x, V.mT.reshape(V.shape[1], *self.weight_shape[1:])), None)
        return _CONV[self.dims](hidden, A.reshape(*A.shape, *[1] * self.dims), self.bias)

    def _like(self, x: Tensor, kernel: Tensor) -> Tensor:
        # Where the layout of the images is ambiguous, as for one channel, torch follows that of the kernel; `to`
        # sets the strides even then, which `contiguous` does not.
        if self.dims == 2 and x.is_contiguous(memory_format=torch.channels_last):
            return kernel.to(memory_format=torch.channels_last)
        return kernel

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pad, mode=self.padding_mode), 0
        return _CONV[self.dims](x, kernel, bias, self.stride, padding, self.dilation)

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial size of the output for the spatial size of an input."""
        if self.padding == "same":
            return size
        padding = (0,) * self.dims if self.padding == "valid" else self.padding
        form = zip(size, self.kernel_size, self.stride, padding, self.dilation, strict=True)
        return tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in form)

    def _positions(self, x: Tensor) -> int:
        batch = x.shape[0] if x.dim() == self.dims + 2 else 1
        return batch * math.prod(self.output_size(tuple(x.shape[-self.dims :])))

    @torch.no_grad()
    def deploy(self, dense: bool | None = None) -> nn.Module:
        """Return plain torch layers of the same function.

        Args:
            dense: True for one dense convolution, False for two thin ones, None for the smaller.

        Returns:
            A convolution, or a `Sequential` of two.
        """
        where = {"device": self.U.device, "dtype": self.U.dtype}
        conv, geometry = _DENSE[self.dims], (self.kernel_size, self.stride, self.padding, self.dilation)
        if self.deploys_dense if dense is None else dense:
            only = conv(self.in_channels, self.out_channels, *geometry, bias=self.bias is not None,
                         padding_mode=self.padding_mode, **where)  # fmt: skip
            only.weight.copy_(self.dense())
            _copy_bias(self, only)
            return only.train(self.training)
        A, V = self.merged()
        first = conv(
            self.in_channels, self.rank, *geometry, bias=False, padding_mode=self.padding_mode, **where
        )
        first.weight.copy_(V.mT.reshape(first.weight.shape))
        last = conv(self.rank, self.out_channels, 1, bias=self.bias is not None, **where)
        last.weight.copy_(A.reshape(last.weight.shape))
        _copy_bias(self, last)
        return nn.Sequential(first, last).train(self.training)

    def extra_repr(self) -> str:
        """Sizes, geometry and rank, for ``print(model)``."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"
        text += f", stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        text += "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode}"
        text += "" if self.bias is not None else ", bias=False"
        return text + ("" if self.S is not None else ", core=False")


def _copy_bias(source: Factored, target: Any) -> None:
    if source.bias is not None:
        target.bias.copy_(source.bias)


class FactoredConv1d(_FactoredConv):
    """Factored convolution in one dimension; arguments as in `_FactoredConv`."""

    dims = 1


class FactoredConv2d(_FactoredConv):
    """Factored convolution in two dimensions; arguments as in `_FactoredConv`."""

    dims = 2


class FactoredConv3d(_FactoredConv):
    """Factored convolution in three dimensions; arguments as in `_FactoredConv`."""

    dims = 3
