"""What an audit looks at: pixels and classes in memory, in blocks, and one number that says which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks.base import check_batch
from ironrank.data import Data, Dataset, Images
from ironrank.errors import IronrankError


@dataclass(frozen=True, eq=False)
class Samples:
    """Pixels with their classes.

    Attributes:
        x: float32 (n, c, h, w) in [0, 1].
        y: int64 (n,).
        name: What they are, for people.
    """

    x: Tensor
    y: Tensor
    name: str = "images"

    def __len__(self) -> int:
        return len(self.x)

    def part(self, block: slice) -> Samples:
        """Return some neighbouring samples; a view, no copy."""
        return Samples(self.x[block], self.y[block], self.name)

    def take(self, chosen: Tensor) -> Samples:
        """Return the samples that a mask (n,) or indices (b,) choose; a copy."""
        chosen = chosen.to(self.x.device)
        return Samples(self.x[chosen], self.y[chosen], self.name)

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples on another device."""
        return Samples(self.x.to(device), self.y.to(device), self.name)

    def fingerprint(self) -> str:
        """Return a hash of pixels and classes: 16 hexadecimal digits."""
        digest = hashlib.sha256(self.x.cpu().contiguous().numpy().tobytes())
        digest.update(self.y.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def samples_of(data: Data, n: int | None = None) -> Samples:
    """Return the first images of a data set as pixels.

    Args:
        data: Images, a data set (its test images), or pixels (n, c, h, w) in [0, 1] with classes (n,).
        n: How many; None for all.

    Returns:
        The samples.

    Raises:
        IronrankError: If there is none, or type, shape or range is wrong.
    """
    if n is not None and n < 1:
        raise IronrankError(f"audit of the first {n} images: at least 1 is needed")
    if isinstance(data, Dataset):
        return _of_images(data.load("test"), n, f"{data.name} test images")
    if isinstance(data, Images):
        return _of_images(data, n, "images")
    if not (isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)):
        raise IronrankError(
            f"audit on {type(data).__name__}: Images, a data set, or a pair of tensors (pixels, classes) is needed"
        )
    x, y = (part.detach() for part in data)
    check_batch(x, y)
    return _checked(Samples(x[:n].float(), y[:n], "images"))


def _of_images(images: Images, n: int | None, name: str) -> Samples:
    images = images if n is None else images.first(n)
    return _checked(Samples(images.pixels(torch.arange(len(images))), images.y, name))


def _checked(samples: Samples) -> Samples:
    if not len(samples):
        raise IronrankError("audit on no image: at least 1 is needed")
    x = samples.x.contiguous(memory_format=torch.channels_last) if samples.x.dim() == 4 else samples.x
    return Samples(x, samples.y, f"first {len(samples)} {samples.name}")


def blocks_of(n: int, probe: int, size: int) -> list[slice]:
    """Cut n samples into blocks: first the probe, on which everything runs in full, then blocks of equal size.

    Args:
        n: Number of samples.
        probe: Size of the first block.
        size: Size of the others.

    Returns:
        The blocks, in order.

    Example:
        >>> [(b.start, b.stop) for b in blocks_of(10, 4, 3)]
        [(0, 4), (4, 7), (7, 10)]
    """
    starts = [0, *range(probe, n, size)]
    return [slice(a, min(b, n)) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def batches_of(samples: Samples, size: int) -> Iterator[Samples]:
    """Yield the samples in order, at most ``size`` at a time."""
    for start in range(0, len(samples), size):
        yield samples.part(slice(start, start + size))
