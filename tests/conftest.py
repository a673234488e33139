"""Shared fixtures: one thread, small data folders, and operators that some builds of torchvision lack."""

from __future__ import annotations

import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # cases.py and twins.py, for every test file
torch.set_num_threads(1)


def _declare_vision_operators() -> torch.library.Library | None:
    # torchvision's CUDA wheel does not load its operators on a CPU-only torch, and then cannot even be imported
    found = find_spec("torchvision")
    if found is None or found.origin is None or torch.version.cuda is not None or sys.platform != "linux":
        return None
    version = Path(found.origin).parent / "version.py"
    if version.is_file() and "+cpu" in version.read_text(encoding="utf-8"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


VISION_OPERATORS = _declare_vision_operators()  # kept: the operators go when the library does


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there is no data folder beside the checkout")
    return folder


def bars(n: int, channels: int, side: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that a small net learns at once: noise, and a bright bar whose place tells the class."""
    labels = (np.arange(n) % classes).astype(np.uint8)
    images = np.random.default_rng(seed).integers(0, 60, (n, channels, side, side)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 + 2 * (int(label) % 10), 3 + (int(label) // 10) * 2
        image[:, row : row + 3, column : column + 9] = 220
    return images, labels


def _write_idx(folder: Path, stem: str, n: int, seed: int) -> None:
    images, labels = bars(n, 1, 28, 10, seed)
    head = struct.pack(">4I", 0x0803, n, 28, 28)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, n) + labels.tobytes())


def _write_binary(path: Path, n: int, classes: int, label_bytes: int, seed: int) -> None:
    images, labels = bars(n, 3, 32, classes, seed)
    heads = np.repeat(labels[:, None], label_bytes, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate([heads, images.reshape(n, -1)], axis=1).tobytes())


@pytest.fixture(scope="session")
def mnist(tmp_path_factory) -> str:
    """A folder in the form of MNIST: 64 training and 32 test images."""
    folder = tmp_path_factory.mktemp("mnist")
    _write_idx(folder, "train", 64, seed=0)
    _write_idx(folder, "t10k", 32, seed=1)
    return str(folder)


@pytest.fixture(scope="session")
def cifar(tmp_path_factory) -> str:
    """A folder in the form of CIFAR-10 and of CIFAR-100, binary: 65 and 64 training images, 32 test images."""
    folder = tmp_path_factory.mktemp("cifar")
    for i in range(1, 6):
        _write_binary(folder / "cifar-10-batches-bin" / f"data_batch_{i}.bin", 13, 10, 1, seed=i)
    _write_binary(folder / "cifar-10-batches-bin" / "test_batch.bin", 32, 10, 1, seed=6)
    _write_binary(folder / "cifar-100-binary" / "train.bin", 64, 100, 2, seed=7)
    _write_binary(folder / "cifar-100-binary" / "test.bin", 32, 100, 2, seed=8)
    return str(folder)
