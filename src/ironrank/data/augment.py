"""Random crops and flips of a whole batch at once, on tensors.

The noise is drawn on the CPU, whatever device the images are on: a seed gives the same batch everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

AUGMENTS = ("none", "crop-flip")
PADDING = 4


def draw(count: int, seed: int, padding: int = PADDING) -> Tensor:
    """Draw what `crop_flip` needs: for each image a row offset, a column offset and a flip.

    Args:
        count: Number of images.
        seed: Seed of the draw, in [0, 2^63).
        padding: Largest shift, in pixels.

    Returns:
        int64 (count, 3): offsets uniform in 0 ... 2 padding, flip uniform in {0, 1}.

    Example:
        >>> draw(5, seed=0).shape
        torch.Size([5, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1)


def crop_flip(x: Tensor, noise: Tensor, padding: int = PADDING) -> Tensor:
    """Pad each image with zeros, cut a window of the old size, mirror it left to right where asked.

    Args:
        x: Images (b, c, h, w), any dtype; zero is black.
        noise: int64 (b, 3): first row and first column of the window in the padded image, flip (0 or 1).
        padding: Zeros on each side, in pixels.

    Returns:
        Images of the same shape and dtype.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> crop_flip(x, torch.tensor([[1, 1, 1]]), padding=1).flatten().tolist()
        [1.0, 0.0, 3.0, 2.0]
    """
    b, _, h, w = x.shape
    row, column, flip = noise.to(x.device).unbind(1)
    windows = pad(x, (padding,) * 4).unfold(2, h, 1).unfold(3, w, 1)
    crops = windows[torch.arange(b, device=x.device), :, row, column]
    return torch.where(flip.bool()[:, None, None, None], crops.flip(3), crops)
