"""Recipes: each is a `Run` that survives JSON, and its tiny form trains."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import pytest

from ironrank.artifact import load_model
from ironrank.errors import IronrankError
from ironrank.linalg import condition_number
from ironrank.methods import METHODS, SVD, CondLR, Dense
from ironrank.objectives import Clean
from ironrank.recipes import RECIPES
from ironrank.recipes.condlr import MODES, lenet5_mnist
from ironrank.settings import encode
from ironrank.surgery import factored_layers
from ironrank.training import Run, decode_run, train

PUBLISHED = [name for name in RECIPES if name.startswith("condlr/")]


def modes_of(name: str) -> tuple[str, ...]:
    return MODES if name in PUBLISHED else ("dense", "svd", "condlr")


FORMS = [(name, mode) for name in RECIPES for mode in modes_of(name)]


def with_data(run: Run, mnist: str, cifar: str) -> Run:
    """The same run, and its earlier stage, on the small folders."""
    start = with_data(run.start, mnist, cifar) if isinstance(run.start, Run) else run.start
    folder = {"mnist": mnist, "cifar10": cifar, "cifar100": cifar}.get(run.data.name)
    data = run.data if folder is None else dataclasses.replace(run.data, folder=folder)
    return dataclasses.replace(run, data=data, start=start)


@pytest.mark.parametrize("tiny", [True, False], ids=["tiny", "whole"])
@pytest.mark.parametrize("name, mode", FORMS)
def test_a_recipe_survives_json(name, mode, tiny):
    run = RECIPES[name](mode=mode, tiny=tiny)
    assert run.recipe == name and run.method.name == mode
    text = json.dumps(encode(run), allow_nan=False)
    assert decode_run(json.loads(text)) == run
    assert RECIPES[name](mode=mode, tiny=tiny) == run != RECIPES[name](mode=mode, tiny=tiny, seed=1)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_needs_no_argument_and_says_what_its_arguments_mean(name):
    signature = inspect.signature(RECIPES[name])
    assert all(parameter.default is not parameter.empty for parameter in signature.parameters.values())
    assert {"mode", "seed", "tiny", "epochs"} <= signature.parameters.keys()
    assert RECIPES[name].__doc__ and isinstance(RECIPES[name](), Run)


# Every published recipe in its own mode, and every mode of the smallest one.
TRAINED = [(name, "condlr") for name in PUBLISHED] + [
    (PUBLISHED[0], mode) for mode in MODES if mode != "condlr"
]


@pytest.mark.parametrize("name, mode", TRAINED)
def test_the_tiny_form_trains(name, mode, mnist, cifar, tmp_path):
    run = with_data(RECIPES[name](mode=mode, tiny=True), mnist, cifar)
    folder = train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines)
    layers = factored_layers(load_model(folder))
    assert bool(layers) == (mode != "dense")
    if mode == "condlr":
        assert all(condition_number(layer.S.detach()) <= 1.1 + 1e-5 for _, layer in layers)
    if mode == "svd":
        assert (folder / "start" / "model.safetensors").is_file()


def test_the_published_settings():
    run = lenet5_mnist()
    assert (run.optimizer.lr, run.optimizer.momentum, run.batch_size) == (0.1, 0.3, 128)
    assert run.data.validation == 0.25 and isinstance(run.objective, Clean)
    assert run.method == CondLR(keep=0.2, tau=0.1, centre="mean")
    assert [round(run.schedule.factor(epoch / 120), 3) for epoch in (0, 69, 70, 99, 100)] == [
        1,
        1,
        0.3,
        0.3,
        0.09,
    ]
    assert lenet5_mnist(tau=0.0).method.centre == "rms"
    assert lenet5_mnist(nominal=50).method.keep == 0.5
    batches = {name: RECIPES[name]().batch_size for name in PUBLISHED}
    assert [size for name, size in batches.items() if "cifar100" in name] == [256]
    wanted = {"lenet5-mnist": (0.1, 0.3), "vgg16-cifar10": (0.05, 0.45), "wrn16-4-cifar10": (0.08, 0.5),
              "wrn16-4-cifar100": (0.1, 0.5)}  # fmt: skip
    found = {name.split("/")[1]: RECIPES[name]().optimizer for name in PUBLISHED}
    assert {name: (sgd.lr, sgd.momentum) for name, sgd in found.items()} == wanted


@pytest.mark.parametrize("epochs", [1, 2, 7, 20])
def test_all_modes_have_the_same_budget(epochs):
    run = lenet5_mnist(mode="svd", epochs=epochs)
    assert run.epochs + run.start.epochs == epochs == lenet5_mnist(mode="uv", epochs=epochs).epochs
    assert isinstance(run.method, SVD) and run.start.method == Dense() and run.start.start is None


def test_recipe_arguments_out_of_range_are_refused():
    for words, change in {
        "nominal=100: allowed is 0 to 99": {"nominal": 100},
        "nominal=-1": {"nominal": -1},
        "mode='convlr': .*allowed.* dense, svd, uv": {"mode": "convlr"},
        "condlr.tau=-1: allowed is at least 0": {"tau": -1.0},
        "run.epochs=-1": {"epochs": -1},
    }.items():
        with pytest.raises(IronrankError, match=words.replace("=-", r"=\-")):
            lenet5_mnist(**change)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_mode_is_refused(name):
    with pytest.raises(IronrankError, match="mode='adam'"):
        RECIPES[name](mode="adam")


def test_every_method_is_in_a_recipe():
    assert {RECIPES[name](mode=mode).method.name for name, mode in FORMS} == METHODS.keys()
