"""What a user can get wrong: one line on stderr, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ironrank.cli import main
from ironrank.config import build_run
from ironrank.errors import IronrankError, nearest
from ironrank.training import train

LENET = "condlr/lenet5-mnist"
SETTINGS = ("model.width=0.1", "validate.steps=1", "epochs=2")


class Place:
    """Folders of one mistake: data, a dense run that is half done, and where to work."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.dense = root, root / "mnist", root / "dense"
        self.half, self.file, self.out = root / "half", root / "file", root / "out"

    def train(self, *overrides: str, recipe: str = LENET, data: object = None, out: object = None,
              more: tuple[str, ...] = ()) -> list[object]:  # fmt: skip
        words = [word for text in (*SETTINGS, *overrides) for word in ("--set", text)]
        return ["train", recipe, *words, "--data", data or self.data, "--out", out or self.out, *more]

    def resume(self, *overrides: str) -> list[object]:
        return self.train(*overrides, out=self.half, more=("--resume",))


@pytest.fixture(scope="module")
def model_place(mnist: str, tmp_path_factory) -> Path:
    """The folders as they are before any mistake."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(mnist, root / "mnist")
    (root / "file").write_text("a file", encoding="utf-8")
    settings = (*SETTINGS, f"data.folder={root / 'mnist'}")
    train(build_run(LENET, ["mode=dense", *settings]), root / "dense")
    train(build_run(LENET, settings), root / "half", until=1)
    return root


@pytest.fixture
def place(model_place: Path, tmp_path: Path) -> Place:
    root = tmp_path / "place"
    shutil.copytree(model_place, root)
    return Place(root)


def listing(root: Path) -> dict[str, bytes | None]:
    """Every file under a folder with its content, every folder as None."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


# ---- the mistakes of a command: name, what is done to the folders first, arguments, words of the line

Damage = Callable[[Place], object]
Command = Callable[[Place], list[object]]


def leave(place: Place) -> None:
    """Do nothing to the folders."""


def cut(name: str, keep: float = 0.5) -> Damage:
    """Keep only the first part of a file."""

    def damage(place: Place) -> None:
        content = (place.root / name).read_bytes()
        (place.root / name).write_bytes(content[: int(keep * len(content))])

    return damage


def garble(name: str, content: bytes) -> Damage:
    return lambda place: (place.root / name).write_bytes(content)


def edit(name: str, **changes: object) -> Damage:
    """Change entries of a JSON file."""

    def damage(place: Place) -> None:
        value = json.loads((place.root / name).read_text(encoding="utf-8"))
        (place.root / name).write_text(json.dumps(value | changes), encoding="utf-8")

    return damage


def remove(name: str) -> Damage:
    return lambda place: (place.root / name).unlink()


def evaluate(place: Place) -> list[object]:
    return ["evaluate", place.dense, "--data", place.data, "--n", 4, "--steps", 1, "--latency-runs", 1]


def report(place: Place) -> list[object]:
    return ["report", place.dense, "--data", place.data]


def compress(*more: str) -> Command:
    return lambda place: ["compress", place.dense, "--out", place.out, *more]


ATTACK = {"attack": "pgd", "norm": "Linf", "eps": 0.1, "accuracy": 0.2}
JUDGED = json.dumps({"clean": 0.5, "robust": [ATTACK], "params_deployed": 9}).encode()

