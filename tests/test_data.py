"""The data rooms: readers, sets, split, stream, augmentation, download."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import lzma
import os
import pickle
import pickletools
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from expect import refuses
from ironrank.certificates import certify
from ironrank.data import (
    CIFAR10,
    CIFAR100,
    DATASETS,
    MNIST,
    Dataset,
    FashionMNIST,
    FashionSmall,
    Images,
    Stream,
    images_of,
    mix,
    split,
)
from ironrank.data.augment import crop_flip, draw
from ironrank.data.cifar import read_batch, read_binary
from ironrank.data.download import Source, download, fetch
from ironrank.data.idx import read_idx
from ironrank.data.opcodes import read_opcodes
from ironrank.data.published import idx_pair
from ironrank.errors import IronrankError
from ironrank.judge import evaluate

SHARED = Path(__file__).parents[2] / "shared" / "data"
FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(items: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, items.ndim))
        + np.array(items.shape, ">u4").tobytes()
        + items.astype(np.uint8).tobytes()
    )


def some_images(n: int = 10, shape=(1, 4, 4), classes: int = 10, seed: int = 0) -> Images:
    draw_ = np.random.default_rng(seed)
    return Images.from_numpy(draw_.integers(0, 256, (n, *shape), np.uint8), draw_.integers(0, classes, n))


def numbered(n: int) -> Images:
    """Images whose label is their position."""
    return Images(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n))


def write_mnist(
    folder: Path, pack=lambda blob: blob, suffix: str = "", n: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    draw_ = np.random.default_rng(n)
    x, y = draw_.integers(0, 256, (n, 28, 28), np.uint8), draw_.integers(0, 10, n).astype(np.uint8)
    for stem in ("train", "t10k"):
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(x)))
        (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(y)))
    return x, y


def cifar_batch(n: int, classes: int = 10, seed: int = 0) -> dict:
    draw_ = np.random.default_rng(seed)
    labels = [int(c) for c in draw_.integers(0, classes, n)]
    return {"labels": labels, "fine_labels": labels, "data": draw_.integers(0, 256, (n, 3072), np.uint8)}


def python2_batch(batch: dict) -> bytes:
    """The opcodes of the published files: protocol 2 with byte strings."""
    x, labels = batch["data"], batch["labels"]
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
    array += (
        b"(K\x01M" + len(x).to_bytes(2, "little") + b"M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R"
    )
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + x.size.to_bytes(4, "little")
    array += x.tobytes() + b"tb"
    body = (
        text(b"labels") + b"](" + b"".join(b"K" + bytes([c]) for c in labels) + b"e" + text(b"data") + array
    )
    return b"\x80\x02}q\x01(" + body + b"u."


def write_cifar10(folder: Path, dump=python2_batch, n: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate((*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")):
        (folder / name).write_bytes(dump(cifar_batch(n, seed=i)))


# ---- seeds


def test_mix_known_answer_and_range():
    digest = hashlib.blake2b(b"7,3", digest_size=8).digest()
    assert mix(7, 3) == int.from_bytes(digest, "big") // 2
    assert all(0 <= mix(seed, 1) < 2**63 for seed in (-5, 0, 2**200))


def test_mix_keeps_all_parts_apart():
    seeds = {mix(a, b) for a in range(100) for b in range(100)}
    assert len(seeds) == 10_000
    assert len({mix(1, 23), mix(12, 3), mix(1, 2, 3), mix(1, "23"), mix(123)}) == 5


def test_mix_flips_half_of_the_bits():
    flips = [bin(mix(0, t) ^ mix(0, t + 1)).count("1") for t in range(400)]
    assert 30 < np.mean(flips) < 33


# ---- Images


def test_images_pixels_take_first():
    images = some_images(5)
    where = torch.tensor([3, 0, 3])
    assert torch.equal(images.pixels(where), images.x[where].float() / 255)
    assert images.pixels(where).dtype == torch.float32
    assert torch.equal(images.take(where).y, images.y[where])
    assert len(images.first(2)) == 2 and len(images.first(99)) == 5
    with refuses("first 0", "at least 1"):
        images.first(0)


def test_what_counts_as_images(mnist):
    images = MNIST(folder=mnist).load("test").first(5)
    x, y = images.pixels(torch.arange(5)), images.y
    for data in (images, (x, y), [x.double(), y], (images.x, y)):
        found = images_of(data)
        assert torch.equal(found.x, images.x) and torch.equal(found.y, y)
    assert len(images_of(MNIST(folder=mnist))) == len(MNIST(folder=mnist).load("test"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert evaluate(net, (x, y), [], latency_runs=1)["clean"] == certify(net, (x, y))["clean"]
    for data, words in (((x + 0.001, y), "no bytes divided by 255"), ((-x, y), "no bytes"), (x, "Tensor in place"),
                        ((x * 255, y), "no bytes"), ((x, y[:2]), "one per image")):  # fmt: skip
        with refuses(words):
            images_of(data)


def test_images_refuse_what_does_not_fit():
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    for bad in (x.float(), x[0], x[:, 0]):
        with refuses("uint8"):
            Images(bad, y)
    for bad in (y[:2], y.float(), y[:, None]):
        with refuses("labels", "one per image"):
            Images(x, bad)


def test_from_numpy_does_not_share_read_only_memory():
    source = np.frombuffer(bytes(16), np.uint8).reshape(1, 1, 4, 4)
    images = Images.from_numpy(source, np.array([3], np.uint8))
    images.x[0] = 1
    assert source.max() == 0 and images.y.dtype == torch.int64


# ---- split


@given(n=st.integers(2, 200), fraction=st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_split_is_a_partition(n, fraction):
    held = round(fraction * n)
    if fraction > 0 and held in (0, n):
        with refuses("holds out"):
            split(numbered(n), fraction)
        return
    train, validation = split(numbered(n), fraction)
    assert len(validation) == held
    assert sorted(train.y.tolist() + validation.y.tolist()) == list(range(n))
    again = split(numbered(n), fraction)
    assert torch.equal(again[1].y, validation.y) and torch.equal(again[0].y, train.y)


def test_larger_splits_hold_out_what_smaller_ones_do_and_are_spread():
    held = [split(numbered(1000), fraction)[1].y for fraction in (0.1, 0.25, 0.5)]
    assert set(held[0].tolist()) < set(held[1].tolist()) < set(held[2].tolist())
    assert all(400 < one.double().mean() < 600 for one in held)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_split_refuses_the_fraction(fraction):
    with refuses("validation=", "below 1"):
        split(numbered(10), fraction)


# ---- augmentation


def slow_crop_flip(x: torch.Tensor, noise: torch.Tensor, padding: int) -> torch.Tensor:
    """Pixel by pixel, from the definition."""
    out = torch.zeros_like(x)
    b, _, h, w = x.shape
    for i in range(b):
        row, column, flip = noise[i].tolist()
        for r in range(h):
            for s in range(w):
                source_r = r + row - padding
                source_s = (w - 1 - s if flip else s) + column - padding
                if 0 <= source_r < h and 0 <= source_s < w:
                    out[i, :, r, s] = x[i, :, source_r, source_s]
    return out


@pytest.mark.parametrize(("shape", "padding"), [((5, 3, 6, 7), 4), ((4, 1, 5, 5), 2), ((1, 2, 3, 3), 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_equals_its_slow_twin(shape, padding, dtype):
    x = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    noise = draw(shape[0], seed=3, padding=padding)
    assert torch.equal(crop_flip(x, noise, padding), slow_crop_flip(x, noise, padding))


def test_crop_flip_leaves_its_input_and_the_middle_alone():
    images = some_images(4, (3, 8, 8))
    before = images.x.clone()
    middle = torch.tensor([[4, 4, 0]]).expand(4, 3)
    assert torch.equal(crop_flip(images.x, middle), before)
    crop_flip(images.x, draw(4, seed=0)).zero_()
    assert torch.equal(images.x, before)


def test_draw_is_uniform_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    noise = draw(9000, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    for column in (0, 1):
        counts = noise[:, column].bincount()
        assert len(counts) == 9 and (counts - 1000).abs().max() < 150
    assert abs(noise[:, 2].float().mean() - 0.5) < 0.03
    assert torch.equal(noise, draw(9000, seed=5)) and not torch.equal(noise, draw(9000, seed=6))


# ---- stream


def test_stream_is_a_pure_function_of_seed_and_step():
    images = some_images(23, (1, 6, 6))
    forward, other = (Stream(images, 5, seed=3, augment="crop-flip") for _ in range(2))
    steps = range(3 * forward.steps_per_epoch)
    batches = [forward.batch(t) for t in steps]
    for t in [*reversed(steps), 7, 0, 7]:
        x, y = other.batch(t)
        assert torch.equal(x, batches[t][0]) and torch.equal(y, batches[t][1])
    assert not torch.equal(Stream(images, 5, seed=4).batch(0)[0], Stream(images, 5, seed=3).batch(0)[0])


def test_stream_shows_every_image_once_an_epoch_in_a_new_order():
    stream = Stream(numbered(23), 5, seed=0)
    assert stream.steps_per_epoch == 5
    orders = []
    for epoch in range(3):
        labels = [stream.batch(epoch * 5 + k)[1] for k in range(5)]
        assert [len(y) for y in labels] == [5, 5, 5, 5, 3]
        orders.append(torch.cat(labels).tolist())
        assert sorted(orders[-1]) == list(range(23))
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_shards_cover_the_global_batch(world, augment):
    images = some_images(23, (3, 6, 6))
    whole = Stream(images, 5, seed=1, augment=augment)
    shards = [Stream(images, 5, seed=1, augment=augment, shard=(rank, world)) for rank in range(world)]
    for t in range(10):
        x, y = whole.batch(t)
        for rank, shard in enumerate(shards):
            assert torch.equal(shard.batch(t)[0], x[rank::world])
            assert torch.equal(shard.batch(t)[1], y[rank::world])


def test_augmentation_keeps_the_labels_and_changes_with_the_step():
    images = some_images(8, (1, 12, 12))
    plain, moved = Stream(images, 8, seed=0), Stream(images, 8, seed=0, augment="crop-flip")
    assert torch.equal(plain.batch(0)[1], moved.batch(0)[1])
    assert not torch.equal(plain.batch(0)[0], moved.batch(0)[0])
    x, _ = moved.batch(0)
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    whole = Stream(some_images(1, (1, 12, 12)), 1, seed=0, augment="crop-flip")
    assert len({whole.batch(t)[0].numpy().tobytes() for t in range(50)}) > 30


def test_stream_refuses_wrong_arguments():
    images = numbered(9)
    for words, change in [
        (("batch_size=0",), {"batch_size": 0}),
        (("augment='flip'", "crop-flip"), {"augment": "flip"}),
        (("shard=(2, 2)",), {"shard": (2, 2)}),
        (("too few for 2 processes",), {"batch_size": 4, "shard": (0, 2)}),
    ]:
        with refuses(*words):
            Stream(images, **({"batch_size": 3, "seed": 0} | change))
    with refuses("no image"):
        Stream(images.take(torch.tensor([], dtype=torch.int64)), 3, 0)
    with refuses("step -1"):
        Stream(images, 3, 0).batch(-1)


# ---- IDX


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_idx_known_answer(tmp_path, suffix, pack):
    items = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / f"items{suffix}"
    path.write_bytes(pack(idx(items)))
    assert np.array_equal(read_idx(path, (3, 4)), items)
    path.write_bytes(pack(bytes.fromhex("00000801 00000003 070809".replace(" ", ""))))
    assert read_idx(path).tolist() == [7, 8, 9]


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", ("not an IDX",)),
        (b"\x1f\x8b\x08\x00", ("not an IDX", "1f8b0800")),
        (b"\1" + GOOD[1:], ("not an IDX",)),
        (GOOD[:2] + b"\x0d" + GOOD[3:], ("type 13", "expected type 8")),
        (GOOD[:3] + b"\1" + GOOD[4:], ("1 dimension", "with 3")),
        (GOOD[:9], ("header is cut off",)),
        (GOOD[:-1], ("promises 24 bytes", "only 23")),
        (GOOD + b"\0", ("promises 24 bytes", "more")),
        (idx(np.zeros((2, 4, 3))), ("(4, 3)", "expected (3, 4)")),
        (GOOD[:4] + b"\xff" * 4 + GOOD[8:], ("promises", "more than")),
    ],
)
def test_idx_refuses_malformed_files(tmp_path, blob, words):
    for suffix, pack in (("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(pack(blob))
        with refuses(path.name, *words):
            read_idx(path, (3, 4))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_idx_refuses_damaged_archives(tmp_path, suffix, pack):
    path, blob = tmp_path / f"bad{suffix}", pack(idx(np.random.default_rng(0).integers(0, 256, (9, 3, 4))))
    middle = len(blob) // 2
    for bad in (
        blob[:-9],
        blob[:middle],
        b"plain text",
        blob[:middle] + b"\xaa\x55" * 9 + blob[middle + 18 :],
    ):
        path.write_bytes(bad)
        with refuses(path.name):
            read_idx(path, (3, 4))


def test_idx_names_a_missing_file(tmp_path):
    with refuses("nothing.gz", "no such file"):
        read_idx(tmp_path / "nothing.gz")
    with refuses(str(tmp_path), "cannot be read"):
        read_idx(tmp_path)


# ---- MNIST layout


@pytest.mark.parametrize("inner", ["MNIST/raw", "MNIST", "raw", "mnist", "."])
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_mnist_is_found_in_every_layout(tmp_path, inner, suffix, pack):
    x, y = write_mnist(tmp_path / inner, pack, suffix)
    for name in ("train", "test"):
        images = MNIST(folder=str(tmp_path)).load(name)
        assert np.array_equal(images.x[:, 0].numpy(), x) and np.array_equal(images.y.numpy(), y)


def test_fashion_prefers_its_own_folder(tmp_path):
    write_mnist(tmp_path, n=5)
    write_mnist(tmp_path / "MNIST/raw", n=4)
    write_mnist(tmp_path / "FashionMNIST/raw", n=7)
    assert len(FashionMNIST(folder=str(tmp_path)).load("train")) == 7
    assert len(MNIST(folder=str(tmp_path)).load("train")) == 4


def test_mnist_missing_files(tmp_path):
    with refuses("mnist", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "--data DIR", "download=True"):
        MNIST().load("test")
    with refuses("no train-images-idx3-ubyte", str(tmp_path), "MNIST/raw", "--data DIR"):
        MNIST(folder=str(tmp_path)).load("train")
    with refuses("there is no folder", "absent"):
        MNIST(folder=str(tmp_path / "absent")).load("train")
    write_mnist(tmp_path / "raw")
    (tmp_path / "raw/train-labels-idx1-ubyte").unlink()
    with refuses("raw lacks train-labels-idx1-ubyte"):
        MNIST(folder=str(tmp_path)).load("train")


def test_mnist_files_that_do_not_fit(tmp_path):
    write_mnist(tmp_path)
    labels, images = tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte"
    labels.write_bytes(idx(np.zeros(5)))
    with refuses("train-images-idx3-ubyte", "6 images", "train-labels-idx1-ubyte", "5 labels"):
        MNIST(folder=str(tmp_path)).load("train")
    labels.write_bytes(idx(np.full(6, 10)))
    with refuses("train-labels-idx1-ubyte", "label 10", "expected 0 to 9"):
        MNIST(folder=str(tmp_path)).load("train")
    images.write_bytes(idx(np.zeros((6, 32, 32))))
    with refuses("train-images-idx3-ubyte", "(32, 32)", "(28, 28)"):
        MNIST(folder=str(tmp_path)).load("train")
    images.write_bytes(idx(np.zeros((0, 28, 28))))
    labels.write_bytes(idx(np.zeros(0)))
    with refuses("train-labels-idx1-ubyte", "holds no image"):
        MNIST(folder=str(tmp_path)).load("train")


def test_mnist_refuses_fashion_mnist_under_the_same_names(tmp_path):
    write_mnist(tmp_path, n=10)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([9, 2, 1, 1, 6, 1, 4, 6, 5, 7])))
    with refuses("t10k-labels-idx1-ubyte", "holds fashion-mnist, not mnist"):
        MNIST(folder=str(tmp_path)).load("test")
    assert len(FashionMNIST(folder=str(tmp_path)).load("test")) == 10


# ---- pickles


def test_python_batches_of_every_writer(tmp_path):
    batch, path = cifar_batch(4), tmp_path / "batch"
    expected = batch["data"].reshape(-1, 3, 32, 32)
    blobs = [python2_batch(batch)] + [pickle.dumps(batch, protocol) for protocol in (3, 4)]
    blobs.append(pickle.dumps({key.encode(): value for key, value in batch.items()}, 4))
    blobs.append(pickle.dumps(batch | {"data": np.asfortranarray(batch["data"])}, 4))
    for blob in blobs:
        path.write_bytes(blob)
        x, y = read_batch(path, "labels")
        assert np.array_equal(x, expected) and y.tolist() == batch["labels"]


def test_python2_twin_is_what_pickle_reads():
    batch = cifar_batch(4)
    read = pickle.loads(python2_batch(batch), encoding="latin1")
    assert np.array_equal(read["data"], batch["data"]) and read["labels"] == batch["labels"]


def test_opcodes_read_plain_values(tmp_path):
    value = {"a": [1, -2, 70_000, 2**40], 5: (None, True, False), b"c": {"d": ((), [], {}, "text", b"bytes")}}
    value["again"] = value["a"]
    for protocol in (3, 4, 5):
        path = tmp_path / "plain"
        path.write_bytes(pickle.dumps(value, protocol))
        assert read_opcodes(path) == value


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def bombs(target: Path) -> list[bytes]:
    command = f"touch {target}"
    calls = [
        Bomb(os.system, command),
        Bomb(eval, f"open({str(target)!r}, 'w')"),
        Bomb(open, str(target), "w"),
    ]
    calls.append(Bomb(functools.partial, os.system, command))
    blobs = [pickle.dumps({"data": call, "labels": []}, protocol) for call in calls for protocol in range(6)]
    blobs.append(b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.")
    blobs.append(b"(S'" + command.encode() + b"'\nios\nsystem\n.")  # INST
    blobs.append(b"(cos\nsystem\nS'" + command.encode() + b"'\no.")  # OBJ
    blobs.append(
        b"\x80\x02cos\nsystem\nU" + bytes([len(command)]) + command.encode() + b"\x85\x81."
    )  # NEWOBJ
    return blobs


def test_malicious_pickles_are_refused_and_not_run(tmp_path):
    target = tmp_path / "owned"
    for blob in bombs(target):
        path = tmp_path / "data_batch_1"
        path.write_bytes(blob)
        with refuses("data_batch_1", "refused"):
            read_batch(path, "labels")
        assert not target.exists()


def test_the_refusal_names_what_was_asked_for(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02cos\nsystem\nU\x02ls\x85R.")
    with refuses("refused", "'os.system'"):
        read_opcodes(path)


REBUILD = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", ("refused", "ndarray")),  # a call with other arguments
        (b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.", ("refused", "dtype")),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nK\x01\x85R.", ("refused", "rebuild")),
        (b"\x80\x02K\x01(K\x02\x86t\x86.", ("damaged", "stack")),  # a tuple across a mark
        (b"\x80\x02}U\x01aK\x01\x86b.", ("refused", "state")),
        (b"\x80\x02K\x01K\x02\x86K\x01\x85R.", ("refused", "call")),
        (b"\x80\x02P1\n.", ("refused", "PERSID")),
        (b"\x80\x02\x82\x01.", ("refused", "EXT1")),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", ("refused", "copyreg._reconstructor")),
        (b"\x80\x02cbuiltins\ngetattr\n.", ("refused", "builtins.getattr")),
        (REBUILD + b"(K\x01K\x02\x85NNU\x02abtb.", ("refused", "another type")),
        (REBUILD + b"(K\x01K\x03\x85" + DTYPE + b"\x89U\x02abtb.", ("damaged", "array of 3 bytes holds 2")),
        (REBUILD + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89U\x00tb.", ("damaged",)),
        (REBUILD + b"(K\x01K\x02\x85tb.", ("damaged",)),
        (b"", ("damaged",)),
        (b"plain text, no pickle", ("damaged",)),
        (b"\x80\x02.", ("damaged", "stack")),
        (b"\x80\x02K\x01K\x02.", ("damaged",)),
        (b"\x80\x02K\x01.trailing", ("damaged",)),
        (b"\x80\x02K\x01", ("damaged",)),
        (b"\x80\x02](K\x01.", ("damaged",)),
        (b"\x80\x02K\x01e.", ("damaged",)),
        (b"\x80\x02h\x07.", ("damaged",)),
        (b"\x80\x02}]K\x01s.", ("damaged",)),
        (b"\x80\x02}(K\x01u.", ("damaged",)),
        (b"\x80\x02N(K\x01e.", ("damaged", "list")),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", ("damaged",)),
        (b"\x80\x04K\x01K\x02\x93.", ("refused",)),
    ],
)
def test_opcodes_refuse_everything_else(tmp_path, blob, words):
    path = tmp_path / "bad"
    path.write_bytes(blob)
    with refuses("bad", *words):
        read_opcodes(path)


def test_nested_references_cost_nothing(tmp_path):
    """Tuples of the tuple before, 2^n leaves when spelled out: read without spelling them out."""
    path = tmp_path / "laughs"
    path.write_bytes(b"\x80\x02K\x01" + b"q\x01h\x01\x86" * 5000 + b".")
    assert isinstance(read_opcodes(path), tuple)
    with refuses("laughs", "no dict"):
        read_batch(path, "labels")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_batches_give_a_batch_or_one_line(tmp_path, data):
    blob = bytearray(pickle.dumps(cifar_batch(1) | {"data": np.zeros((1, 3072), np.uint8)}, 4))
    starts = [position for _, _, position in pickletools.genops(bytes(blob))]
    spots = sorted({*starts, *(start + 1 for start in starts[:-1])})
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.sampled_from(spots))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzzed"
    path.write_bytes(
        bytes(blob[: data.draw(st.integers(1, len(blob)))]) if data.draw(st.booleans()) else bytes(blob)
    )
    try:
        x, y = read_batch(path, "labels")
        assert x.shape == (len(y), 3, 32, 32)
    except IronrankError as error:
        assert "\n" not in str(error)


# ---- CIFAR layout


@pytest.mark.parametrize("inner", ["cifar-10-batches-py", "."])
def test_cifar10_python_form(tmp_path, inner):
    write_cifar10(tmp_path / inner)
    train, test = (CIFAR10(folder=str(tmp_path)).load(name) for name in ("train", "test"))
    assert len(train) == 15 and len(test) == 3
    expected = np.concatenate([cifar_batch(3, seed=i)["data"] for i in range(5)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.x.numpy(), expected)
    assert test.y.tolist() == cifar_batch(3, seed=5)["labels"]


@pytest.mark.parametrize("inner", ["cifar-10-batches-bin", "."])
def test_cifar10_binary_form_equals_the_python_form(tmp_path, inner):
    def records(batch):
        return np.hstack([np.array(batch["labels"], np.uint8)[:, None], batch["data"]]).tobytes()

    write_cifar10(tmp_path / "python")
    write_cifar10(tmp_path / inner, records)
    for path in (tmp_path / inner).glob("*_batch*"):
        path.rename(path.with_name(path.name + ".bin"))
    binary, python = (CIFAR10(folder=str(f)).load("train") for f in (tmp_path, tmp_path / "python"))
    assert torch.equal(binary.x, python.x) and torch.equal(binary.y, python.y)


def test_cifar100_both_forms(tmp_path):
    batch = cifar_batch(4, classes=100)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "inner").mkdir()
    for name in ("train", "test"):
        (tmp_path / "cifar-100-python" / name).write_bytes(
            pickle.dumps(batch | {"coarse_labels": [0] * 4}, 4)
        )
        coarse, fine = np.zeros((4, 1), np.uint8), np.array(batch["fine_labels"], np.uint8)[:, None]
        (tmp_path / "inner" / f"{name}.bin").write_bytes(np.hstack([coarse, fine, batch["data"]]).tobytes())
    for folder in (tmp_path, tmp_path / "inner"):
        images = CIFAR100(folder=str(folder)).load("test")
        assert images.y.tolist() == batch["fine_labels"]
        assert np.array_equal(images.x.numpy().reshape(4, -1), batch["data"])


def test_cifar_missing_and_unfit_files(tmp_path):
    with refuses("cifar10", "data_batch_1", "--data DIR", "download=True"):
        CIFAR10().load("train")
    with refuses("no test", "cifar-100-python", "cifar-100-binary"):
        CIFAR100(folder=str(tmp_path)).load("test")
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    (folder / "data_batch_4").unlink()
    with refuses("cifar-10-batches-py lacks data_batch_4:"):
        CIFAR10(folder=str(tmp_path)).load("train")
    path = folder / "test_batch"
    good = cifar_batch(3)
    for change, words in [
        ({"labels": [0, 1]}, ("3 images", "2 labels")),
        ({"labels": [0, 1, 10]}, ("label 10", "0 to 9")),
        ({"labels": [0, 1, -1]}, ("no list of labels",)),
        ({"labels": [0, 1, 2**70]}, ("no list of labels",)),
        ({"labels": "012"}, ("no list of labels",)),
        ({"data": np.zeros((3, 3071), np.uint8)}, ("(3, 3071)", "(n, 3072)")),
        ({"data": None}, ("'data' is missing",)),
        ({"labels": None, "two\nlines": 0}, ("no list of labels", r"two\nlines")),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, ("holds no image",)),
    ]:
        path.write_bytes(pickle.dumps(good | change, 4))
        with refuses("test_batch", *words):
            CIFAR10(folder=str(tmp_path)).load("test")
    path.write_bytes(pickle.dumps({"data": good["data"], "fine_labels": [1, 2, 3]}, 4))
    with refuses("test_batch", "'labels'", "fine_labels"):
        CIFAR10(folder=str(tmp_path)).load("test")
    path.write_bytes(python2_batch(good)[:-2000])
    with refuses("test_batch", "damaged"):
        CIFAR10(folder=str(tmp_path)).load("test")


def test_cifar_binary_of_wrong_size(tmp_path):
    path = tmp_path / "test_batch.bin"
    for size in (0, 3072, 3073 * 2 + 1):
        path.write_bytes(bytes(size))
        with refuses("test_batch.bin", str(size), "3073"):
            read_binary(path, 1)
    path.write_bytes(b"\x0b" + bytes(3072))
    with refuses("test_batch.bin", "label 11"):
        CIFAR10(folder=str(tmp_path)).load("test")
    with refuses("nothing", "cannot be read"):
        read_binary(tmp_path / "nothing", 1)
    with refuses("nothing", "cannot be read"):
        read_batch(tmp_path / "nothing", "labels")


# ---- download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder on this machine; yields (folder, base address)."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}/"
        httpd.shutdown()
        thread.join()


def md5(blob: bytes) -> str:
    return hashlib.md5(blob).hexdigest()


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_download_checks_and_leaves_nothing_behind(server, tmp_path):
    folder, base = server
    (folder / "file").write_bytes(b"content")
    out = tmp_path / "out"
    download([Source(base + "file", "inner/file", md5(b"content"))], out)
    assert everything(out) == ["inner", "inner/file"] and (out / "inner/file").read_bytes() == b"content"
    with refuses(base + "file", "MD5", md5(b"content"), md5(b"other")):
        download([Source(base + "file", "bad", md5(b"other"))], out)
    with refuses(base + "absent", "cannot be fetched", "404"):
        download([Source(base + "absent", "bad", md5(b""))], out)
    with refuses("cannot be fetched"):
        fetch("http://127.0.0.1:9/nobody", out / "bad", md5(b""))
    with refuses("MD5"):
        fetch(base + "file", out / "bad", md5(b"other"))
    assert everything(out) == ["inner", "inner/file"]


def test_download_keeps_what_is_there(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    download([Source(server[1] + "absent", "file", md5(b""))], tmp_path)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_download_into_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "a-file").write_bytes(b"")
    with refuses("cannot be written"):
        download([Source(server[1] + "x", "a-file/x", md5(b""))], tmp_path)


def tar_of(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, blob in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(blob)
            tar.addfile(entry, io.BytesIO(blob))
        if link:
            entry = tarfile.TarInfo(link[0])
            entry.type, entry.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(entry)
    return buffer.getvalue()


def test_bad_archives_leave_nothing_behind(server, tmp_path):
    folder, base = server
    out = tmp_path / "out"
    blobs = [
        tar_of({"../../evil": b"x"}),
        tar_of({}, link=("inner", "/etc")),
        tar_of({"elsewhere/file": b"x"}),
        tar_of({"inner/file": b"x" * 9000})[:-30],
        b"no archive",
    ]
    # A deflate stream that turns invalid after the archive's first members.
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(gzip.decompress(tar_of({"inner/file": bytes(200_000)}))[:100_000])
    blobs.append(start + packer.flush(zlib.Z_FULL_FLUSH) + b"\x07" * 50)
    for blob in blobs:
        (folder / "tar").write_bytes(blob)
        with refuses(base + "tar"):
            download([Source(base + "tar", "inner", md5(blob), archive=True)], out)
        assert everything(out) == [] and not (tmp_path / "evil").exists()


def test_cifar10_downloads_and_loads(server, tmp_path, monkeypatch):
    folder, base = server
    write_cifar10(tmp_path / "made")
    blob = tar_of(
        {f"cifar-10-batches-py/{path.name}": path.read_bytes() for path in (tmp_path / "made").iterdir()}
    )
    (folder / "cifar.tar.gz").write_bytes(blob)
    source = Source(base + "cifar.tar.gz", "cifar-10-batches-py", md5(blob), archive=True)
    monkeypatch.setattr(CIFAR10, "sources", (source,))
    data = CIFAR10(folder=str(tmp_path / "new" / "data"), download=True)
    assert len(data.load("train")) == 15
    assert everything(tmp_path / "new" / "data")[0] == "cifar-10-batches-py"
    monkeypatch.setattr(CIFAR10, "sources", ())
    assert len(data.load("test")) == 3


def test_mnist_downloads_and_loads(server, tmp_path, monkeypatch):
    folder, base = server
    x, _ = write_mnist(folder, gzip.compress, ".gz")
    sources = [Source(base + p.name, f"MNIST/raw/{p.name}", md5(p.read_bytes())) for p in folder.iterdir()]
    monkeypatch.setattr(MNIST, "sources", tuple(sources))
    images = MNIST(folder=str(tmp_path / "data"), download=True).load("train")
    assert np.array_equal(images.x[:, 0].numpy(), x)
    with refuses("download=True"):
        MNIST(download=True).load("train")


# ---- the sets


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_set_states_its_facts(name):
    data = DATASETS[name]()
    assert isinstance(data, Dataset) and data.name == name
    channels, height, width = data.spec.shape
    assert (height, width) in [(28, 28), (32, 32), (224, 224)]
    assert len(data.spec.mean) == len(data.spec.std) == channels and min(data.spec.std) > 0
    assert data.augment == ("crop-flip" if name.startswith(("cifar", "imagenet")) else "none")
    assert hash(data) == hash(DATASETS[name]()) and data == DATASETS[name]()
    with refuses(name, "'validation'", "train, test"):
        data.load("validation")
    with refuses(f"{name}.augment", "crop-flip"):
        DATASETS[name](augment="mixup")
    with refuses(f"{name}.validation", "below 1"):
        DATASETS[name](validation=1.0)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"fashion-small", "imagenet"}))
def test_published_sources_are_complete(name):
    sources = DATASETS[name].sources
    assert all(len(source.md5) == 32 and source.url.startswith("http") for source in sources)
    assert len({source.path for source in sources}) == len(sources) in (1, 4)


def test_embedded_set_is_balanced_and_small():
    train, test = (FashionSmall().load(name) for name in ("train", "test"))
    assert tuple(train.x.shape) == (10_000, 1, 28, 28) and tuple(test.x.shape) == (2_000, 1, 28, 28)
    assert train.y.bincount().tolist() == [1000] * 10 and test.y.bincount().tolist() == [200] * 10
    mean, std = train.x.float().div(255).mean(), train.x.float().div(255).std()
    assert abs(mean - FashionSmall().spec.mean[0]) < 0.005 and abs(std - FashionSmall().spec.std[0]) < 0.005
    assert len({image.tobytes() for image in train.x.numpy()}) > 9_990
    folder = Path(importlib.util.find_spec("ironrank.data").origin).parent / "embedded"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    assert "Zalando" in (folder / "LICENSE").read_text() and "Zalando" in (folder / "NOTICE").read_text()


def test_embedded_set_takes_no_folder():
    for arguments in ({"folder": "somewhere"}, {"download": True}):
        with refuses("fashion-small", "part of the package"):
            FashionSmall(**arguments)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_embedded_set_is_made_by_its_tool(tmp_path):
    """The tool's choice, applied to the originals, is what the package holds."""
    path = Path(__file__).parents[1] / "tools" / "make_embedded.py"
    spec = importlib.util.spec_from_file_location("make_embedded", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    images, labels = (
        tool.read_original(path, item)
        for path, item in zip(idx_pair(FASHION, "test"), ((28, 28), ()), strict=True)
    )
    chosen = tool.choose(labels, tool.PER_CLASS["test"], tool.SEED)
    embedded = FashionSmall().load("test")
    assert np.array_equal(embedded.x[:, 0].numpy(), images[chosen])
    assert np.array_equal(embedded.y.numpy(), labels[chosen])
    tool.write(tmp_path / "labels.xz", labels[chosen])
    embedded_file = Path(importlib.util.find_spec("ironrank.data").origin).parent / "embedded"
    assert np.array_equal(read_idx(tmp_path / "labels.xz"), read_idx(idx_pair(embedded_file, "test")[1]))


# ---- real files


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no shared data beside the checkout")
def test_real_mnist():
    train, test = (MNIST(folder=str(SHARED)).load(name) for name in ("train", "test"))
    assert len(train) == 60_000 and len(test) == 10_000
    assert train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(train.x.float().mean() / 255 - 0.1307) < 1e-4
    with refuses("holds mnist, not fashion-mnist"):
        FashionMNIST(folder=str(SHARED / "mnist")).load("test")


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no shared data beside the checkout")
def test_real_cifar10(tmp_path):
    pytest.importorskip("PIL")
    spec = importlib.util.spec_from_file_location("restore", SHARED / "restore.py")
    restore = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(restore)
    assert restore.main(tmp_path, ["cifar10"]) == 0
    for name, n in (("train", 50_000), ("test", 10_000)):
        images, (x, y) = CIFAR10(folder=str(tmp_path)).load(name), restore.load("cifar10", name)
        assert len(images) == n and images.y.bincount().tolist() == [n // 10] * 10
        assert np.array_equal(images.x.numpy(), x) and np.array_equal(images.y.numpy(), y)
