"""Recipes: each is a `Run` that survives JSON, and its tiny form trains."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import pytest
import torch

from ironrank.artifact import load_model
from ironrank.errors import IronrankError
from ironrank.layers import narrowed
from ironrank.linalg import condition_number
from ironrank.methods import CSTAR, METHODS, SVD, CondLR, Dense
from ironrank.models import count
from ironrank.objectives import Clean
from ironrank.ranks import check_reach
from ironrank.recipes import RECIPES, dlrt, orthogonal, pruning, stages
from ironrank.recipes.condlr import MODES, lenet5_mnist
from ironrank.settings import encode
from ironrank.surgery import deploy, factored_layers, plan
from ironrank.training import Run, decode_run, train

PUBLISHED = [name for name in RECIPES if name.startswith("condlr/")]
COMPRESSED = [name for name in RECIPES if name.startswith("cstar/")]
ORTHOGONAL = [name for name in RECIPES if name.startswith("orthogonal/")]
ADAPTIVE = [name for name in RECIPES if name.split("/")[0] in ("dlrt", "robust-dlrt")]
PRUNED = [name for name in RECIPES if name.startswith("pruning/")]
# the method of the last stage
LAST = {
    "cstar": "dense",
    "cstar+cond": "condlr",
    "narrow": "dense",
    "srip": "soft-orthogonal",
    "admm-filters": "dense",
}


def modes_of(name: str) -> tuple[str, ...]:
    if name in COMPRESSED:
        return stages.MODES
    if name in ORTHOGONAL:
        return orthogonal.MODES
    if name in ADAPTIVE:
        return dlrt.MODES
    if name in PRUNED:
        return pruning.MODES
    return MODES if name in PUBLISHED else ("dense", "svd", "condlr")


FORMS = [(name, mode) for name in RECIPES for mode in modes_of(name)]


def with_data(run: Run, mnist: str, cifar: str, photos: str | None = None) -> Run:
    """The same run, and its earlier stages, on the small folders."""
    start = with_data(run.start, mnist, cifar, photos) if isinstance(run.start, Run) else run.start
    folder = {"mnist": mnist, "cifar10": cifar, "cifar100": cifar, "imagenet": photos}.get(run.data.name)
    data = run.data if folder is None else dataclasses.replace(run.data, folder=folder)
    return dataclasses.replace(run, data=data, start=start)


@pytest.mark.parametrize("tiny", [True, False], ids=["tiny", "whole"])
@pytest.mark.parametrize("name, mode", FORMS)
def test_a_recipe_survives_json(name, mode, tiny):
    run = RECIPES[name](mode=mode, tiny=tiny)
    wanted = LAST.get(mode, mode)
    assert run.recipe == name and run.method.name == wanted
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
TRAINED = (
    [(name, "condlr") for name in PUBLISHED]
    + [(PUBLISHED[0], mode) for mode in MODES if mode != "condlr"]
    + [(name, mode) for name in ADAPTIVE for mode in dlrt.MODES if mode != "dense"]
)


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
    runs = [stage for name, mode in FORMS for stage in chain(RECIPES[name](mode=mode))]
    assert {run.method.name for run in runs} == METHODS.keys()


@pytest.mark.parametrize(
    "name, mode", [(ORTHOGONAL[0], mode) for mode in orthogonal.MODES] + [(ORTHOGONAL[1], "cayley")]
)
def test_the_tiny_form_of_an_orthogonality_baseline_trains(name, mode, mnist, cifar, tmp_path):
    run = with_data(RECIPES[name](mode=mode, tiny=True), mnist, cifar)
    folder = train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines)
    if mode in ("cayley", "projected"):
        assert all(condition_number(X.detach()) < 1 + 1e-4 for _, X in run.method.weights(load_model(folder)))
    dense = dataclasses.replace(
        run, recipe=RECIPES["condlr/lenet5-mnist"](mode="dense").recipe, method=Dense()
    )
    if name == ORTHOGONAL[0]:
        assert dense == with_data(RECIPES["condlr/lenet5-mnist"](mode="dense", tiny=True), mnist, cifar)


# ---- compression and what it is measured against


def chain(run: Run) -> list[Run]:
    """A run and its earlier stages, first stage first."""
    return [*(chain(run.start) if isinstance(run.start, Run) else []), run]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """Sixteen photos of two classes, and four to be judged."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("photos")
    for part, n in (("train", 8), ("val", 2)):
        for name, colour in (("n01", (200, 0, 0)), ("n02", (0, 0, 200))):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                image.new("RGB", (40, 48), colour).save(root / part / name / f"{i}.jpg")
    return str(root)


