r"""Spectral norms of convolutions as operators on images of a given size, from above.

The norm of the flattened kernel is not the norm of the operator. What is computed, the smaller of

    operator   where the input or the output of one image has at most `DENSE` numbers: the Gram matrix of the operator
               itself, built by applying it to unit images; all of padding, stride, dilation and groups is in it
    symbol     the norm of a circular convolution that contains the operator: the largest norm of its symbol, an
               (n, c s) matrix for each of M frequencies, s the product of strides

    n, c, *k   outputs, inputs, size of the kernel
    y[o] = sum_t K[t] x[s o + d t - p]       one axis; s stride, d dilation, p padding, 0 <= t < k, 0 <= o < n_out

How one axis is brought to a circular convolution without stride: write ``d t - p = s q_t + r_t``, ``0 <= r_t < s``.
With the phases ``x_r[i] = x[s i + r]``, whose stacking changes no norm, ``y[o] = sum_t K[t] x_{r_t}[o + q_t]``. With
zero padding this is a part of the convolution on M points, circular in i and o, as soon as nothing wraps round to
pixels:

    M >= max(n_out, n_r, n_r - min(0, q), n_out + q)   for all q_t, n_r = ceil(n_in / s)

since restricting inputs and outputs can only lower a norm. On finite images that is above the true norm (by about 1 %
at 16 x 16), and the better the larger they are. Circular padding with n_in divisible by s is the case ``M = n_in / s``
itself, where nothing is lost. Other padding is a linear map P of its own before a convolution without padding, and

    ||P|| = sqrt(the largest number of places that one pixel is copied to), the product over the axes

is exact for it, so that the product of both norms holds.

Sources: Sedghi, Gupta, Long, "The singular values of convolutional layers", 2019 (circular, stride 1). Embedding,
phases and padding maps are derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ironrank.certificates.gram import gamma, largest_eigenvalue, spectral_norm

DENSE = 3072  # numbers in one image, above which the operator's own Gram matrix is not built
_ENTRIES = 2**25  # of the operator as a matrix, above which it is not built either
_CHUNK = 2**21  # complex numbers of symbols at a time
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_EPS = torch.finfo(torch.float64).eps


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

    def norm(self, dense: int = DENSE) -> float:
        """Bound the spectral norm of the operator from above.

        Args:
            dense: Build the operator where the input or the output of one image has at most so many numbers.

        Returns:
            The bound.

        Raises:
            IronrankError: If the kernel is not finite.
        """
        if all(k == 1 for k in self.kernel.shape[2:]) and self.mode == "zeros":
            return spectral_norm(self._grouped().flatten(2))
        inputs, outputs = (
            count * math.prod(size)
            for count, size in ((self.inputs, self.size), (self.kernel.shape[0], self.output_size))
        )
        if min(inputs, outputs) <= dense and inputs * outputs <= _ENTRIES:
            return self._operator_norm(inputs, outputs)
        return self._symbol_norm()

    def _grouped(self) -> Tensor:
        return self.kernel.reshape(self.groups, -1, *self.kernel.shape[1:])

    def _operator_norm(self, inputs: int, outputs: int) -> float:
        """Return the norm from the Gram matrix of the smaller side; each row of it is one image, there and back."""
        like: dict[str, Any] = {"dtype": self.kernel.dtype, "device": self.kernel.device}
        with torch.enable_grad():
            if inputs <= outputs:
                x = torch.eye(inputs, **like).reshape(inputs, self.inputs, *self.size).requires_grad_()
                y = self.apply(x)
                G, size = torch.autograd.grad(y, x, y.detach())[0], y.detach()
            else:
                x = torch.zeros(outputs, self.inputs, *self.size, **like).requires_grad_()
                y = self.apply(x)
                (size,) = torch.autograd.grad(y, x, torch.eye(outputs, **like).reshape(y.shape))
                G = self.apply(size)
        terms = self.kernel[0].numel() + self.kernel.numel() // self.kernel.shape[1]
        # |G - exact| <= gamma |A|^T |A|, whose Frobenius norm is at most that of A squared; padding modes that copy
        # pixels add a few terms to each sum
        error = gamma(3 ** len(self.size) * terms) * size.square().sum().item()
        eigenvalue = largest_eigenvalue(G.detach().flatten(1).unsqueeze(0))
        return math.sqrt(eigenvalue + error) * (1 + 4 * _EPS)

    def _symbol_norm(self) -> float:
        """Return the norm of a circular convolution that contains this one, times that of the padding map."""
        if self.mode == "zeros":
            return self._embedded_norm([self._zero_padded_axis(axis) for axis in self.axes])
        repeats = math.prod(self._copies(axis) for axis in self.axes)
        padded = tuple(size + sum(pad) for size, pad in zip(self.size, self.padding, strict=True))
        inner = replace(self, size=padded, padding=((0, 0),) * len(padded), mode="zeros")
        bound = math.sqrt(repeats) * inner._symbol_norm()
        return min(bound, self._circular_norm()) if self.mode == "circular" else bound

    def _circular_norm(self) -> float:
        """Return the norm as a circular convolution, of stride 1 on axes that the stride does not divide."""
        divides = tuple(n % s == 0 for n, s in zip(self.size, self.stride, strict=True))
        one = replace(
            self, stride=tuple(s if fits else 1 for s, fits in zip(self.stride, divides, strict=True))
        )
        points = [n // s for n, s in zip(one.size, one.stride, strict=True)]
        # more outputs than points of the circle: the same ones again
        repeats = math.prod(-(-out // m) for out, m in zip(one.output_size, points, strict=True))
        axes = [(m, one._taps(axis)) for axis, m in enumerate(points)]
        return math.sqrt(repeats) * one._embedded_norm(axes)

    def _copies(self, axis: int) -> int:
        """Return the largest number of places that padding copies one pixel of an axis to."""
        line = torch.arange(self.size[axis], dtype=torch.float64).view(1, 1, -1)
        places = F.pad(line, self.padding[axis], mode=self.mode).flatten().long()
        return int(places.bincount().max())

    def _taps(self, axis: int) -> list[tuple[int, int]]:
        """Return shift q and phase r of each point of the kernel on an axis."""
        d, s, before = self.dilation[axis], self.stride[axis], self.padding[axis][0]
        return [divmod(d * t - before, s) for t in range(self.kernel.shape[2 + axis])]

    def _zero_padded_axis(self, axis: int) -> tuple[int, list[tuple[int, int]]]:
        """Return the points M of a circle that contains an axis, and shift and phase of each point of the kernel."""
        taps, out = self._taps(axis), self.output_size[axis]
        if len(taps) == 1:
            return 1, [(0, taps[0][1])]  # one shift is a phase factor, which no norm sees
        pixels = -(-self.size[axis] // self.stride[axis])
        shifts = [q for q, _ in taps]
        return max(out, pixels, pixels - min(0, *shifts), out + max(shifts)), taps

    def _embedded_norm(self, axes: list[tuple[int, list[tuple[int, int]]]]) -> float:
        """Return the largest norm of the symbol over all frequencies, up to conjugate ones."""
        kernel = self._grouped()  # (groups, n, c, *k)
        waves = [
            _waves(points, taps, s, kernel.device)
            for (points, taps), s in zip(axes, self.stride, strict=True)
        ]
        waves[0] = waves[0][
            : axes[0][0] // 2 + 1
        ]  # the kernel is real: opposite frequencies have equal norms
        each = math.prod(kernel.shape[:3]) * math.prod(self.stride)
        rows = max(1, _CHUNK // (each * math.prod(points for points, _ in axes[1:])))
        best = 0.0
        for first in waves[0].split(rows):
            best = spectral_norm(_symbols(kernel, [first, *waves[1:]]), known=best)
        # rounding of sines, products and sums, in the Frobenius norm of any symbol
        taps = math.prod(kernel.shape[3:])
        return best + gamma(16 * taps) * math.sqrt(taps) * kernel.square().sum().sqrt().item()


def _waves(points: int, taps: list[tuple[int, int]], stride: int, device: torch.device) -> Tensor:
    """Return ``exp(2 pi i f q_t / M)`` at the phase r_t of each tap: (M, k, s), complex."""
    shifts = torch.tensor([q for q, _ in taps], device=device)
    turns = torch.arange(points, device=device).unsqueeze(1) * shifts % points  # whole numbers: exact
    angles = turns.double() * (2 * math.pi / points)
    phases = torch.tensor([r for _, r in taps], device=device)
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(-1) * F.one_hot(phases, stride)


def _symbols(kernel: Tensor, waves: list[Tensor]) -> Tensor:
    """Return the symbols (f, n, c s) for a kernel (groups, n, c, *k) and the waves of its axes, groups among f."""
    n, c = kernel.shape[1:3]
    found = kernel.to(torch.complex128)
    for wave in waves:  # the first remaining axis of the kernel goes, a frequency and a phase come last
        found = torch.tensordot(found, wave, dims=([3], [1]))
    order = [0, *range(3, found.dim(), 2), 1, 2, *range(4, found.dim(), 2)]
    return found.permute(order).reshape(-1, n, c * math.prod(wave.shape[-1] for wave in waves))
