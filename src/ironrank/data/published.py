"""How a data set finds the files that its authors published, and fetches them when asked."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ironrank.data.base import Dataset, Images, check
from ironrank.data.cifar import read_batch, read_binary
from ironrank.data.download import Source, download
from ironrank.data.idx import SUFFIXES, read_idx
from ironrank.errors import IronrankError

_OPTIONS = (
    "name the folder that holds them (--data DIR), or set download=True with a folder to fetch them into it"
)


# Files of these sets bear the same names; their first ten labels tell them apart.
_OPENINGS = {
    "train": {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]},
    "test": {"mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]},
}


@dataclass(frozen=True, kw_only=True)
class Published(Dataset):
    """A data set in files: find them, fetch them when asked, read them.

    Attributes:
        sources: What ``download=True`` fetches.
        forms: The forms in which the files may come, for error messages.
    """

    forms: ClassVar[str] = ""
    sources: ClassVar[tuple[Source, ...]] = ()

    @abstractmethod
    def candidates(self, root: Path, split: str) -> list[list[Path]]:
        """Name the places where a split's files may lie.

        Args:
            root: The data folder.
            split: ``"train"`` or ``"test"``.

        Returns:
            For each place all files of the split, whether they exist or not.
        """

    @abstractmethod
    def read_files(self, paths: list[Path], split: str) -> Images:
        """Read the files of one place.

        Args:
            paths: The files, all there.
            split: ``"train"`` or ``"test"``.

        Returns:
            The images.
        """

    def read(self, split: str) -> Images:
        """Find the files of one split and read them.

        Args:
            split: ``"train"`` or ``"test"``.

        Returns:
            The images on the CPU, in the published order.

        Raises:
            IronrankError: If files are missing.
        """
        root = self._root(split)
        if self.download and _missing(self._nearest(root, split)):
            download(self.sources, root)
        paths = self._nearest(root, split)
        if missing := _missing(paths):
            raise IronrankError(self._lack(root, split, missing, complete=len(missing) == len(paths)))
        return self.read_files(paths, split)

    def _root(self, split: str) -> Path:
        if self.folder is None:
            wanted = ", ".join(path.name for path in self.candidates(Path(), split)[0])
            raise IronrankError(f"{self.name} is read from files {wanted} ({self.forms}): {_OPTIONS}")
        root = Path(self.folder).expanduser()
        if not root.is_dir() and not self.download:
            raise IronrankError(f"{self.name}: there is no folder {root}: {_OPTIONS}")
        return root

    def _nearest(self, root: Path, split: str) -> list[Path]:
        """Return the first place that lacks the fewest files."""
        return min(self.candidates(root, split), key=lambda paths: len(_missing(paths)))

    def _lack(self, root: Path, split: str, missing: list[Path], complete: bool) -> str:
        names = ", ".join(path.name for path in missing)
        if not complete:
            where = missing[0].parent
            return f"{self.name}: {where} lacks {names}: add them or name another folder (--data DIR)"
        places = {str(paths[0].parent.relative_to(root)) for paths in self.candidates(root, split)}
        looked = f"in {root} (there in {', '.join(sorted(places))})"
        return f"{self.name}: no {names} ({self.forms}) {looked}: {_OPTIONS}"


def _missing(paths: list[Path]) -> list[Path]:
    return [path for path in paths if not path.is_file()]


@dataclass(frozen=True, kw_only=True)
class IdxSet(Published):
    """A set in IDX files, plain, ``.gz`` or ``.xz``.

    Attributes:
        inner: Folders inside the data folder that may hold the files.
    """

    forms: ClassVar[str] = "plain, .gz or .xz"
    inner: ClassVar[tuple[str, ...]] = ()

    def candidates(self, root: Path, split: str) -> list[list[Path]]:
        """Name the image and the label file in each place.

        Args:
            root: The data folder.
            split: ``"train"`` or ``"test"``.

        Returns:
            Two paths for each place, packed or not.
        """
        return [idx_pair(root / inner, split) for inner in (*self.inner, "raw", ".")]

    def read_files(self, paths: list[Path], split: str) -> Images:
        """Read images and labels.

        Args:
            paths: The image and the label file.
            split: ``"train"`` or ``"test"``.

        Returns:
            The images.

        Raises:
            IronrankError: If they are damaged, disagree, or are another set's.
        """
        images = read_idx_pair(paths, self)
        for name, opening in _OPENINGS[split].items():
            if name != self.name and images.y[:10].tolist() == opening:
                raise IronrankError(
                    f"{paths[1]}: holds {name}, not {self.name}: name another folder (--data DIR)"
                )
        return images


def idx_pair(folder: Path, split: str) -> list[Path]:
    """Return the image and the label file of a folder, with the suffix under which they are there.

    Args:
        folder: The folder.
        split: ``"train"`` or ``"test"``.

    Returns:
        Two paths, without a suffix where there is no such file.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    paths = []
    for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
        packed = [folder / (name + suffix) for suffix in SUFFIXES]
        paths.append(next((path for path in packed if path.is_file()), folder / name))
    return paths


def read_idx_pair(paths: list[Path], dataset: Dataset) -> Images:
    """Read an image file and its label file.

    Args:
        paths: The image and the label file.
        dataset: The set, for its facts.

    Returns:
        The images.

    Raises:
        IronrankError: If a file is damaged or of another shape, or they disagree in number.
    """
    x, y = read_idx(paths[0], item=dataset.spec.shape[1:]), read_idx(paths[1])
    if len(x) != len(y):
        raise IronrankError(
            f"{paths[0]} holds {len(x)} images, {paths[1].name} {len(y)} labels: get both again"
        )
    images = Images.from_numpy(x[:, None], y)
    check(str(paths[1]), images, dataset.spec)
    return images


@dataclass(frozen=True, kw_only=True)
class CifarSet(Published):
    """A set in CIFAR files, Python or binary form.

    Attributes:
        folders: Published names of the folder in the two forms.
        names: File names of each split, without ``.bin``.
        key: Key of the labels in the Python form.
        label_bytes: Label bytes of a record in the binary form.
    """

    forms: ClassVar[str] = "plain or .bin"
    folders: ClassVar[tuple[str, str]]
    names: ClassVar[dict[str, tuple[str, ...]]]
    key: ClassVar[str]
    label_bytes: ClassVar[int]

    def candidates(self, root: Path, split: str) -> list[list[Path]]:
        """Name the files of both forms, inside their folder or in the data folder itself.

        Args:
            root: The data folder.
            split: ``"train"`` or ``"test"``.

        Returns:
            All files of the split for each form and place.
        """
        forms = list(zip(self.folders, ("", ".bin"), strict=True))
        places = [(root / folder, suffix) for folder, suffix in forms] + [
            (root, suffix) for _, suffix in forms
        ]
        return [[place / (name + suffix) for name in self.names[split]] for place, suffix in places]

    def read_files(self, paths: list[Path], split: str) -> Images:
        """Read the files one after the other.

        Args:
            paths: The files.
            split: ``"train"`` or ``"test"``.

        Returns:
            All their images, in order.
        """
        parts = [self._read_file(path) for path in paths]
        return Images.from_numpy(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))

    def _read_file(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        binary = path.suffix == ".bin"
        x, y = read_binary(path, self.label_bytes) if binary else read_batch(path, self.key)
        check(str(path), Images.from_numpy(x, y), self.spec)
        return x, y