@pytest.mark.parametrize("mode", stages.MODES)
@pytest.mark.parametrize("epochs", [3, 5, 12, 80])
def test_all_modes_have_the_same_epochs_objective_and_validation(mode, epochs):
    runs = chain(RECIPES["cstar/resnet20-cifar10"](mode=mode, epochs=epochs))
    assert sum(run.epochs for run in runs) == epochs
    assert (
        len(
            {
                (dataclasses.replace(run.objective, ramp=0), run.validate, run.data, run.batch_size, run.seed)
                for run in runs
            }
        )
        == 1
    )
    kinds = [run.method.name for run in runs]
    staged = {"svd": ["dense", "svd"], "cstar": ["dense", "cstar", "dense"],
              "cstar+cond": ["dense", "cstar", "condlr"]}  # fmt: skip
    assert kinds == staged.get(mode, ["condlr" if mode == "condlr" else "dense"])
    rates = {"svd": [0.1, 0.01], "cstar": [0.1, 0.1, 0.01], "cstar+cond": [0.1, 0.1, 0.01]}
    assert [run.optimizer.lr for run in runs] == rates.get(mode, [0.1])


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_narrow_net_and_condlr_are_of_equal_size(name):
    dense, narrow = RECIPES[name](mode="dense"), RECIPES[name](mode="narrow")
    limit = count(dense.model, dense.data.spec) / 8
    assert 0.85 * limit < count(narrow.model, narrow.data.spec) <= limit
    method = RECIPES[name](mode="condlr", tau=0.5).method
    with torch.device("meta"):
        net = dense.model.build(dense.data.spec)
    assert isinstance(method, CondLR) and method.tau == 0.5
    assert 0.85 * limit < method.deployed(net) <= limit


@pytest.mark.parametrize("ratio", [2, 64])
@pytest.mark.parametrize("name", COMPRESSED)
def test_every_mode_reaches_the_ratios(name, ratio):
    runs = {mode: RECIPES[name](mode=mode, ratio=ratio) for mode in stages.MODES}
    model, spec = runs["dense"].model, runs["dense"].data.spec
    net, limit = stages.shapes(model, spec), count(model, spec) / ratio
    runs["cstar"].start.method.prepare(net)
    assert runs["condlr"].method.deployed(net) <= limit
    assert count(runs["narrow"].model, spec) <= limit
    free, svd = [row.name for row in plan(net).rows if not row.reason], runs["svd"].method
    check_reach(net, free, svd.budget, form=svd.form)
    other = "tucker2" if (name, ratio) == ("cstar/resnet20-cifar10", 64) else "channel"
    assert svd.form == runs["condlr"].method.form == other


def test_a_net_too_narrow_for_the_channel_form_is_cut_in_tucker2_form():
    run = RECIPES["cstar/resnet20-cifar10"](mode="svd", ratio=64)
    small = deploy(run.method.prepare(run.model.build(run.data.spec)))
    assert sum(p.numel() for p in small.parameters()) <= count(run.model, run.data.spec) / 64


@pytest.mark.parametrize("ratio", [2, 8, 32, 64])
def test_the_size_of_condlr_is_that_of_the_deployed_net(ratio):
    run = RECIPES["cstar/lenet5-mnist"](mode="condlr", ratio=ratio)
    net = run.model.build(run.data.spec)
    limit = count(run.model, run.data.spec) / ratio
    expected = run.method.deployed(net)
    more = dataclasses.replace(run.method, keep=run.method.keep + 0.001)
    assert more.deployed(net) >= expected
    found = sum(p.numel() for p in deploy(run.method.prepare(net)).parameters())
    assert found == expected <= limit


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2"])
def test_the_deployed_size_of_every_form_is_counted_without_building_it(form):
    run = RECIPES["cstar/lenet5-mnist"](mode="dense", tiny=True)
    method, net = CondLR(keep=0.3, form=form), run.model.build(run.data.spec)
    expected = method.deployed(net)
    assert expected == sum(p.numel() for p in deploy(method.prepare(net)).parameters())


