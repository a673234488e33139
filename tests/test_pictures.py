"""Pictures of the report: PNG, adversarial examples, sensitive directions, and what stands in a run folder."""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from evaluations import Page, evaluation, held, small
from expect import refuses
from ironrank import verbs
from ironrank.attacks import PGD
from ironrank.config import build_run
from ironrank.data import Images
from ironrank.files import read_tensors, write_json, write_tensors
from ironrank.judge.before import before
from ironrank.judge.examples import examples, write_examples
from ironrank.methods import CondLR
from ironrank.recipes.demo import demo
from ironrank.report import build, gather, pictures, png, weakness
from ironrank.settings import encode
from ironrank.training import train


def pixels_of(uri):
    """Decode a PNG of this package by the letter of its format."""
    raw = base64.b64decode(uri.removeprefix(png.PREFIX))
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    place, found = 8, {}
    while place < len(raw):
        (length,) = struct.unpack(">I", raw[place : place + 4])
        kind, body = raw[place + 4 : place + 8], raw[place + 8 : place + 8 + length]
        assert struct.unpack(">I", raw[place + 8 + length : place + 12 + length])[0] == zlib.crc32(
            kind + body
        )
        found[kind], place = body, place + 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", found[b"IHDR"][:10])
    channels = {0: 1, 2: 3}[colour]
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert depth == 8 and b"IEND" in found and (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape(height, width, channels).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 4, 7), (1, 1, 1)])
def test_a_png_holds_the_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (pixels_of(png.uri(pixels)) == pixels).all()
    assert png.checked("here", png.uri(pixels)) == png.uri(pixels)


def test_a_change_is_drawn_around_grey():
    change = np.array([[[-0.1, 0.0, 0.1]]])
    assert png.signed(change, 0.1).tolist() == [[[0, 128, 255]]]
    assert png.signed(np.zeros((1, 1, 2)), 0.0).tolist() == [[[128, 128]]]


def test_large_images_are_thinned():
    found, step = png.thinned(np.zeros((2, 3, 224, 200)))
    assert step == 3 and max(found.shape[2:]) <= png.WIDEST


# --- adversarial examples


class Bright(nn.Module):
    """Reads class 1 where the mean pixel is above a half."""

    def forward(self, x):
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([0.5 - mean, mean - 0.5], 1)


def bright(*means, label=None):
    x = torch.stack([torch.full((1, 4, 4), m) for m in means]).mul(255).round().to(torch.uint8)
    return Images(x, torch.tensor([int(m > 0.5) if label is None else label for m in means]))


def test_examples_show_what_turned_first():
    attack = PGD(norm="Linf", eps=0.1, steps=3, random_start=False)
    found = examples(Bright(), bright(0.9, 0.45, 0.1, 0.55, 0.58), attack, shown=4)
    assert found["index"].tolist() == [1, 3, 4, 0]  # the turned ones in order, then the first that withstood
    assert found["read"].tolist() == found["label"].tolist() == [0, 1, 1, 1]
    assert found["read_attacked"].tolist() == [1, 0, 0, 1]
    change = found["attacked"] - found["clean"]
    assert change.abs().max() <= 0.1 + 1e-6 and change.abs().amax((1, 2, 3)).min() > 0.09


def test_wrong_images_are_no_examples():
    found = examples(Bright(), bright(0.9, 0.8, label=0), PGD(eps=0.1, steps=1))
    assert found["clean"].shape == (0, 1, 4, 4)
    assert pictures.read("here", pictures.drawn({k: v.numpy() for k, v in found.items()}, {})) is None


