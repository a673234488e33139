"""Make the data set inside the package: a balanced part of Fashion-MNIST, as IDX files packed with xz.

    python tools/make_embedded.py SRC DST

SRC holds the four original files (plain, .gz or .xz), such as /usr/share/datasets/fashion-mnist of Debian's
package dataset-fashion-mnist; DST is src/ironrank/data/embedded. Run twice, it writes the same bytes.
"""

from __future__ import annotations

import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

from ironrank.data.idx import read_idx
from ironrank.data.published import idx_pair
from ironrank.errors import IronrankError

SEED = 0
PER_CLASS = {"train": 1000, "test": 200}
# MD5 of the unpacked originals.
MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def idx_bytes(items: np.ndarray) -> bytes:
    """Return the IDX file of an array of bytes."""
    dimensions = np.array(items.shape, ">u4").tobytes()
    return bytes((0, 0, 8, items.ndim)) + dimensions + np.ascontiguousarray(items, np.uint8).tobytes()


def choose(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return the positions of equally many random items of each class, in the original order."""
    # RandomState, because numpy promises never to change what it draws.
    order = np.random.RandomState(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == c][:per_class] for c in range(10)]))


def read_original(path: Path, item: tuple[int, ...]) -> np.ndarray:
    """Read one original file and check its MD5."""
    items = read_idx(path, item)
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    found = hashlib.md5(idx_bytes(items), usedforsecurity=False).hexdigest()
    if found != MD5[name]:
        raise IronrankError(f"{path}: its unpacked MD5 is {found}, expected {MD5[name]}")
    return items


def write(path: Path, items: np.ndarray) -> None:
    """Write an array of bytes as an IDX file packed with xz."""
    packed = lzma.compress(idx_bytes(items), check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(packed)
    partial.replace(path)


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for split, per_class in PER_CLASS.items():
        paths = idx_pair(source, split)
        images, labels = read_original(paths[0], (28, 28)), read_original(paths[1], ())
        chosen = choose(labels, per_class, SEED)
        for plain, items in zip(idx_pair(Path("none"), split), (images, labels), strict=True):
            write(target / f"{plain.name}.xz", items[chosen])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except IronrankError as error:
        sys.exit(str(error))
