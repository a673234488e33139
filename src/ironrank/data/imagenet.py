"""ImageNet, or any set of photos in the same form: a folder for each class, decoded while it is trained on.

    FOLDER/train/<class>/<photo>      classes are numbered in the order of their names, as torchvision does
    FOLDER/val/<class>/<photo>        what is judged; fewer than 1,000 classes leave outputs of the net unused

Photos are scaled and cropped in the middle; there is no random resized crop, so that a training here is weaker than
those of the literature by what that augmentation is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ironrank.data.augment import AUGMENTS
from ironrank.data.base import Dataset, DataSpec, Images
from ironrank.data.photos import Photos
from ironrank.data.seeds import mix
from ironrank.errors import IronrankError
from ironrank.settings import setting

ENDINGS = {".jpeg", ".jpg", ".png", ".webp"}
FOLDERS = {"train": "train", "test": "val"}


@dataclass(frozen=True, kw_only=True)
class ImageNet(Dataset):
    """1,281,167 + 50,000 photographs of 1,000 classes, from folders, at 224 x 224.

    Source: Russakovsky et al. 2015; to be had, for research, from https://image-net.org. Needs Pillow.

    Attributes:
        side: Height and width after scaling and cropping.
    """

    name: ClassVar[str] = "imagenet"
    facts: ClassVar[DataSpec] = DataSpec((3, 224, 224), 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    augment: str = setting("crop-flip", "augmentation of training images", choices=AUGMENTS)
    validation: float = setting(0.01, "fraction of the training images held out", ge=0, lt=1)
    side: int = setting(224, "height and width of the images, pixels", ge=8)

    @property
    def spec(self) -> DataSpec:
        """The facts a model is built from, at this size."""
        return self.facts._replace(shape=(3, self.side, self.side))

    def read(self, split: str) -> Images:
        """List one split; its photos are decoded when they are asked for.

        Args:
            split: ``"train"``, or ``"test"`` for the folder ``val``.

        Returns:
            The photos, classes mixed: the first n of them are a sample of all, in the same order each time.

        Raises:
            IronrankError: If the folders are not there, a class is not in train, there are more than 1,000 classes, or
                Pillow is missing.
        """
        if self.download:
            raise IronrankError(
                "imagenet cannot be downloaded from here: its authors ask for an account; name a folder"
            )
        if self.folder is None:
            raise IronrankError("imagenet is read from FOLDER/train/<class>/ and FOLDER/val/<class>/: name the folder "
                                "(--data DIR)")  # fmt: skip
        root = Path(self.folder).expanduser()
        classes = _classes(root / "train")
        if len(classes) > self.facts.classes:
            raise IronrankError(
                f"imagenet: {root / 'train'} has {len(classes):,} classes: at most 1,000 are allowed"
            )
        if strange := sorted(set(_classes(root / FOLDERS[split])) - set(classes)):
            raise IronrankError(
                f"imagenet: class '{strange[0]}' of {root / FOLDERS[split]} is not in train, which numbers them"
            )
        places = [(name, i) for i, name in enumerate(classes)]
        found = [(file, i) for name, i in places for file in _photos(root / FOLDERS[split] / name)]
        if not found:
            wanted = root / FOLDERS[split] / "<class>" / "<photo>"
            raise IronrankError(
                f"imagenet: there is no {wanted} ({', '.join(sorted(ENDINGS))}) of a class of train"
            )
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(mix(0, "order", split)))
        files, y = zip(*(found[i] for i in order.tolist()), strict=True)
        return Photos(list(files), torch.tensor(y), self.side)


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/") if not path.name.startswith("."))


def _photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
