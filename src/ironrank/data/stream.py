"""Batches as a pure function of (seed, step): a run resumed at step t sees what it would have seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.data.augment import AUGMENTS, crop_flip, draw
from ironrank.data.base import Images, pixels
from ironrank.data.seeds import mix
from ironrank.errors import IronrankError, nearest


class Stream:
    """Shuffled, augmented batches without end, addressed by their step.

    Step t lies in epoch ``e = t // steps_per_epoch``. The epoch's order is the permutation of seed (seed, e),
    the noise of the augmentation is that of seed (seed, t). An epoch shows each image once.

    Args:
        images: The images, on the device where the batches are wanted.
        batch_size: Images per step, summed over all processes.
        seed: The run's seed.
        augment: ``"none"`` or ``"crop-flip"``.
        shard: Rank and number of processes; this one gets samples rank, rank + world, ... of each batch.

    Raises:
        IronrankError: If an argument is out of range, or the last batch is too small for the processes.

    Example:
        >>> images = Images(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10))
        >>> stream = Stream(images, batch_size=4, seed=0)
        >>> stream.steps_per_epoch, [len(stream.batch(t)[1]) for t in range(3)]
        (3, [4, 4, 2])
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        augment: str = "none",
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        _check(len(images), batch_size, augment, shard)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.augment, self.shard = augment, shard
        self._latest: tuple[int, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that show every image once."""
        return -(-len(self.images) // self.batch_size)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return the batch of one step.

        Args:
            t: Step, counted from 0 over all epochs; steps may be asked for in any order.

        Returns:
            x float32 (b, c, h, w) in [0, 1] and y int64 (b,), on the images' device.

        Raises:
            IronrankError: If ``t`` is negative.
        """
        if t < 0:
            raise IronrankError(f"step {t}: a step of at least 0 is needed")
        epoch, k = divmod(t, self.steps_per_epoch)
        indices = self._order(epoch)[k * self.batch_size : (k + 1) * self.batch_size]
        rank, world = self.shard
        part = self.images.take(indices[rank::world])
        if self.augment == "none":
            return pixels(part.x), part.y
        # The noise of the whole global batch, so that it does not depend on the number of processes.
        noise = draw(len(indices), mix(self.seed, "noise", t))
        return pixels(crop_flip(part.x, noise[rank::world])), part.y

    def _order(self, epoch: int) -> Tensor:
        """Return the epoch's permutation; the latest one is kept, it only saves time."""
        if self._latest is None or self._latest[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, "epoch", epoch))
            self._latest = (epoch, torch.randperm(len(self.images), generator=generator))
        return self._latest[1]


def _check(n: int, batch_size: int, augment: str, shard: tuple[int, int]) -> None:
    rank, world = shard
    if n < 1:
        raise IronrankError("no image to draw batches from")
    if batch_size < 1:
        raise IronrankError(f"batch_size={batch_size}: allowed is at least 1")
    if augment not in AUGMENTS:
        raise IronrankError(f"augment={augment!r}: {nearest(augment, list(AUGMENTS))}")
    if not 0 <= rank < world:
        raise IronrankError(f"shard={shard}: a rank in 0 ... {world - 1} of at least 1 process is needed")
    last = n % batch_size or batch_size
    if min(last, n) < world:
        few = f"the last of the batches of {batch_size} has {min(last, n)} of {n} images"
        raise IronrankError(f"{few}, too few for {world} processes: choose another batch_size")
