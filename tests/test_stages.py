"""Chains of stages, and nets of the user's own."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ironrank
from cases import tiny_run
from expect import refuses
from ironrank.artifact import load_model
from ironrank.attacks import FGSM
from ironrank.config import override
from ironrank.files import read_tensors, write_tensors
from ironrank.judge import evaluate_folder
from ironrank.judge.before import before
from ironrank.linalg import condition_number
from ironrank.methods import CSTAR, SVD, UV, CondLR, Dense
from ironrank.models import Given, LeNet5
from ironrank.objectives import Clean, Distill, Madry
from ironrank.settings import encode
from ironrank.surgery import factored_layers
from ironrank.training import decode_run, initial_model, read_run, train
from ironrank.training.start import handed_on


class Mine(nn.Module):
    """A user's net: no name of this package in it."""

    def __init__(self, units: int = 12) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, units), nn.BatchNorm1d(units), nn.ReLU())
        self.head = nn.Linear(units, 10)

    def forward(self, x):
        return self.head(self.body(x))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- a net of the user's own


@pytest.mark.parametrize("method", [Dense(), CondLR(keep=0.5)], ids=["dense", "condlr"])
def test_a_net_of_ones_own_is_trained_and_loaded(method, mnist, tmp_path):
    net = Mine()
    before = copy.deepcopy(net.state_dict())
    folder = train(tiny_run(mnist, model=Given(), method=method), tmp_path / "run", model=net)
    assert same(net.state_dict(), before) and not factored_layers(net)  # a copy was trained
    layout = json.loads((folder / "layout.json").read_text())
    assert layout["model"] is None and layout["spec"] is None
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"Mine" not in stored and __name__.encode() not in stored
    with refuses("cannot read", "none/run.json", "is no run folder", "`ironrank train`"):
        read_run(tmp_path / "none")
    with refuses("names no architecture", "load_model(folder, model="):
        load_model(folder)
    loaded = load_model(folder, model=Mine())
    assert bool(factored_layers(loaded)) == (method.name == "condlr")
    assert not torch.equal(loaded.head.bias, before["head.bias"])
    assert same(loaded.state_dict(), load_file(folder / "model.safetensors"))


def test_training_starts_from_the_weights_that_are_given(mnist, tmp_path):
    net = Mine()
    folder = train(tiny_run(mnist, model=Given(), epochs=0), tmp_path / "run", model=net)
    assert same(load_model(folder, model=Mine(12)).state_dict(), net.state_dict())


def test_resume_with_the_net_passed_again_gives_the_same_bits(mnist, tmp_path):
    run = tiny_run(mnist, model=Given(title="mine"), method=CondLR(keep=0.5))
    straight = train(run, tmp_path / "straight", model=Mine())
    stopped = train(run, tmp_path / "stopped", model=Mine(), until=1)
    with refuses("pass it, as in train(run, out, model=net)"):
        train(run, stopped, resume=True)
    train(run, stopped, model=Mine(), resume=True)
    a, b = (load_file(folder / "last.safetensors") for folder in (straight, stopped))
    assert same(a, b)


def test_a_run_folder_imports_nothing(mnist, tmp_path):
    folder = train(tiny_run(mnist, model=Given(), epochs=0), tmp_path / "run", model=Mine())
    before = set(sys.modules)
    run = decode_run(json.loads((folder / "run.json").read_text()))
    assert run.model == Given() and decode_run(encode(run)) == run
    assert set(sys.modules) == before


def test_nets_that_do_not_belong_are_refused(mnist, tmp_path):
    with refuses("pass it, as in train(run, out, model=net)"):
        train(tiny_run(mnist, model=Given()), tmp_path / "run")
    with refuses("lenet5", "Given()"):
        train(tiny_run(mnist), tmp_path / "run", model=Mine())
    with refuses("holds factors", "ironrank.save"):
        train(tiny_run(mnist, model=Given()), tmp_path / "run", model=ironrank.factorize(Mine()))
    assert not (tmp_path / "run").exists()


