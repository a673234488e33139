"""IDX files, the form of MNIST and Fashion-MNIST: plain, ``.gz`` or ``.xz``.

Layout (http://yann.lecun.com/exdb/mnist/): two zero bytes, a type byte, the number of dimensions,
each dimension as a big-endian uint32, then the items, row-major.
"""

from __future__ import annotations

import gzip
import lzma
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ironrank.errors import IronrankError

SUFFIXES = ("", ".gz", ".xz")
_UINT8 = 8
_LARGEST = 2**30  # bytes; a damaged header must not make us read a terabyte


def read_idx(path: Path, item: tuple[int, ...] = ()) -> np.ndarray:
    """Read an IDX file of bytes.

    Args:
        path: The file; ``.gz`` and ``.xz`` are unpacked.
        item: Expected shape of one item: ``(28, 28)`` for images, ``()`` for labels.

    Returns:
        uint8 (n, *item).

    Raises:
        IronrankError: If the file is missing, damaged, longer or shorter than its header says, or of
            another shape.
    """
    try:
        with _open(path) as file:
            return _parse(path, file, item)
    except FileNotFoundError:
        raise IronrankError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise IronrankError(f"{path}: cannot be read or unpacked ({error}): get it again") from None


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    return cast(BinaryIO, lzma.open(path)) if path.suffix == ".xz" else path.open("rb")


def _parse(path: Path, file: BinaryIO, item: tuple[int, ...]) -> np.ndarray:
    shape = _shape(path, file, item)
    size = math.prod(shape)
    data = file.read(size + 1)
    if len(data) != size:
        found = "more" if len(data) > size else f"only {len(data)}"
        raise IronrankError(f"{path}: its header promises {size} bytes, it holds {found}: get it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, file: BinaryIO, item: tuple[int, ...]) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise IronrankError(f"{path}: not an IDX file, it starts with {magic.hex() or 'nothing'}")
    if magic[2] != _UINT8 or magic[3] != 1 + len(item):
        expected = f"type {_UINT8} (bytes) with {1 + len(item)} dimension(s)"
        raise IronrankError(
            f"{path}: IDX of type {magic[2]} with {magic[3]} dimension(s), expected {expected}"
        )
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise IronrankError(f"{path}: its header is cut off: get it again")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    if shape[1:] != item:
        raise IronrankError(f"{path}: items of shape {shape[1:]}, expected {item}")
    if math.prod(shape) > _LARGEST:
        raise IronrankError(f"{path}: its header promises {math.prod(shape)} bytes, more than {_LARGEST}")
    return shape
