r"""Spectral norms of convolutions as operators on images of a given size, from above.

The norm of the flattened kernel is not the norm of the operator. A convolution is one sum over the points t of its
kernel; each axis adds a factor to each point,

    A = sum_t K[t] (x) B_t,    B_t of an axis: n_out x n_in, 1 where output o reads pixel i through point t

    n, c, *k   outputs, inputs, size of the kernel
    y[o] = sum_t K[t] x[s o + d t - p]       one axis; s stride, d dilation, p padding, 0 <= t < k, 0 <= o < n_out

and each axis is taken in one of two ways.

    matrix      B_t as it is, for every kind of padding: exact, and A is large
    frequency   the axis as a part of a circular convolution, which falls apart into M frequencies

How an axis is brought to a circular convolution without stride: write ``d t - p = s q_t + r_t`` with ``0 <= r_t < s``.
With the phases ``x_r[i] = x[s i + r]``, whose stacking changes no norm, ``y[o] = sum_t K[t] x_{r_t}[o + q_t]``. With
zero padding this is a part of the convolution on M points, circular in i and o, as soon as nothing wraps round to
pixels:

    M >= max(n_out, n_r, n_r - min(0, q), n_out + q)   for all q_t, n_r = ceil(n_in / s)

since restricting inputs and outputs can only lower a norm. The symbol of a frequency f has B_t = exp(2 pi i f q_t /
M) at phase r_t, one row and s columns. That is above the true norm, by 7 % at 8 pixels with both axes, 1 % at 16, 0.1
% at 32 (random 3 x 3 kernels). Circular padding with n_in divisible by s is the case ``M = n_in / s`` itself, and
exact; where s does not divide, the stride of the axis is left out, which only adds outputs. Other padding is a linear
map P of its own before the axis without padding, ``||P|| = sqrt(the largest number of places that one pixel is copied
to)`` is exact for it, and the product of both norms holds. Axes are matrices as far as the work allows; then the
bound is the largest norm of the matrices of all frequencies.

Sources: Sedghi, Gupta, Long, "The singular values of convolutional layers", 2019 (circular, stride 1). Embedding,
phases, padding maps and axes of two kinds are derived here.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ironrank.certificates.gram import gamma, spectral_norm

WORK = 6e10  # multiply-adds for one norm, up to which axes are taken as matrices; some seconds of a CPU
_ENTRIES = 2**25  # numbers in a matrix, up to which it is built
_CHUNK = 2**21  # complex numbers of symbols at a time
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Axis(NamedTuple):
    """One axis of an operator: blocks (f, k, rows, columns) for f frequencies, and a factor on the norm."""

    blocks: Tensor
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Convolution:
    """The linear part of a convolution on images of one size, or of a linear layer, which has no axes.

    Attributes:
        kernel: (n, c / groups, k_1, ..., k_d), float64.
        size: Spatial size of the input.
        stride: Stride of each axis.
        padding: Pixels added before and after, for each axis.
        dilation: Dilation of each axis.
        mode: "zeros", "circular", "reflect" or "replicate".
        groups: Number of groups.
    """

    kernel: Tensor
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    mode: str = "zeros"
    groups: int = 1

    @property
    def axes(self) -> range:
        """The spatial axes."""
        return range(len(self.size))

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.kernel.shape[1] * self.groups

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        return tuple(
            (self.size[a] + sum(self.padding[a]) - self._reach(a)) // self.stride[a] + 1 for a in self.axes
        )

    @property
    def copies(self) -> int:
        """The largest number of places that padding copies one pixel to."""
        return 1 if self.mode == "zeros" else math.prod(self._copies(axis) for axis in self.axes)

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel.shape[2 + axis] - 1) + 1

    def apply(self, x: Tensor) -> Tensor:
        """Apply the operator.

        Args:
            x: Inputs (b, c, *size), float64.

        Returns:
            Outputs (b, n, *output_size).
        """
        if not self.size:
            return x @ self.kernel.mT
        pad = [pixels for axis in reversed(self.axes) for pixels in self.padding[axis]]
        x = F.pad(x, pad, mode="constant" if self.mode == "zeros" else self.mode) if any(pad) else x
        return _CONV[len(self.size)](x, self.kernel, None, self.stride, 0, self.dilation, self.groups)

    def norm(self, work: float = WORK) -> float:
        """Bound the spectral norm of the operator from above.

        Args:
            work: Multiply-adds up to which axes are taken as matrices.

        Returns:
            The bound.

        Raises:
            IronrankError: If the kernel is not finite.
        """
        axes = [self._frequency_axis(axis) for axis in self.axes]
        loose = [axis for axis in self.axes if not self._exact(axis)]
        by_size = sorted(loose, key=lambda axis: self.size[axis])
        for number in range(len(loose), 0, -1):
            for chosen in itertools.combinations(by_size, number):
                if self._work(chosen, axes) <= work:
                    mixed = [self._matrix_axis(a) if a in chosen else axes[a] for a in self.axes]
                    return self._norm(mixed)
        return self._norm(axes)

    def _exact(self, axis: int) -> bool:
        """Return whether the frequencies of an axis lose nothing."""
        if self.mode == "circular":
            return (
                self.size[axis] == self.stride[axis] * self.output_size[axis]
            )  # no outputs missing or twice
        return self.kernel.shape[2 + axis] == 1 and not sum(self.padding[axis])

    def _work(self, chosen: tuple[int, ...], axes: list[Axis]) -> float:
        """Count the multiply-adds with some axes as matrices; infinite where a matrix is too large."""
        rows = self.kernel.shape[0] // self.groups * math.prod(self.output_size[a] for a in chosen)
        columns, batch = self.kernel.shape[1] * math.prod(self.size[a] for a in chosen), self.groups
        for a in set(self.axes) - set(chosen):
            batch, columns = batch * axes[a].blocks.shape[0], columns * axes[a].blocks.shape[3]
        if rows * columns > _ENTRIES:
            return math.inf
        small = min(rows, columns)
        return (
            batch * (small**2 * max(rows, columns) + small**3) * (1 if len(chosen) == len(self.axes) else 4)
        )

    def _copies(self, axis: int) -> int:
        """Return the largest number of places that padding copies one pixel of an axis to."""
        return int(self._read(axis).bincount(minlength=2)[1:].max())

    def _read(self, axis: int) -> Tensor:
        """Return the pixel at each place of a padded axis, counted from 1; 0 where there is none."""
        line = torch.arange(1, self.size[axis] + 1, dtype=torch.float64).view(1, 1, -1)
        mode = "constant" if self.mode == "zeros" else self.mode
        return F.pad(line, self.padding[axis], mode=mode).flatten().long()

    def _matrix_axis(self, axis: int) -> Axis:
        k, out = self.kernel.shape[2 + axis], self.output_size[axis]
        starts = torch.arange(out) * self.stride[axis]
        pixels = torch.stack(
            [self._read(axis)[starts + self.dilation[axis] * t] for t in range(k)]
        )  # (k, n_out)
        blocks = F.one_hot(pixels, self.size[axis] + 1)[..., 1:].unsqueeze(0)
        return Axis(blocks.to(self.kernel))

    def _frequency_axis(self, axis: int) -> Axis:
        n, s, (before, after) = self.size[axis], self.stride[axis], self.padding[axis]
        if self.mode == "zeros":
            return self._embedded(axis, n, s, before, after)
        if self.mode == "circular":
            s = s if n % s == 0 else 1
            out = (n + before + after - self._reach(axis)) // s + 1
            repeats = -(-out // (n // s))  # more outputs than points of the circle: the same ones again
            return Axis(self._waves(axis, n // s, s, before), math.sqrt(repeats))
        inner = self._embedded(axis, n + before + after, s, 0, 0)
        return inner._replace(factor=math.sqrt(self._copies(axis)))

    def _embedded(self, axis: int, n: int, s: int, before: int, after: int) -> Axis:
        """Return an axis with zero padding as a part of a circle."""
        if self.kernel.shape[2 + axis] == 1:
            return Axis(self._waves(axis, 1, s, before))  # one shift is a phase factor, which no norm sees
        out, pixels = (n + before + after - self._reach(axis)) // s + 1, -(-n // s)
        shifts = [(self.dilation[axis] * t - before) // s for t in range(self.kernel.shape[2 + axis])]
        points = max(out, pixels, pixels - min(0, *shifts), out + max(shifts))
        return Axis(self._waves(axis, points, s, before))

    def _waves(self, axis: int, points: int, s: int, before: int) -> Tensor:
        """Return ``exp(2 pi i f q_t / M)`` at the phase r_t of each point t of the kernel: (M, k, 1, s), complex."""
        taps = (
            torch.arange(self.kernel.shape[2 + axis], device=self.kernel.device) * self.dilation[axis]
            - before
        )
        shifts, phases = taps.div(s, rounding_mode="floor"), taps % s
        turns = (
            torch.arange(points, device=taps.device).unsqueeze(1) * shifts % points
        )  # whole numbers: exact
        angles = turns.double() * (2 * math.pi / points)
        waves = torch.polar(torch.ones_like(angles), angles).unsqueeze(-1) * F.one_hot(phases, s)
        return waves.unsqueeze(2)

    def _norm(self, axes: list[Axis]) -> float:
        """Return the largest norm of the matrices of all frequencies, up to conjugate ones, times the factors."""
        kernel = self.kernel.reshape(self.groups, -1, *self.kernel.shape[1:])  # (groups, n, c, *k)
        blocks = [axis.blocks for axis in axes]
        first = next((i for i, block in enumerate(blocks) if len(block) > 1), None)
        best, parts = 0.0, [blocks]
        if first is not None:  # the kernel is real: opposite frequencies have equal norms
            half = blocks[first][: len(blocks[first]) // 2 + 1]
            each = math.prod(kernel.shape[:3]) * math.prod(b[0, 0].numel() for b in blocks)
            each *= math.prod(len(b) for i, b in enumerate(blocks) if i != first)
            parts = [
                [*blocks[:first], part, *blocks[first + 1 :]] for part in half.split(max(1, _CHUNK // each))
            ]
        for part in parts:
            best = spectral_norm(_matrices(kernel, part), known=best)
        # rounding of sines, products and sums, in the Frobenius norm of any of the matrices
        taps, rows = math.prod(kernel.shape[3:]), math.prod(b.shape[2] for b in blocks)
        rounding = gamma(16 * taps) * math.sqrt(taps * rows) * kernel.square().sum().sqrt().item()
        return (best + rounding) * math.prod(axis.factor for axis in axes)


def _matrices(kernel: Tensor, blocks: list[Tensor]) -> Tensor:
    """Return the matrices (f, n rows, c columns) of a kernel (groups, n, c, *k), groups among the frequencies f."""
    n, c = kernel.shape[1:3]
    found = kernel
    for block in blocks:  # the first remaining axis of the kernel goes; frequency, row and column come last
        block = block.real if len(block) == 1 and block.is_complex() and not block.imag.any() else block
        kind = torch.promote_types(found.dtype, block.dtype)
        found = torch.tensordot(found.to(kind), block.to(kind), dims=([3], [1]))
    dims = found.dim()
    order = [0, *range(3, dims, 3), 1, *range(4, dims, 3), 2, *range(5, dims, 3)]
    rows, columns = (math.prod(block.shape[i] for block in blocks) for i in (2, 3))
    return found.permute(order).reshape(-1, n * rows, c * columns)