MISTAKES: dict[str, tuple[Damage, Command, tuple[str, ...]]] = {
    # names and values
    "recipe": (leave, lambda p: p.train(recipe="condlr/lenet5"), ("did you mean 'condlr/lenet5-mnist'?",)),
    "override without a value": (leave, lambda p: p.train("epochs"), ("'epochs'", "epochs=2")),
    "override path": (leave, lambda p: p.train("method.tua=1"), ("method.tua", "did you mean 'tau'?")),
    "override type": (leave, lambda p: p.train("batch_size=many"), ("batch_size='many'", "whole number")),
    "tau below 0": (leave, lambda p: p.train("tau=-0.1"), ("condlr.tau=-0.1", "at least 0")),
    "keep 0": (leave, lambda p: p.train("method.keep=0"), ("condlr.keep=0", "above 0 and at most 1")),
    "keep above 1": (leave, lambda p: p.train("method.keep=1.01"), ("condlr.keep=1.01", "at most 1")),
    "rank above the layer's": (leave, lambda p: p.train('method.ranks={"fc1": 9999}'), ("9999", "fc1", "1 to 50")),
    "rank of no layer": (leave, lambda p: p.train('method.ranks={"fc9": 3}'), ("fc9", "allowed: conv1, conv2")),
    "model for other images": (leave, lambda p: p.train("model=vgg16"), ("vgg16 on 28x28 images", "32x32")),
    "device": (leave, lambda p: p.train(more=("--device", "gpu")), ("device='gpu'", "cpu")),
    "mode": (leave, lambda p: p.train("mode=cond"), ("mode='cond'", "condlr")),
    "mode of the demo": (leave, lambda p: ["train", "demo", "--set", "mode=cond", "--out", p.out], ("mode='cond'",)),
    "start": (leave, lambda p: p.train("start=nowhere"), ("nowhere", "run folder")),
    "start from a low-rank net": (leave, lambda p: p.train(f"start={p.half}"), ("half",)),
    # data
    "no data folder": (leave, lambda p: p.train(data=p.root / "none"), ("mnist", "none", "--data")),
    "no data folder named": (leave, lambda p: ["train", LENET, "--out", p.out], ("mnist", "--data")),
    "empty data folder": (leave, lambda p: p.train(data=p.dense), ("train-images-idx3-ubyte", "--data")),
    "truncated images": (cut("mnist/train-images-idx3-ubyte"), Place.train, ("train-images-idx3-ubyte", "promises")),
    "truncated labels": (cut("mnist/train-labels-idx1-ubyte"), Place.train, ("train-labels-idx1-ubyte", "promises")),
    "garbage for images": (garble("mnist/train-images-idx3-ubyte", b"<html>"), Place.train, ("not an IDX file",)),
    "truncated test images": (cut("mnist/t10k-images-idx3-ubyte"), evaluate, ("t10k-images-idx3-ubyte", "promises")),
    # folders
    "folder that cannot be made": (leave, lambda p: p.train(out=p.file / "x"), ("file", "choose another folder")),
    "folder that is a file": (leave, lambda p: p.train(out=p.file), ("is a file", "folder")),
    "folder with a run": (leave, lambda p: p.train(out=p.half), ("holds a run already", "--resume")),
    "folder with another run": (leave, lambda p: p.resume("batch_size=9"), ("another run", "batch_size")),
    "folder with another method": (leave, lambda p: p.resume("method=svd"), ("another run", "method")),
    # a checkpoint
    "truncated checkpoint": (cut("half/checkpoint.safetensors"), Place.resume, ("checkpoint.safetensors", "damaged")),
    "empty checkpoint": (cut("half/checkpoint.safetensors", 0), Place.resume, ("checkpoint.safetensors", "damaged")),
    "garbage checkpoint": (garble("half/checkpoint.safetensors", b"\x80\x04]q\x00." * 99), Place.resume, ("damaged",)),
    "run.json cut off": (cut("half/run.json"), Place.resume, ("run.json", "damaged")),
    "run.json of another kind": (garble("half/run.json", b"[1, 2]"), Place.resume, ("run.json",)),
    "run.json without a model": (edit("half/run.json", model=None), Place.resume, ("run.model",)),
    "run.json with an unknown name": (edit("half/run.json", method={"name": "x"}), Place.resume, ("'x'", "condlr")),
    "run.json with an unknown setting": (edit("half/run.json", speed=1), Place.resume, ("speed", "no such setting")),
    "run.json not in UTF-8": (garble("half/run.json", b"\xff\xfe{}"), Place.resume, ("run.json", "damaged")),
    # a trained net
    "no run folder": (leave, lambda p: ["evaluate", p.root / "none"], ("none", "run.json")),
    "no finished run": (leave, lambda p: ["evaluate", p.half], ("model.safetensors",)),
    "truncated weights": (cut("dense/model.safetensors"), evaluate, ("model.safetensors", "damaged")),
    "weights cut in the header": (cut("dense/model.safetensors", 0.001), evaluate, ("model.safetensors", "damaged")),
    "garbage weights": (garble("dense/model.safetensors", b"PK\x03\x04 pickle"), evaluate, ("damaged",)),
    "weights that are missing": (remove("dense/model.safetensors"), evaluate, ("model.safetensors", "train")),
    "which weights": (leave, lambda p: [*evaluate(p), "--which", "first"], ("which='first'", "best, last")),
    "norm": (leave, lambda p: [*evaluate(p), "--norm", "L1"], ("norm='L1'", "Linf, L2")),
    "eps": (leave, lambda p: [*evaluate(p), "--eps", "8/255,big"], ("eps='big'", "8/255")),
    "steps": (leave, lambda p: [*evaluate(p), "--steps", "0"], ("steps=0", "at least 1")),
    "result that cannot be written": (leave, lambda p: [*evaluate(p), "--out", p.file / "x"], ("cannot write", "file")),
    "device of the judge": (leave, lambda p: [*evaluate(p), "--device", "cuda:99"], ("device='cuda:99'", "cpu")),
    # compression
    "method": (leave, compress("--method", "svdd"), ("method='svdd'", "did you mean 'svd'?")),
    "compress nothing": (leave, lambda p: ["compress", p.root, "--out", p.out], ("run.json",)),
    "compress a low-rank net": (edit("dense/layout.json", layers={"fc1": {}}), compress(), ("low-rank already",)),
    "compress an unfinished run": (leave, lambda p: ["compress", p.half, "--out", p.out], ("no trained net yet",)),
    "layout cut off": (cut("dense/layout.json"), compress(), ("layout.json", "damaged")),
    "truncated dense weights": (cut("dense/last.safetensors"), compress(), ("last.safetensors", "damaged")),
    # reports
    "report of nothing": (leave, lambda p: ["report", p.root / "none", "--html", p.out], ("none", "run.json")),
    "damaged evaluation": (garble("dense/evaluation.json", b"{"), report, ("evaluation.json", "damaged")),
    "evaluation of another kind": (garble("dense/evaluation.json", b"[]"), report, ("evaluation.json",)),
    "evaluation without numbers": (garble("dense/evaluation.json", b"{}"), report, ("clean",)),
    "report that cannot be written": (garble("dense/evaluation.json", JUDGED),
                                      lambda p: [*report(p), "--html", p.file / "x"], ("cannot write", "file")),
    # the catalog
    "family": (leave, lambda p: ["list", "method"], ("did you mean 'methods'?",)),
    "member": (leave, lambda p: ["list", "methods", "x"], ("methods 'x'", "condlr")),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(
    name: str, place: Place, capfd, monkeypatch
) -> None:
    damage, command, words = MISTAKES[name]
    monkeypatch.chdir(place.root)
    damage(place)
    before = listing(place.root)
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in command(place)])
    out, err = capfd.readouterr()
    assert (exit_.value.code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert listing(place.root) == before


def test_a_run_goes_on_after_a_mistake_is_mended(place: Place, capfd) -> None:
    with pytest.raises(SystemExit):
        main([str(word) for word in place.train(data=place.root / "none")])
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in place.train()])
    assert not exit_.value.code, capfd.readouterr().err


def test_a_loss_that_is_not_finite_names_the_layer(place: Place, capfd) -> None:
    command = place.train("mode=dense", "optimizer.lr=1e30", "batch_size=4", more=("--quiet",))
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in command])
    out, err = capfd.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: the loss is ") and "widest spectrum" in err and "optimizer.lr" in err


# ---- the exception and its help


def test_the_exception_is_a_value_error() -> None:
    assert issubclass(IronrankError, ValueError)


@pytest.mark.parametrize(
    ("word", "match"),
    [("condrl", "condlr"), ("dens", "dense"), ("CondLR", "condlr"), ("zzz", None), ("", None)],
)
def test_nearest_names_the_nearest_and_all(word: str, match: str | None) -> None:
    hint = nearest(word, ["dense", "condlr", "svd"])
    assert hint.endswith("allowed: condlr, dense, svd")
    assert hint.startswith(f"did you mean '{match}'? " if match else "allowed")
