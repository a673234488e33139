"""Photos in folders: their classes, what a decoded one looks like, and that nothing is decoded early."""

from __future__ import annotations

import importlib.util
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from expect import refuses
from ironrank.data import ImageNet, Stream, photos, split
from ironrank.data.photos import decode
from ironrank.judge.accuracy import batches

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, red and blue, of six photos each, 40 x 60, and two of each to be judged."""
    for part, n in (("train", 6), ("val", 2)):
        for name, colour in (("n01-red", (200, 0, 0)), ("n02-blue", (0, 0, 200))):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (60, 40), colour).save(place / f"{i}.JPEG")
    (tmp_path / "train" / "n01-red" / "notes.txt").write_text("no photo")
    return tmp_path


def test_classes_are_numbered_by_name(folder: Path) -> None:
    data = ImageNet(folder=str(folder), side=32)
    train, test = data.load("train"), data.load("test")
    assert sorted(train.y.tolist()) == [0] * 6 + [1] * 6 and sorted(test.y.tolist()) == [0, 0, 1, 1]
    assert data.spec.shape == (3, 32, 32) and data.spec.classes == 1000
    x = train.x
    assert (x.shape, x.dtype, len(train)) == ((12, 3, 32, 32), torch.uint8, 12)
    red, blue = x[train.y == 0], x[train.y == 1]
    assert bool((red[:, 0] > 190).all() and (red[:, 2] < 10).all() and (blue[:, 2] > 190).all())


def test_the_first_photos_are_a_sample_of_all_classes(folder: Path) -> None:
    """Those are what is validated and judged; in the order of the folders they would be of the first classes."""
    train = ImageNet(folder=str(folder), side=32).load("train")
    assert set(train.first(6).y.tolist()) == {0, 1}
    assert ImageNet(folder=str(folder), side=32).load("train").y.tolist() == train.y.tolist()


def test_a_photo_is_scaled_and_cut_in_the_middle(tmp_path: Path) -> None:
    photo = Image.new("L", (112, 64), 0)  # grey; the middle 32 columns are white
    photo.paste(255, (40, 0, 72, 64))
    photo.save(tmp_path / "a.png")
    x = decode(tmp_path / "a.png", 56).float()  # 64 of 112 is what is scaled: the shorter side is 64 already
    assert x.shape == (3, 56, 56) and torch.equal(x[0], x[1])
    columns = x[0].mean(0)
    assert columns[12:44].min() == 255 and columns[:12].max() == columns[44:].max() == 0


def test_the_middle_of_a_thin_photo_is_scaled_alone(tmp_path: Path) -> None:
    """Scaled whole it would be 256 x 7,680,000 pixels."""
    photo = Image.new("RGB", (1, 30_000))
    photo.paste((0, 250, 0), (0, 14_000, 1, 16_000))
    photo.save(tmp_path / "thin.png")
    x = decode(tmp_path / "thin.png", 224)
    assert x.shape == (3, 224, 224) and bool((x[1] == 250).all() and (x[0] == 0).all())


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (500, 333), (40, 40)])
def test_decoding_agrees_with_scaling_the_whole_and_cutting(size: tuple[int, int], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    photo = Image.fromarray(pixels.numpy())
    photo.save(tmp_path / "a.png")
    w, h = (max(56, round(64 / min(size) * length)) for length in size)
    left, top = (w - 56) // 2, (h - 56) // 2
    whole = photo.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 56, top + 56))
    difference = decode(tmp_path / "a.png", 56).int() - pil_to_tensor(whole)
    assert difference.abs().max() <= 1


def pil_to_tensor(photo) -> torch.Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).int()


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    """A header that promises 50,000 x 50,000 pixels."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with refuses("bomb.png", "is no image"):
        decode(tmp_path / "bomb.png", 32)


def test_photos_are_decoded_when_asked_for(folder: Path, monkeypatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        photos, "decode", lambda file, side: opened.append(file.name) or torch.zeros(3, side, side).byte()
    )
    images = ImageNet(folder=str(folder), side=32).load("train")
    assert len(opened) == 1  # one, to check its shape
    opened.clear()
    train, held = split(images, 0.25)
    assert (len(train), len(held), len(images.to("cpu").first(5)), opened) == (9, 3, 5, [])
    stream = Stream(train, batch_size=4, seed=0, augment="crop-flip")
    assert stream.batch(0)[0].shape == (4, 3, 32, 32) and len(opened) == 4
    assert [len(y) for _, y in batches(held, 2)] == [2, 1] and len(opened) == 7
    assert len(split(images, 0.0)[1]) == 0 and images.take(torch.zeros(0, dtype=torch.int64)).x.shape[0] == 0


def test_pixels_agree_with_the_whole(folder: Path) -> None:
    images = ImageNet(folder=str(folder), side=32).load("test")
    torch.testing.assert_close(images.pixels(torch.tensor([3, 0])), images.x[[3, 0]] / 255)
    assert images.device == torch.device("cpu")


def test_what_is_missing_is_said_in_one_line(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with refuses("FOLDER/train/<class>", "--data"):
        ImageNet().load("train")
    with refuses("cannot be downloaded"):
        ImageNet(folder=str(folder), download=True).load("train")
    with refuses("there is no", "train/<class>/<photo>"):
        ImageNet(folder=str(tmp_path / "none")).load("train")
    for file in (folder / "train").glob("*/*.JPEG"):
        file.write_bytes(b"no photo")
    with refuses(".JPEG", "is no image"):
        ImageNet(folder=str(folder)).load("train")
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    with refuses("Pillow", "pip install pillow"):
        ImageNet(folder=str(folder)).load("train")


def test_hidden_folders_are_no_classes_and_strange_or_too_many_classes_are_refused(folder: Path) -> None:
    (folder / "train" / ".thumbnails").mkdir()
    assert ImageNet(folder=str(folder), side=8).load("train").y.unique().tolist() == [0, 1]
    (folder / "val" / "n03-green").mkdir()
    with refuses("'n03-green'", "is not in train"):
        ImageNet(folder=str(folder), side=8).load("test")
    for i in range(999):
        (folder / "train" / f"x{i}").mkdir()
    with refuses("1,001 classes", "at most 1,000"):
        ImageNet(folder=str(folder), side=8).load("train")


def test_the_package_does_not_need_pillow() -> None:
    assert importlib.util.find_spec("ironrank.data.photos") is not None
    assert not hasattr(photos, "Image")
