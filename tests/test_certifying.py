"""`ironrank certify` and `ironrank weakness`: what they say, and the files that they leave in a run folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ironrank import verbs
from ironrank.artifact import load_model
from ironrank.certificates import certify, smooth
from ironrank.cli import main
from ironrank.config import build_run
from ironrank.data import MNIST
from ironrank.files import plain_json, read_json, read_tensors
from ironrank.judge.weakness import weakness


@pytest.fixture(scope="module")
def folder(mnist: str, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "condlr"
    words = ["mode=condlr", "tiny=true", "validate.steps=2", f"data.folder={mnist}"]
    verbs.train(build_run("condlr/lenet5-mnist", words), out)
    return out


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def test_a_certificate_is_kept_and_is_what_python_gives(capsys, folder: Path, mnist: str) -> None:
    options = ("--n", 12, "--radii", "1/255,0.5", "--smoothing", 0.25, "--draws", 50, "--json")
    code, out, _ = call(capsys, "certify", folder, *options)
    assert code == 0
    result = json.loads(out)
    assert result == read_json(folder / "certificate.json")
    net, images = load_model(folder), MNIST(folder=mnist).load("test").first(12)
    again = certify(net, images, (1 / 255, 0.5))
    again["smoothing"] = smooth(net, images, 0.25, (1 / 255, 0.5), n=50)
    assert {key: result[key] for key in again} == plain_json(again)
    assert shlex.split(result["command"])[:3] == ["ironrank", "certify", str(folder)]
    assert " --n 12 --radii 1/255,0.5 --smoothing 0.25 --draws 50 " in result["command"]
    assert result["name"] == "condlr"
    assert len(result["lipschitz"]["layers"]) > 5


def test_a_certificate_on_the_screen_ends_with_its_verdict(capsys, folder: Path) -> None:
    code, out, _ = call(capsys, "certify", folder, "--n", 4)
    assert code == 0
    assert "from the image" in out
    assert out.strip().splitlines()[-1].startswith(("certified:", "vacuous:"))


def test_a_weakness_map_is_kept_and_is_what_python_gives(capsys, folder: Path, mnist: str) -> None:
    code, out, _ = call(capsys, "weakness", folder, "--n", 10, "--before", folder, "--eps", "0.1", "--json")
    assert code == 0
    result = json.loads(out)
    assert result == read_json(folder / "weakness.json")
    net, images = load_model(folder), MNIST(folder=mnist).load("test").first(10)
    again, arrays = weakness(net, images, before=net, eps=0.1)
    assert {key: result[key] for key in again} == plain_json(again)
    kept, _ = read_tensors(folder / "weakness.safetensors")
    assert {name: tuple(t.shape) for name, t in kept.items()} == {
        n: tuple(t.shape) for n, t in arrays.items()
    }
    assert kept["jacobian"].shape == (8, 1, 28, 28)
    assert all(row["before"]["norm"] == row["norm"] for row in result["layers"])


def test_a_weakness_map_on_the_screen(capsys, folder: Path) -> None:
    code, out, _ = call(capsys, "weakness", folder, "--n", 10)
    assert code == 0
    assert "alignment" in out and "one perturbation for all" in out


@pytest.mark.parametrize(
    "words", [("certify", "--radii", "big"), ("certify", "--radii", "0"), ("weakness", "--norm", "L1"),
              ("certify", "--smoothing", "0"), ("certify", "--device", "warp")],
)  # fmt: skip
def test_mistakes_are_one_line(capsys, folder: Path, words: tuple[str, ...]) -> None:
    verb, *options = words
    code, out, err = call(capsys, verb, folder, "--n", 4, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
