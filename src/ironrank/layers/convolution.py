"""What factored convolutions share: the geometry of the dense layer, and how a chain of thin convolutions acts.

Each form is a chain of plain convolutions, its stages. Stride, padding and dilation belong to the stage whose kernel
spans that axis, and all but the last have no bias. A 1 x 1 stage before a padded one may act on the image without
padding, since without bias it commutes with every padding mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers.factored import Factored
from ironrank.layers.forms import Shape

Size = int | tuple[int, ...]
DENSE: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Convolution kernels work on this many channels at a time; a rank between two multiples is filled up with zeros, which
# changes no value and is up to three times faster (25 filters of 5 x 5 on AVX2: 8.3 ms a forward, 24: 2.6, 32: 3.4).
_LANES = 8
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Stage(NamedTuple):
    """One plain convolution: its kernel and geometry."""

    kernel: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]


class FactoredConvolution(Factored):
    """Convolution whose kernel is held as factors. Sub-classes say which stages it acts by.

    Takes the arguments of the dense torch layer, with the rank after the kernel size.

    Args:
        in_channels: c.
        out_channels: n.
        kernel_size: (k_1, ..., k_d), or one number for all.
        rank: r, from 1 to the full rank; (r1, r2) for Tucker-2.
        stride: Stride.
        padding: Padding, or "same" or "valid".
        dilation: Dilation.
        groups: Only 1: each group of a grouped convolution has a weight of its own, which one factorization of the
            whole kernel would mix.
        bias: Whether to add a bias (n,).
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        core: Whether there is a core S.
        device: Device of the parameters.
        dtype: Type of the parameters.
        form: "channel" or, in two dimensions, "spatial"; "tucker2" for the Tucker-2 layers.

    Raises:
        IronrankError: If the rank is not possible, groups is not 1, or the layer has not that form.
    """

    dims: ClassVar[int]
    forms: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        rank: Any,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        core: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        form: str | None = None,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise IronrankError(
                f"groups={groups}: a factored convolution needs groups=1; leave this layer dense"
            )
        self.form = form or type(self).form
        if self.form not in self.forms:
            raise IronrankError(
                f"form={form!r} of a {type(self).__name__}: allowed is {', '.join(self.forms)}"
            )
        # The dense twin on no device checks the arguments and keeps torch's own form of each.
        twin = DENSE[self.dims](in_channels, out_channels, kernel_size, stride, padding, dilation,
                                bias=False, padding_mode=padding_mode, device="meta")  # fmt: skip
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = twin.kernel_size, twin.stride, twin.dilation
        self.padding, self.padding_mode = twin.padding, padding_mode
        self._hold(rank, core, bias, {"device": device, "dtype": dtype})

    @classmethod
    def from_conv(cls, conv: Any, rank: Any, core: bool = True, form: str | None = None) -> Factored:
        """Return the factored layer near a dense convolution; another name of `from_dense`.

        Args:
            conv: The dense convolution of as many dimensions, with groups=1.
            rank: r, or (r1, r2) for Tucker-2.
            core: Whether there is a core S.
            form: Low-rank form; by default that of the class.

        Returns:
            The factored layer, on the same device, of the same type and mode.
        """
        return cls.from_dense(conv, rank, core, form)

    @classmethod
    def _of_sizes(cls, dense: Any, rank: Any, core: bool, form: str, device: torch.device) -> Factored:
        return cls(dense.in_channels, dense.out_channels, dense.kernel_size, rank, dense.stride, dense.padding,
                   dense.dilation, dense.groups, dense.bias is not None, dense.padding_mode, core,
                   device, dense.weight.dtype, form)  # fmt: skip

    @property
    def weight_shape(self) -> Shape:
        """(out_channels, in_channels, k_1, ..., k_d)."""
        return self.out_channels, self.in_channels, *self.kernel_size

    def stages(self, lanes: int = 1) -> list[Stage]:
        """Return the thin convolutions that the layer acts by.

        Args:
            lanes: Ranks are filled up with zeros to a multiple of this.

        Returns:
            The stages, the first one first.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer in its cheapest form.

        Args:
            x: Inputs (b, in_channels, ...), or without the batch dimension.

        Returns:
            Outputs (b, out_channels, ...).
        """
        if self._dense_is_cheaper(*self.positions(tuple(x.shape))):
            return self._act(x, self._whole(), self.bias)
        *inner, last = self.stages(_LANES)
        for stage in inner:
            x = self._act(x, stage, None)
        return self._act(x, last, self.bias)

    def _whole(self) -> Stage:
        return Stage(self.dense(), self.stride, self.padding, self.dilation)

    def _act(self, x: Tensor, stage: Stage, bias: Tensor | None) -> Tensor:
        padding = stage.padding
        if self.padding_mode != "zeros" and (pad := _pads(stage)):
            x, padding = F.pad(x, pad, mode=self.padding_mode), (0,) * self.dims
        return _CONV[self.dims](x, self._like(x, stage.kernel), bias, stage.stride, padding, stage.dilation)

    def _like(self, x: Tensor, kernel: Tensor) -> Tensor:
        # Where the layout of the images is ambiguous, as for one channel, torch follows that of the kernel; `to`
        # sets the strides even then, which `contiguous` does not.
        if self.dims == 2 and x.is_contiguous(memory_format=torch.channels_last):
            return kernel.to(memory_format=torch.channels_last)
        return kernel

    def output_size(self, size: Shape) -> Shape:
        """Return the spatial size of the output for the spatial size of an input."""
        if self.padding == "same":
            return size
        padding = (0,) * self.dims if self.padding == "valid" else self.padding
        form = zip(size, self.kernel_size, self.stride, padding, self.dilation, strict=True)
        return tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in form)

    def positions(self, shape: Shape) -> tuple[int, int]:
        """Return the positions (p, q) for inputs of a shape.

        Args:
            shape: Shape of the inputs (b, in_channels, ...), or without the batch dimension.

        Returns:
            Batch times output pixels, and batch times the pixels at which the first stage gives values.
        """
        size, batch = tuple(shape[-self.dims :]), shape[0] if len(shape) == self.dims + 2 else 1
        output = self.output_size(size)
        return batch * math.prod(output), batch * math.prod(self._first_size(size, output))

    def _first_size(self, size: Shape, output: Shape) -> Shape:
        """Return the spatial size of what the first stage gives."""
        raise NotImplementedError

    @torch.no_grad()
    def deploy(self, dense: bool | None = None) -> nn.Module:
        """Return plain torch layers of the same function.

        Args:
            dense: True for one dense convolution, False for thin ones, None for the smaller.

        Returns:
            A convolution, or a `Sequential` of them.
        """
        if self.deploys_dense if dense is None else dense:
            return self._plain(self._whole(), self.bias).train(self.training)
        *inner, last = self.stages()
        thin = [self._plain(stage, None) for stage in inner]
        return nn.Sequential(*thin, self._plain(last, self.bias)).train(self.training)

    def _plain(self, stage: Stage, bias: Tensor | None) -> nn.Module:
        """Return a stage as a layer of torch."""
        outputs, inputs, *size = stage.kernel.shape
        padded = _pads(stage)
        conv = DENSE[self.dims](
            inputs, outputs, tuple(size), stage.stride, stage.padding, stage.dilation, bias=bias is not None,
            padding_mode=self.padding_mode if padded else "zeros", device=self.U.device, dtype=self.U.dtype,
        )  # fmt: skip
        conv.weight.copy_(stage.kernel)
        if bias is not None:
            conv.bias.copy_(bias)
        return conv

    def _pointwise(self, matrix: Tensor) -> Stage:
        """Return a matrix (outputs, inputs) as a 1 x 1 convolution."""
        one = (1,) * self.dims
        return Stage(matrix.reshape(*matrix.shape, *one), one, (0,) * self.dims, one)

    def extra_repr(self) -> str:
        """Sizes, geometry and rank, for ``print(model)``."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"
        text += f", stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        text += "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode}"
        text += "" if self.form == type(self).form else f", form={self.form}"
        text += "" if self.bias is not None else ", bias=False"
        return text + ("" if self.S is not None else ", core=False")


def filled(matrix: Tensor, lanes: int) -> Tensor:
    """Return a matrix with columns of zeros added up to a multiple of ``lanes``."""
    spare = -matrix.shape[1] % lanes
    return F.pad(matrix, (0, spare)) if spare else matrix


def _pads(stage: Stage) -> list[int]:
    """Return the padding as `F.pad` takes it, last axis first and both ends of each; empty where there is none."""
    if stage.padding == "valid":
        return []
    pads: list[int] = []
    for axis in reversed(range(len(stage.stride))):
        if isinstance(stage.padding, str):  # "same": as torch shares it out, the odd one at the far end
            total = stage.dilation[axis] * (stage.kernel.shape[2 + axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [stage.padding[axis]] * 2
    return pads if any(pads) else []
