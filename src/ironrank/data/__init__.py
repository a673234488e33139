"""Images and labels in memory: data sets by name, splits, and batches as a function of seed and step."""

from __future__ import annotations

from ironrank.data.base import Data, Dataset, DataSpec, Images, images_of
from ironrank.data.imagenet import ImageNet
from ironrank.data.photos import Photos
from ironrank.data.seeds import mix
from ironrank.data.sets import CIFAR10, CIFAR100, MNIST, FashionMNIST, FashionSmall
from ironrank.data.split import split
from ironrank.data.stream import Stream

DATASETS: dict[str, type[Dataset]] = {
    s.name: s for s in (MNIST, FashionMNIST, CIFAR10, CIFAR100, FashionSmall, ImageNet)
}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DATASETS",
    "Data",
    "DataSpec",
    "Dataset",
    "FashionMNIST",
    "FashionSmall",
    "ImageNet",
    "Images",
    "MNIST",
    "Photos",
    "Stream",
    "images_of",
    "mix",
    "split",
]