def test_a_saved_net_is_a_start(mnist, tmp_path):
    factored = ironrank.factorize(Mine(), keep=0.5)
    saved = ironrank.save(factored, tmp_path / "saved")
    run = tiny_run(mnist, model=Given(), start=str(saved), epochs=0)
    folder = train(run, tmp_path / "run", model=Mine(12))
    assert same(load_model(folder, model=Mine()).state_dict(), factored.state_dict())
    with refuses(f"start={saved}", "another architecture"):
        train(run, tmp_path / "other", model=Mine(13))


def test_a_net_of_ones_own_is_judged(mnist, tmp_path):
    folder = train(tiny_run(mnist, model=Given(), method=UV(keep=0.5)), tmp_path / "run", model=Mine())
    row = evaluate_folder(folder, model=Mine(), n=16, steps=1, latency_runs=2)
    assert row["params_deployed"] < row["params_dense"] == sum(p.numel() for p in Mine().parameters())
    assert row["n"] == 16


def test_a_saved_net_of_ones_own_teaches(mnist, tmp_path):
    net = Mine()
    saved = str(ironrank.save(net, tmp_path / "saved"))
    run = tiny_run(mnist, model=Given(), objective=Distill(attack=FGSM(eps=0.1), teacher=saved), epochs=1)
    folder = train(run, tmp_path / "run", model=net)
    assert not same(load_model(folder, model=net).state_dict(), net.state_dict())
    named = str(train(tiny_run(mnist, epochs=0), tmp_path / "lenet5"))
    other = replace(run, objective=replace(run.objective, teacher=named))
    assert (train(other, tmp_path / "other", model=net) / "model.safetensors").is_file()
    with refuses("names no architecture"):
        train(replace(run, model=LeNet5(width=0.1)), tmp_path / "built")


# ---- chains of stages


def test_three_stages(mnist, tmp_path):
    first = tiny_run(mnist, epochs=1)
    second = tiny_run(mnist, method=SVD(keep=0.5), epochs=1, start=first)
    third = tiny_run(mnist, epochs=1, start=second)  # dense: factors stay, and are trained
    assert decode_run(json.loads(json.dumps(encode(third)))) == third
    folder = train(third, tmp_path / "run")
    middle, last = (load_model(path) for path in (folder / "start", folder))
    assert not factored_layers(load_model(folder / "start" / "start"))
    ranks = [{name: layer.rank for name, layer in factored_layers(net)} for net in (middle, last)]
    assert ranks[0] == ranks[1] and len(ranks[0]) == 4
    assert not torch.equal(last.fc1.U, middle.fc1.U)


def test_a_budget_out_of_reach_shows_before_the_first_stage_is_trained(mnist, tmp_path):
    run = tiny_run(mnist, method=CSTAR(budget="params=500x"), start=tiny_run(mnist))
    with refuses("params=500x: the smallest this net can become is"):
        train(tiny_run(mnist, start=run), tmp_path / "run")
    assert not list(tmp_path.rglob("*"))


def test_a_chain_that_died_goes_on_with_the_same_bits(mnist, tmp_path):
    first = tiny_run(mnist, epochs=2)
    run = tiny_run(mnist, start=tiny_run(mnist, method=SVD(keep=0.5), epochs=2, start=first))
    straight, died = train(run, tmp_path / "straight"), tmp_path / "died"
    train(first, died / "start" / "start", until=1)
    train(run.start, died / "start", resume=True, until=1)
    train(run, died, resume=True, until=1)
    train(run, died, resume=True)
    assert same(*(load_file(folder / "last.safetensors") for folder in (straight, died)))


def test_a_dense_stage_after_factors_goes_on_without_a_jump(mnist, tmp_path):
    factored = train(tiny_run(mnist, method=UV(keep=0.5), epochs=1), tmp_path / "uv")
    again = train(tiny_run(mnist, epochs=0, start=str(factored)), tmp_path / "again")
    assert same(load_model(again).state_dict(), load_model(factored).state_dict())