def test_settings_of_the_paper_that_are_confirmed():
    for name in COMPRESSED:
        attack = RECIPES[name](mode="dense").objective.attack
        assert attack.norm == "Linf"
        assert attack.eps == {"mnist": 0.3, "imagenet": 4 / 255}.get(name.split("-")[-1], 8 / 255)
        if name not in ("cstar/lenet5-mnist", "cstar/resnet20-cifar10"):
            assert attack.length == 2 / 255
    for ratio in (2, 4, 8, 16, 32, 64):
        method = chain(RECIPES["cstar/resnet18-cifar10"](ratio=ratio))[1].method
        assert isinstance(method, CSTAR) and method.budget == f"params={ratio}x"


def test_ratios_and_epochs_out_of_range_are_refused():
    recipe = RECIPES["cstar/lenet5-mnist"]
    for words, change in {
        "ratio=1: allowed is above 1": {"ratio": 1},
        "epochs=2: method 'cstar' has 3 stages": {"epochs": 2},
        "epochs=1: method 'svd' has 2 stages": {"epochs": 1, "mode": "svd"},
        "rank 1 everywhere": {"ratio": 1000, "mode": "condlr"},
        "the narrowest has": {"ratio": 100000, "mode": "narrow"},
    }.items():
        with pytest.raises(IronrankError, match=words):
            recipe(**change)


# Every recipe in its own mode, and every mode of the smallest one.
SHORT = [(name, "cstar") for name in COMPRESSED] + [
    (COMPRESSED[0], mode) for mode in stages.MODES if mode != "cstar"
]


@pytest.mark.parametrize("name, mode", SHORT)
def test_the_tiny_form_meets_its_ratio(name, mode, mnist, cifar, photos, tmp_path):
    run = with_data(RECIPES[name](mode=mode, ratio=4, tiny=True), mnist, cifar, photos)
    folder = train(run, tmp_path / "run")
    net = load_model(folder)
    dense = RECIPES[name](mode="dense", tiny=True)
    whole, found = count(dense.model, dense.data.spec), sum(p.numel() for p in deploy(net).parameters())
    assert found == whole if mode == "dense" else found <= whole / 4
    assert bool(factored_layers(net)) == (mode not in ("dense", "narrow"))
    for stage, place in zip(
        reversed(chain(run)), [folder, folder / "start", folder / "start" / "start"], strict=False
    ):
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
        assert sum("epoch" in line for line in lines) == stage.epochs
    if run.method.name == "condlr":
        held = [layer for _, layer in factored_layers(net) if layer.form == "channel"]
        assert all(condition_number(layer.S.detach()) <= 2 + 1e-4 for layer in held)


@pytest.mark.parametrize("mode", pruning.MODES)
@pytest.mark.parametrize("name", PRUNED)
def test_the_tiny_form_prunes_within_the_ratio(name, mode, mnist, cifar, tmp_path):
    run = with_data(RECIPES[name](mode=mode, ratio=2, tiny=True), mnist, cifar)
    folder = train(run, tmp_path / "run")
    net = load_model(folder)
    whole, found = count(run.model, run.data.spec), sum(p.numel() for p in deploy(net).parameters())
    assert found == whole if mode == "dense" else found <= whole / 2
    assert bool(narrowed(net)) == (mode in ("magnitude", "admm-filters", "scores"))
    assert sum(stage.epochs for stage in chain(run)) == RECIPES[name](mode="dense", tiny=True).epochs


def test_pruning_refuses_what_it_cannot_do():
    for change in ({"mode": "magnitud"}, {"ratio": 1}, {"epochs": 1}):
        with pytest.raises(IronrankError, match=next(iter(change))):
            RECIPES["pruning/lenet5-mnist"](**change)


def test_what_pruning_counts_in_steps_is_a_share_of_its_stage():
    steps = 0.95 * 60_000 / 128  # of an epoch; 20 of them
    runs = {mode: chain(RECIPES["pruning/lenet5-mnist"](mode=mode)) for mode in pruning.MODES}
    assert runs["scores"][-1].method.steps == int(10 * steps) // 2
    assert runs["svd-prune"][0].method.steps == int(20 * steps) // 2
    assert runs["admm-filters"][1].method.every == int(5 * steps) // 60


@pytest.mark.parametrize("mode", pruning.MODES)
def test_eps_grows_in_the_first_stage_of_pruning_only(mode):
    first, *later = [run.objective.ramp for run in chain(RECIPES["pruning/lenet5-mnist"](mode=mode))]
    assert first > 0 and not any(later)
