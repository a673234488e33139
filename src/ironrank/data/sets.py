"""The data sets by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ironrank.data.augment import AUGMENTS
from ironrank.data.base import Dataset, DataSpec, Images
from ironrank.data.download import Source
from ironrank.data.published import CifarSet, IdxSet, idx_pair, read_idx_pair
from ironrank.errors import IronrankError
from ironrank.settings import setting

_FASHION = DataSpec((1, 28, 28), 10, (0.2860,), (0.3530,))
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_EMBEDDED = Path(__file__).parent / "embedded"


def _idx_sources(base: str, folder: str, md5s: tuple[str, str, str, str]) -> tuple[Source, ...]:
    names = [
        f"{stem}-{kind}-ubyte.gz" for stem in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    return tuple(Source(base + name, f"{folder}/{name}", md5) for name, md5 in zip(names, md5s, strict=True))


@dataclass(frozen=True, kw_only=True)
class MNIST(IdxSet):
    """Handwritten digits, 60,000 + 10,000 grey images of 28 x 28; not normalized, as in CondLR's setting.

    Source: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/.
    """

    name: ClassVar[str] = "mnist"
    facts: ClassVar[DataSpec] = DataSpec((1, 28, 28), 10, (0.0,), (1.0,))
    inner: ClassVar[tuple[str, ...]] = ("MNIST/raw", "MNIST", "mnist")
    sources: ClassVar[tuple[Source, ...]] = _idx_sources(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "MNIST/raw",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(IdxSet):
    """Clothes, 60,000 + 10,000 grey images of 28 x 28; mean and deviation are those of its training pixels.

    Source: Xiao, Rasul, Vollgraf, arXiv:1708.07747.
    """

    name: ClassVar[str] = "fashion-mnist"
    facts: ClassVar[DataSpec] = _FASHION
    inner: ClassVar[tuple[str, ...]] = ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist")
    sources: ClassVar[tuple[Source, ...]] = _idx_sources(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "FashionMNIST/raw",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class CIFAR10(CifarSet):
    """Small photographs of 10 classes, 50,000 + 10,000 colour images of 32 x 32.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    name: ClassVar[str] = "cifar10"
    facts: ClassVar[DataSpec] = DataSpec((3, 32, 32), 10, _CIFAR_MEAN, _CIFAR_STD)
    folders: ClassVar[tuple[str, str]] = ("cifar-10-batches-py", "cifar-10-batches-bin")
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    }
    key: ClassVar[str] = "labels"
    label_bytes: ClassVar[int] = 1
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            "c58f30108f718f92721af3b95e74349a",
            archive=True,
        ),
    )

    augment: str = setting(
        "crop-flip", "augmentation of training images", choices=AUGMENTS, paper="crop-flip"
    )


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CifarSet):
    """Small photographs of 100 classes, 50,000 + 10,000 colour images of 32 x 32.

    Normalized by CIFAR-10's constants, as in CondLR's setting.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    name: ClassVar[str] = "cifar100"
    facts: ClassVar[DataSpec] = DataSpec((3, 32, 32), 100, _CIFAR_MEAN, _CIFAR_STD)
    folders: ClassVar[tuple[str, str]] = ("cifar-100-python", "cifar-100-binary")
    names: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
    key: ClassVar[str] = "fine_labels"
    label_bytes: ClassVar[int] = 2
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "cifar-100-python",
            "eb9058c3a382ffc7106e4002c42a8d85",
            archive=True,
        ),
    )

    augment: str = setting(
        "crop-flip", "augmentation of training images", choices=AUGMENTS, paper="crop-flip"
    )


@dataclass(frozen=True, kw_only=True)
class FashionSmall(Dataset):
    """10,000 + 2,000 images of Fashion-MNIST, as many of each class, inside the package: no folder needed.

    Source: Xiao, Rasul, Vollgraf, arXiv:1708.07747; MIT licence beside the files.

    Example:
        >>> test = FashionSmall().load("test")
        >>> tuple(test.x.shape), test.y.bincount().tolist()
        ((2000, 1, 28, 28), [200, 200, 200, 200, 200, 200, 200, 200, 200, 200])
    """

    name: ClassVar[str] = "fashion-small"
    facts: ClassVar[DataSpec] = _FASHION

    def __post_init__(self) -> None:
        """Check the fields; a folder would not be read.

        Raises:
            IronrankError: If a folder or a download is asked for.
        """
        super().__post_init__()
        if self.folder is not None or self.download:
            raise IronrankError(
                "fashion-small is part of the package: leave folder (--data) and download out"
            )

    def read(self, split: str) -> Images:
        """Read one split from the package.

        Args:
            split: ``"train"`` or ``"test"``.

        Returns:
            The images on the CPU.
        """
        return read_idx_pair(idx_pair(_EMBEDDED, split), self)