def test_methods_that_truncate_refuse_factors(mnist, tmp_path):
    factored = train(tiny_run(mnist, method=UV(keep=0.5), epochs=0), tmp_path / "uv")
    for method in (SVD(), UV()):
        with refuses(method.name, "factored already", "a dense run"):
            train(tiny_run(mnist, method=method, start=str(factored)), tmp_path / "run")


def test_condlr_takes_over_factors(mnist, tmp_path):
    earlier = train(tiny_run(mnist, method=CondLR(keep=0.5, tau=1.0), epochs=1), tmp_path / "loose")
    run = tiny_run(mnist, method=CondLR(keep=0.25, tau=0.1), epochs=1, start=str(earlier))
    layers = factored_layers(load_model(train(run, tmp_path / "run")))
    assert [x.rank for _, x in layers] == [x.rank for _, x in factored_layers(load_model(earlier))]
    assert all(condition_number(layer.S.detach()) <= 1.1 + 1e-5 for _, layer in layers)


def test_overrides_reach_every_stage(mnist):
    first = tiny_run(mnist)
    run = tiny_run(mnist, start=tiny_run(mnist, method=SVD(keep=0.5), epochs=3, start=first))
    run = override(run, [("seed", "5"), ("epochs", "9"), ("batch_size", "7"), ("start.epochs", "8"),
                         ("start.method.keep", "0.25"), ("start.start.optimizer.lr", "0.5")])  # fmt: skip
    stages = [run, run.start, run.start.start]
    assert [stage.epochs for stage in stages] == [9, 8, 2]
    assert [stage.method for stage in stages] == [Dense(), SVD(keep=0.25), Dense()]
    assert [stage.optimizer.lr for stage in stages] == [0.1, 0.1, 0.5]
    assert {(stage.seed, stage.batch_size) for stage in stages} == {(5, 7)}


def test_a_clean_stage_hands_on_its_last_weights_and_an_adversarial_one_its_best(mnist, tmp_path):
    for name, objective in (("clean", Clean()), ("robust", Madry(attack=FGSM(eps=0.1)))):
        dense = tiny_run(mnist, objective=objective, epochs=2)
        folder = train(replace(dense, method=UV(keep=0.9), start=dense, epochs=0), tmp_path / name)
        stage = folder / "start"
        tensors, notes = read_tensors(stage / "last.safetensors")
        write_tensors(stage / "model.safetensors", {key: value + 1 for key, value in tensors.items()}, notes)
        assert handed_on(stage).name == ("last.safetensors" if name == "clean" else "model.safetensors")
        shown = before(folder)["layers"][0]["singular_values"][0]
        largest = {file: torch.linalg.svdvals(load_file(stage / f"{file}.safetensors")["conv1.weight"].flatten(1))[0]
                   for file in ("last", "model")}  # fmt: skip
        assert shown == pytest.approx(float(largest["last" if name == "clean" else "model"]), rel=1e-4)
        again = initial_model(replace(dense, start=str(stage)), str(stage)).state_dict()
        assert same(again, load_file(handed_on(stage)))
    assert handed_on(ironrank.save(Mine(), tmp_path / "other")).name == "model.safetensors"


def test_what_is_there_of_a_stage_is_handed_on(mnist, tmp_path):
    stage = train(tiny_run(mnist, epochs=1), tmp_path / "clean")
    (stage / "last.safetensors").unlink()
    assert handed_on(stage).name == "model.safetensors"
    described = json.loads((stage / "run.json").read_text())
    described["method"] = {"name": "of-the-users-own"}
    (stage / "run.json").write_text(json.dumps(described))
    run = tiny_run(mnist, epochs=0)
    assert same(initial_model(run, str(stage)).state_dict(), load_file(stage / "model.safetensors"))