def test_examples_are_the_same_each_time(tmp_path):
    attack, images = PGD(norm="L2", eps=0.5, steps=2), bright(0.9, 0.45, 0.1)
    files = [write_examples(tmp_path / name, Bright(), images, attack, seed=3) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    arrays, notes = read_tensors(files[0])
    facts = json.loads(notes["examples"])
    assert facts == {"attack": "PGD-2 L2", "norm": "L2", "eps": 0.5, "seed": 3, "among": 3}
    plain = pictures.drawn({k: v.numpy() for k, v in arrays.items()}, facts)
    seen = pictures.read("here", json.loads(json.dumps(plain)))
    assert (pixels_of(seen.trios[0].pictures[0].source) == images.x[plain["shown"][0]["index"]].numpy()).all()
    assert "PGD-2 L2" in seen.caption and "seed 3" in seen.caption


@pytest.mark.parametrize("broken", ["clean", "label", "attacked"])
def test_damaged_examples_are_one_line(broken):
    arrays = {k: v.numpy() for k, v in examples(Bright(), bright(0.9, 0.45), PGD(steps=1)).items()}
    for value in (None, arrays[broken][:1], np.zeros((2, 7, 4, 4)), np.zeros(())):
        damaged = {k: v for k, v in arrays.items() if k != broken} | (
            {} if value is None else {broken: value}
        )
        with refuses("examples.safetensors is damaged"):
            pictures.drawn(damaged, {})


# --- the weakness map


def test_directions_become_pictures():
    tensors = {
        "global": np.ones((2, 3, 8, 8)),
        "one": np.eye(5),
        "vector": np.ones(9),
        "wide": np.ones((1, 2, 9, 9)),
    }
    found = weakness.drawn(tensors)
    assert [item["name"] for item in found] == ["global 1", "global 2", "one"]
    assert pixels_of(found[2]["image"])[0].tolist() == [
        [255 if i == j else 128 for j in range(5)] for i in range(5)
    ]
    assert len(weakness.drawn({"many": np.ones((100, 1, 2, 2))})) == pictures.MOST


def test_a_weakness_map_is_shown_as_it_is():
    layers = [{"name": "fc1", "stable_rank": 2.5, "cond": 8.0, "cond_before": 80.0}]
    raw = {"schema": 1, "layers": layers, "universal": {"eps": 0.1, "accuracy": 0.5}, "command": "ironrank weakness n",
           "pictures": weakness.drawn({"d": np.eye(4)})}  # fmt: skip
    row = evaluation("net", weakness=raw) | {"layers": [], "curve": []}
    report = build([row], title="t")
    page = Page(report.html())
    held(page, report.html())
    assert page.tags.count("img") == 1
    for words in ("stable rank", "cond before", "80.0", "universal accuracy", "ironrank weakness n"):
        assert words in page.said and words in report.markdown(), words


# --- run folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder after no epoch at all, judged on a few images."""
    out = tmp_path_factory.mktemp("run") / "net"
    train(demo("condlr", tiny=True, epochs=0, seed=2), out)
    verbs.evaluate(out, n=12, steps=1, latency_runs=1)
    return out


def test_a_folder_tells_what_its_net_began_with(folder):
    found = before(folder)
    assert found["what"].startswith("first weights") and [x["name"] for x in found["layers"]][-1] == "fc2"
    row = gather.gather(folder, verbs.evaluate(folder, n=4, steps=1, latency_runs=1))
    after = {layer["name"]: layer for layer in row["layers"]}
    rank = after["fc1"]["rank"]
    assert rank < found["layers"][2]["rank"] and isinstance(CondLR().name, str)
    assert max(found["layers"][2]["singular_values"]) / min(found["layers"][2]["singular_values"]) > 1.2


def test_a_folder_is_gathered_whole(folder, tmp_path):
    write_tensors(folder / "weakness.safetensors", {"d": torch.eye(6)})
    write_json(folder / "weakness.json", {"schema": 1, "layers": []})
    files, made = [tmp_path / name for name in ("a.html", "b.html")], []
    for file in files:  # kept examples the first time, drawn anew the second
        made.append(verbs.report([folder], html=file, title="One net"))
        (folder / "examples.safetensors").unlink(missing_ok=True)
    first, second = (file.read_text(encoding="utf-8") for file in files)
    assert first.replace("a.html", "b.html") == second  # the command names the file
    page = Page(files[0].read_text(encoding="utf-8"))
    held(page, files[0].read_text(encoding="utf-8"))
    shown = len(made[0].content.rows[0].examples.trios)
    assert page.tags.count("img") == 3 * shown + 1 and shown > 0
    assert "Grey: the same layer before training." in page.said
    changes = "model.width=0.25 --set epochs=0 --set seed=2 --set validate_images=100"
    assert f"ironrank train demo --set {changes} --out {folder}" in page.said
    again = build(
        made[0].data()["rows"], title="One net", runs=made[0].data()["runs"], command=made[0].content.command
    )
    assert again.html() == made[0].html() and again.data() == made[0].data()


def test_what_cannot_be_drawn_is_said(tmp_path):
    write_json(tmp_path / "evaluation.json", small(curve=[]) | {"layers": []})
    write_json(tmp_path / "run.json", encode(dataclasses.replace(demo("svd"), start="gone")))
    said = Page(verbs.report([tmp_path]).html()).said
    assert "no adversarial examples (no file" in said and "no spectra from before training" in said


def test_seeds_and_places_make_no_other_setting(tmp_path):
    for name, overrides in {"a": ["seed=1"], "b": ["seed=2", "device=cuda"], "c": ["epochs=9"]}.items():
        run = build_run("condlr/lenet5-mnist", [*overrides, f"data.folder={name}"])
        write_json(tmp_path / name / "run.json", encode(run))
    a, b, c = (gather.setting(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_chain_of_settings_that_bites_its_tail_ends(tmp_path):
    write_json(tmp_path / "run.json", {"seed": 1, "start": str(tmp_path)})
    assert gather.setting(tmp_path)["start"]["start"]


@pytest.mark.parametrize("name", ["evaluation.json", "audit.json", "metrics.jsonl", "examples.safetensors"])
def test_a_file_that_is_too_large_is_one_line(tmp_path, name, monkeypatch):
    write_json(tmp_path / "evaluation.json", small(curve=[]) | {"layers": []})
    write_json(tmp_path / "run.json", encode(demo("dense", tiny=True, epochs=0)))
    monkeypatch.setattr(gather, "LARGEST", 200_000)
    (tmp_path / name).write_bytes(b"[" * 300_000)
    if name == "examples.safetensors":  # a picture is no reason to refuse the report
        assert "a report reads" in Page(verbs.report([tmp_path]).html()).said
        return
    with refuses(name, "a report reads"):
        verbs.report([tmp_path])
