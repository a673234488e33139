"""Photos in files: decoded, brought to one size, and forgotten again, whenever a batch asks for them.

A set that does not fit in memory stays a list of paths. Selections are lists too; only ``x`` opens files, several at
a time, so that one asks for it on few images.

Decoding is done by Pillow, which this package does not require: ``pip install pillow``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ironrank.data.base import Images
from ironrank.errors import IronrankError
from ironrank.linalg.parallel import side_by_side

MARGIN = 256 / 224  # the shorter side before the crop, in units of the side after it


class Photos(Images):
    """Images that lie in files.

    Args:
        files: One file for each image, in any format that Pillow reads.
        y: int64 (n,), class of each image.
        side: Height and width of the images; see `decode`.
        device: Where decoded images go.

    Raises:
        IronrankError: If Pillow is missing.
    """

    def __init__(
        self, files: Sequence[Path], y: Tensor, side: int, device: torch.device | str = "cpu"
    ) -> None:
        if find_spec("PIL") is None:
            raise IronrankError("photos are decoded by Pillow, which is not installed: pip install pillow")
        for name, value in {
            "files": files,
            "y": y.to(device),
            "side": side,
            "_device": torch.device(device),
        }.items():
            object.__setattr__(self, name, value)  # images are frozen

    files: Sequence[Path]
    side: int
    _device: torch.device

    @property
    def x(self) -> Tensor:
        """All of them, decoded: uint8 (n, 3, side, side), on the device."""
        if not self.files:
            return torch.zeros((0, 3, self.side, self.side), dtype=torch.uint8, device=self._device)
        decoded = side_by_side(lambda file: decode(file, self.side), self.files)
        return torch.stack(decoded).to(self._device)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def device(self) -> torch.device:
        """Where decoded images go."""
        return self._device

    def to(self, device: torch.device | str) -> Photos:
        """Return the same list for another device; see `Images.to`."""
        return Photos(self.files, self.y, self.side, device)

    def take(self, indices: Tensor) -> Photos:
        """Return the list of these images; nothing is decoded. See `Images.take`."""
        chosen = [self.files[i] for i in indices.tolist()]
        return Photos(chosen, self.y[indices.to(self.y.device)], self.side, self._device)

    def pixels(self, indices: Tensor) -> Tensor:
        """Decode the images at ``indices``; see `Images.pixels`."""
        return self.take(indices).x.to(torch.float32).div_(255)

    def first(self, n: int) -> Photos:
        """Return the list of the first ``n`` images; see `Images.first`."""
        if n < 1:
            raise IronrankError(f"first {n} images: a number of at least 1 is needed")
        return Photos(self.files[:n], self.y[:n], self.side, self._device)


def decode(file: Path, side: int) -> Tensor:
    """Read a photo: colours, shorter side to 8/7 of ``side`` (bilinear, with antialiasing), the middle of it.

    Args:
        file: The file.
        side: Height and width of the result, such as 224.

    Returns:
        uint8 (3, side, side).

    Raises:
        IronrankError: If it is no image.
    """
    from PIL import Image

    try:
        with Image.open(file) as photo:
            shorter = round(MARGIN * side)
            photo.draft(
                "RGB", (shorter, shorter)
            )  # a JPEG file is decoded at a fraction of its size where that is enough
            small = photo.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise IronrankError(
            f"{file} is no image that Pillow reads ({error}): remove it or fetch it again"
        ) from None
    scale = shorter / min(small.size)
    (left, right), (top, bottom) = (_middle(length, scale, side) for length in small.size)
    box = (left, top, right, bottom)  # scaled alone: the rest of a thin photo may be huge
    cut = small.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()


def _middle(length: int, scale: float, side: int) -> tuple[float, float]:
    """Return what becomes the middle ``side`` pixels of a length, in pixels of before the scaling."""
    scaled = max(side, round(scale * length))
    start = (scaled - side) // 2
    return start * length / scaled, (start + side) * length / scaled
