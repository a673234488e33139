"""CIFAR-10 and CIFAR-100 files, in the Python and in the binary form.

Layout (https://www.cs.toronto.edu/~kriz/cifar.html): an image is 3,072 bytes, a red, a green and a blue plane
of 32 x 32; the binary form puts the label bytes before each image, for CIFAR-100 the coarse one first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ironrank.data.opcodes import read_opcodes
from ironrank.errors import IronrankError

_BYTES = 3072


def read_batch(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of the Python form.

    Args:
        path: The file, such as ``data_batch_1``.
        key: Key of its labels: ``"labels"``, ``"fine_labels"`` or ``"coarse_labels"``.

    Returns:
        Images uint8 (n, 3, 32, 32) and labels uint8 (n,).

    Raises:
        IronrankError: If the file is missing or damaged, asks for code, or images and labels disagree.
    """
    content = read_opcodes(path)
    if not isinstance(content, dict):
        raise IronrankError(f"{path}: not a CIFAR batch, it holds no dict")
    table = {
        name.decode("latin-1") if isinstance(name, bytes) else name: item for name, item in content.items()
    }
    x, y = _data(path, table), _labels(path, table, key)
    if len(x) != len(y):
        raise IronrankError(f"{path}: holds {len(x)} images but {len(y)} labels: get it again")
    return x.reshape(-1, 3, 32, 32), y


def _data(path: Path, table: dict[Any, Any]) -> np.ndarray:
    x = table.get("data")
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != _BYTES:
        found = f"of shape {x.shape}" if isinstance(x, np.ndarray) else "missing"
        raise IronrankError(f"{path}: its array 'data' is {found}, expected (n, {_BYTES})")
    return x


def _labels(path: Path, table: dict[Any, Any], key: str) -> np.ndarray:
    y = table.get(key)
    if not isinstance(y, list) or any(type(label) is not int or not 0 <= label < 256 for label in y):
        names = ", ".join(repr(name)[:40] for name in table)[:120]
        raise IronrankError(f"{path}: no list of labels under '{key}', its keys are: {names or 'none'}")
    return np.array(y, np.uint8)


def read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of the binary form.

    Args:
        path: The file, such as ``data_batch_1.bin``.
        label_bytes: Bytes before each image, of which the last is the label: 1, for CIFAR-100 2.

    Returns:
        Images uint8 (n, 3, 32, 32) and labels uint8 (n,).

    Raises:
        IronrankError: If the file is missing or no whole number of records.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise IronrankError(f"{path}: cannot be read ({error.strerror})") from None
    record = label_bytes + _BYTES
    if not len(data) or len(data) % record:
        raise IronrankError(
            f"{path}: {len(data)} bytes are no whole number of records of {record}: get it again"
        )
    rows = data.reshape(-1, record)
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1]
