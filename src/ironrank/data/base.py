"""Facts (`DataSpec`), images in memory (`Images`) and the settings that load them (`Dataset`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ironrank.data.augment import AUGMENTS
from ironrank.errors import IronrankError
from ironrank.settings import Settings, setting

SPLITS = ("train", "test")


class DataSpec(NamedTuple):
    """The facts a model is built from.

    Attributes:
        shape: Channels, height and width of an image.
        classes: Number of classes.
        mean: What the model subtracts from each channel, in pixel units [0, 1].
        std: What the model divides each channel by, in pixel units.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels, held as bytes on one device.

    Attributes:
        x: uint8 (n, c, h, w).
        y: int64 (n,), class of each image.

    Example:
        >>> images = Images(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 2]))
        >>> len(images.first(2)), images.pixels(torch.tensor([0])).max().item()
        (2, 1.0)
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        """Check dtypes, dimensions and lengths.

        Raises:
            IronrankError: If they do not fit.
        """
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            found = f"{self.x.dtype} of shape {tuple(self.x.shape)}"
            raise IronrankError(f"images are {found}: uint8 of shape (n, c, h, w) is needed")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            found = f"{self.y.dtype} of shape {tuple(self.y.shape)}"
            raise IronrankError(
                f"labels are {found}: int64 of shape ({len(self.x)},) is needed, one per image"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.x.device

    @classmethod
    def from_numpy(cls, x: np.ndarray, y: np.ndarray) -> Images:
        """Take over arrays; those that cannot be written to are copied.

        Args:
            x: uint8 (n, c, h, w).
            y: Integers (n,).

        Returns:
            The images on the CPU.
        """
        return cls(
            torch.from_numpy(np.require(x, requirements=["C", "W"])), torch.from_numpy(y.astype(np.int64))
        )

    def to(self, device: torch.device | str) -> Images:
        """Return the images on another device.

        Args:
            device: Such as ``"cpu"`` or ``"cuda:0"``.

        Returns:
            The images there; no copy where they are there already.
        """
        return Images(self.x.to(device), self.y.to(device))

    def take(self, indices: Tensor) -> Images:
        """Return the images at ``indices``, in that order.

        Args:
            indices: int64 (b,), on any device.

        Returns:
            A copy of b images.
        """
        indices = indices.to(self.x.device)
        return Images(self.x[indices], self.y[indices])

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices`` as a model wants them.

        Args:
            indices: int64 (b,), on any device.

        Returns:
            float32 (b, c, h, w) in [0, 1].
        """
        return pixels(self.x[indices.to(self.x.device)])

    def first(self, n: int) -> Images:
        """Return the first ``n`` images, or all where there are fewer; a view, no copy.

        Args:
            n: Number of images, at least 1.

        Returns:
            The images; their ``len`` says how many.

        Raises:
            IronrankError: If ``n`` is below 1.
        """
        if n < 1:
            raise IronrankError(f"first {n} images: a number of at least 1 is needed")
        return Images(self.x[:n], self.y[:n])


def pixels(x: Tensor) -> Tensor:
    """Turn bytes into pixel units.

    Args:
        x: uint8, any shape.

    Returns:
        float32 of the same shape: ``x / 255``.
    """
    return x.to(torch.float32).div_(255)


@dataclass(frozen=True, kw_only=True)
class Dataset(Settings, ABC):
    """A data set by name: where its files are and what is done with its images.

    A member states its ``facts`` and implements `read`.

    Attributes:
        folder: Folder with the published files.
        augment: Augmentation of the training images.
        validation: Fraction of the training images held out.
        download: Whether missing files are fetched.
    """

    facts: ClassVar[DataSpec]

    folder: str | None = setting(None, "folder with the published files (--data)")
    augment: str = setting("none", "augmentation of training images", choices=AUGMENTS)
    validation: float = setting(
        0.1, "fraction of the training images held out", ge=0, lt=1, paper="0.25 (CondLR)"
    )
    download: bool = setting(False, "fetch missing files into the folder and check their MD5")

    @property
    def spec(self) -> DataSpec:
        """The facts a model is built from."""
        return self.facts

    @abstractmethod
    def read(self, split: str) -> Images:
        """Read one split from the files; `load` is what to call.

        Args:
            split: ``"train"`` or ``"test"``.

        Returns:
            The images on the CPU, in the published order.
        """

    def load(self, split: str) -> Images:
        """Load one split; ``"train"`` still includes what will be held out for validation.

        Args:
            split: ``"train"`` or ``"test"``.

        Returns:
            The images on the CPU, in the published order.

        Raises:
            IronrankError: If the split has another name, or files are missing, damaged or of another shape.
        """
        if split not in SPLITS:
            raise IronrankError(f"{self.label()}: split {split!r}: allowed is {', '.join(SPLITS)}")
        images = self.read(split)
        check(f"{self.label()} {split}", images, self.spec)
        return images


Data = Images | Dataset | tuple[Tensor, Tensor]  # what `images_of` takes


def images_of(data: Data) -> Images:
    """Return what somebody calls images as images.

    Args:
        data: Images, a data set (its test images), or pixels (n, c, h, w), bytes or those divided by 255, with classes
            (n,).

    Returns:
        The images.

    Raises:
        IronrankError: If it is something else, or the pixels are no bytes.

    Example:
        >>> images_of((torch.tensor([[[[0.0, 51 / 255]]]]), torch.tensor([3]))).x.flatten().tolist()
        [0, 51]
    """
    if isinstance(data, Images):
        return data
    if isinstance(data, Dataset):
        return data.load("test")
    if not (isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(p, Tensor) for p in data)):
        raise IronrankError(f"{type(data).__name__} in place of images: Images, a data set, or a pair of tensors "
                            "(pixels, classes) is needed")  # fmt: skip
    x, y = data
    if x.dtype == torch.uint8:
        return Images(x, y)
    scaled = 255 * x.detach()
    stored = scaled.round().clamp(0, 255)
    if not (x.is_floating_point() and bool(((scaled - stored).abs() < 0.01).all())):
        raise IronrankError("pixels that are no bytes divided by 255: images are judged as they are stored; pass "
                            "uint8, and let normalization be the model's first layer")  # fmt: skip
    return Images(stored.to(torch.uint8), y)


def check(what: str, images: Images, spec: DataSpec) -> None:
    """Check that images are what the facts promise.

    Args:
        what: Name for the error message.
        images: The images.
        spec: The facts.

    Raises:
        IronrankError: If there are none, or their shape or labels do not fit.
    """
    if not len(images):
        raise IronrankError(f"{what}: holds no image")
    shape = tuple(images.first(1).x.shape[1:])  # of one, since some sets decode what is asked for
    if shape != tuple(spec.shape):
        raise IronrankError(f"{what}: images of shape {shape}, expected {tuple(spec.shape)}")
    if images.y.min() < 0 or images.y.max() >= spec.classes:
        worst = int(images.y.max()) if images.y.max() >= spec.classes else int(images.y.min())
        raise IronrankError(f"{what}: label {worst}, expected 0 to {spec.classes - 1}")
