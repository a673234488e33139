"""Runs from text: recipes, overrides, what they mean and what they refuse."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ironrank
from expect import refuses
from ironrank.attacks import FGSM, PGD
from ironrank.compression import compress_run
from ironrank.config import build_run, override, parse, shorthand
from ironrank.data import CIFAR10, MNIST, FashionSmall
from ironrank.errors import IronrankError
from ironrank.files import write_json
from ironrank.methods import SVD, UV, CondLR, Dense
from ironrank.models import VGG16, Given, LeNet5
from ironrank.objectives import Clean, Free, Madry, Trades
from ironrank.optim import SGD, AdamW, Cosine, OneCycle, Steps
from ironrank.recipes import RECIPES
from ironrank.recipes.stages import fine_tuned
from ironrank.settings import encode
from ironrank.training import FAMILIES, Run, decode_run

LENET = "condlr/lenet5-mnist"


def lenet(*overrides: str, **options) -> Run:
    return build_run(LENET, [*overrides, *shorthand(**options)])


# ---- recipes


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tiny", [False, True])
def test_every_recipe_builds_and_survives_json(name: str, tiny: bool) -> None:
    run = build_run(name, [f"tiny={tiny}"])
    assert run.recipe == name
    assert decode_run(encode(run)) == run


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_the_usual_arguments(name: str) -> None:
    if name.startswith("cstar/"):
        assert build_run(name, ["mode=dense", "ratio=4", "epochs=3", "seed=7"]).epochs == 3
        return
    if name.startswith("orthogonal/"):  # of full size: no compression to ask for
        run = build_run(name, ["mode=srip", "epochs=3", "seed=7"])
        assert (run.method.kind, run.epochs, run.seed) == ("srip", 3, 7)
        return
    if name.startswith("pruning/"):
        assert build_run(name, ["mode=magnitude", "ratio=4", "epochs=4", "seed=7"]).seed == 7
        return
    if name.startswith(("dlrt/", "robust-dlrt/")):  # the tolerance decides the ranks
        run = build_run(name, ["mode=robust-dlrt", "theta=0.2", "beta=0.1", "epochs=3", "seed=7"])
        assert (run.method.tolerance, run.method.beta, run.epochs, run.seed) == (0.2, 0.1, 3, 7)
        return
    run = build_run(name, ["mode=condlr", "nominal=50", "tau=0.5", "epochs=3", "seed=7"])
    assert (run.method.keep, run.method.tau, run.epochs, run.seed) == (0.5, 0.5, 3, 7)
    assert isinstance(build_run(name, ["mode=dense"]).method, Dense)


def test_arguments_of_the_recipe_come_first_wherever_they_stand() -> None:
    assert lenet("method.tau=0.7", "tau=0.2").method.tau == 0.7
    assert lenet("method.keep=0.9", "nominal=50").method.keep == 0.9


def test_other_overrides_apply_from_left_to_right() -> None:
    assert lenet("batch_size=4", "batch_size=8").batch_size == 8
    assert lenet("objective=madry", "objective.attack.eps=0.25").objective.attack.eps == 0.25
    with refuses("objective.attack.eps", "clean has no such setting"):
        lenet("objective.attack.eps=0.25", "objective=madry")


def test_short_options() -> None:
    run = lenet("mode=svd", data="there", seed=3, device="cuda:1")
    for stage in (run, run.start):
        assert (stage.data.folder, stage.seed, stage.device) == ("there", 3, "cuda:1")
    assert lenet("seed=1", seed=2).seed == 2  # the option is the last word
    assert lenet("batch_size=2").data.folder is None


# ---- every kind of setting, deep and shallow


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("epochs=2", "epochs", 2),
        ("batch_size = 64 ", "batch_size", 64),
        ("precision=bfloat16", "precision", "bfloat16"),
        ("channels_last=false", "channels_last", False),
        ("channels_last=True", "channels_last", True),
        ("optimizer.lr=0.05", "optimizer.lr", 0.05),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("optimizer.lr=1/8", "optimizer.lr", 0.125),
        ("data.validation=0.1", "data.validation", 0.1),
        ("data.augment=crop-flip", "data.augment", "crop-flip"),
        ("data.folder=none", "data.folder", None),
        ("data.folder=a=b", "data.folder", "a=b"),
        ("validate.step_size=0.5", "validate.step_size", 0.5),
        ("validate.step_size=none", "validate.step_size", None),
        ("validate.eps=8/255", "validate.eps", 8 / 255),
        ("method.tau=0.5", "method.tau", 0.5),
        ("method.centre=rms", "method.centre", "rms"),
        ('method.ranks={"fc1": 10}', "method.ranks", {"fc1": 10}),
        ("method.ranks={}", "method.ranks", {}),
        ('method.taus={"fc*": 0.5}', "method.taus", {"fc*": 0.5}),
        ('method.exclude=["conv1", "fc2"]', "method.exclude", ("conv1", "fc2")),
        ("method.exclude=conv1, fc2", "method.exclude", ("conv1", "fc2")),
        ("method.exclude=conv1", "method.exclude", ("conv1",)),
        ("method.exclude=", "method.exclude", ()),
        ("schedule.milestones=0.5,3/4", "schedule.milestones", (0.5, 0.75)),
        ("schedule.milestones=[0.5, 0.75]", "schedule.milestones", (0.5, 0.75)),
        ("start=runs/dense", "start", "runs/dense"),
        ("start=None", "start", None),
    ],
)
def test_a_setting_is_read_by_its_declared_type(text: str, path: str, value: object) -> None:
    found = lenet(text)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_back_exactly(value: float) -> None:
    assert parse(repr(value), float, "x") == value


@given(st.integers(-1000, 1000), st.integers(1, 1000))
def test_fractions_are_read_exactly(above: int, below: int) -> None:
    assert parse(f"{above}/{below}", float, "x") == float(Fraction(above, below))


# ---- members of families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_member_can_be_named(family: type) -> None:
    (place,) = [f for f, hint in Run.__annotations__.items() if hint == family.__name__]
    for name, member in FAMILIES[family].items():
        assert type(getattr(lenet(f"{place}={name}"), place)) is member


def test_a_new_member_takes_over_what_means_the_same() -> None:
    run = lenet("method.keep=0.3", 'method.ranks={"fc1": 9}', "method=svd")
    assert run.method == SVD(keep=0.3, ranks={"fc1": 9})
    run = lenet("validate.eps=0.3", "validate.norm=L2", "validate=fgsm")
    assert run.validate == FGSM(eps=0.3, norm="L2")
    assert lenet("data=cifar10", data="there").data == CIFAR10(folder="there", validation=0.25)
    assert lenet("model.width=0.5", "model=vgg16").model == VGG16(width=0.5)


def test_a_new_objective_trains_against_the_same_ball() -> None:
    robust = ["objective=madry", "objective.attack.norm=L2"]
    run = override(
        lenet(*robust, "objective.attack.eps=0.3", "objective.attack.step_size=0.1"), [("objective", "free")]
    )
    assert run.objective == Free(norm="L2", eps=0.3) and run.validate.eps == 0.3
    back = override(run, [("objective", "trades")])
    assert back.objective == Trades(
        attack=dataclasses.replace(Trades().attack, norm="L2", eps=0.3, step_size=None)
    )
    assert (
        override(run, [("objective", "madry"), ("objective.attack.eps", "0.2")]).objective.attack.eps == 0.2
    )
    assert override(back, [("objective", "free"), ("objective.eps", "0.1")]).objective == Free(
        norm="L2", eps=0.1
    )
    run = override(build_run("cstar/lenet5-mnist", ["mode=cstar"]), [("objective", "free")])
    while isinstance(run, Run):
        assert run.objective.threat == ("Linf", 0.3) and run.validate.eps == 0.3
        run = run.start
    assert isinstance(override(back, [("objective", "clean")]).objective, Clean)
    near = override(
        lenet("objective=free", "objective.eps=16/255"), [("objective", "madry")]
    ).objective.attack
    assert near.length == pytest.approx(4 / 255), "steps grow with eps"


def test_a_new_member_keeps_its_own_defaults_where_they_differ() -> None:
    assert lenet("optimizer=adamw").optimizer.lr == AdamW().lr != lenet().optimizer.lr  # not a rate of SGD
    assert lenet("data=cifar10").data.augment == "crop-flip"
    assert lenet("schedule=cosine", "schedule.final=0.1", "schedule=one-cycle").schedule == OneCycle(
        final=0.1
    )


@pytest.mark.parametrize(
    ("first", "then"), [("method.tau=0.5", "method=svd"), ("optimizer.lr=0.05", "optimizer=adamw"),
                        ("objective.attack.eps=0.2", "objective=clean")]
)  # fmt: skip
def test_what_a_later_override_undoes_is_refused(first: str, then: str) -> None:
    path = first.partition("=")[0]
    before = ["objective=madry"] if path.startswith("objective") else []
    with pytest.raises(IronrankError, match=f"^{path} is undone by {then} after it: write it behind"):
        lenet(*before, first, then)


def test_naming_the_same_member_again_changes_nothing() -> None:
    assert lenet("tau=0.5", "nominal=50", "method=condlr") == lenet("tau=0.5", "nominal=50")


# ---- two stages


def test_overrides_reach_the_earlier_stage() -> None:
    run = lenet("mode=svd", "epochs=4", "batch_size=16", "model.width=0.5", "optimizer.lr=0.3", "objective=madry",
                "objective.attack.steps=3", "data.validation=0.1", "schedule=cosine")  # fmt: skip
    assert isinstance(run.start, Run)
    assert isinstance(run.method, SVD) and isinstance(run.start.method, Dense)
    assert dataclasses.replace(run, method=Dense(), start=None) == run.start
    assert (run.start.batch_size, run.start.model, run.start.optimizer.lr) == (16, LeNet5(width=0.5), 0.3)
    assert run.start.objective.attack.steps == 3 and run.start.schedule == Cosine()


def test_method_and_epochs_stay_in_their_stage() -> None:
    run = override(lenet("mode=svd", "epochs=4"), [("epochs", "7"), ("method.keep", "0.5")])
    assert (run.epochs, run.start.epochs, run.start.method) == (7, 2, Dense())


def test_the_earlier_stage_has_a_path_of_its_own() -> None:
    run = lenet("mode=svd", "start.epochs=9", "start.optimizer.lr=0.7", "start.objective=madry")
    assert (run.start.epochs, run.start.optimizer.lr) == (9, 0.7)
    assert (run.optimizer.lr, run.objective) == (0.01, Clean())
    assert isinstance(run.start.objective, Madry)
    run = lenet("mode=svd", "start.objective=madry", "validate.eps=0.2", "start.objective.attack.eps=0.3")
    assert run.start.validate.eps == run.validate.eps == 0.2


def test_validation_follows_the_ball_of_the_objective() -> None:
    run = lenet("objective=madry", "objective.attack.eps=0.3", "objective.attack.norm=L2")
    assert (run.validate.norm, run.validate.eps, run.validate.steps) == ("L2", 0.3, 5)
    assert run.objective.attack.length == pytest.approx(0.075), (
        "steps grow with eps: ten reach the edge of any ball"
    )
    run = build_run("cstar/lenet5-mnist", ["mode=cstar", "objective.attack.eps=0.15"])
    while isinstance(run, Run):
        assert run.objective.threat == ("Linf", 0.15)
        assert (run.validate.eps, run.validate.steps) == (0.15, 20)
        assert run.validate.step_size == pytest.approx(0.015)
        run = run.start


def test_validation_that_is_set_or_apart_stays_where_it_is() -> None:
    run = lenet("objective=madry", "objective.attack.eps=0.3", "validate.steps=2")
    assert run.validate.eps == 0.1
    apart = override(run, [("objective.attack.eps", "0.2")])
    assert apart.validate.eps == 0.1 and apart.objective.attack.eps == 0.2


def test_what_the_earlier_stage_does_not_have_is_left_out_there() -> None:
    run = lenet(
        "mode=svd",
        "start.validate=fgsm",
        "validate.restarts=2",
        "start.optimizer=adamw",
        "optimizer.nesterov=true",
    )
    assert run.validate.restarts == 2 and isinstance(run.start.validate, FGSM)
    assert run.optimizer.nesterov and isinstance(run.start.optimizer, AdamW)


def test_start_can_be_replaced() -> None:
    assert lenet("mode=svd", "start=none").start is None
    assert lenet("mode=svd", "start=runs/dense", device="cuda").start == "runs/dense"


# ---- refusals: one line, with what is allowed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs", ("'epochs'", "path", "epochs=2")),
        ("=2", ("'=2'", "path")),
        ("", ("''", "path")),
        ("batchsize=2", ("batchsize", "did you mean 'batch_size'?", "method", "nominal")),
        ("recipe=mine", ("recipe", "no such setting")),
        ("keep=0.5", ("keep", "did you mean method.keep or validate.keep?")),
        ("lr=0.5", ("lr", "did you mean optimizer.lr?")),
        ("eps=0.5", ("eps", "validate.eps")),
        ("method.tua=1", ("method.tua", "condlr has no such setting", "did you mean 'tau'?", "keep")),
        ("metod.tau=1", ("metod.tau", "did you mean 'method'?")),
        ("validate.attack.eps=1", ("validate.attack.eps", "pgd has no such setting", "restarts")),
        ("epochs.more=2", ("epochs",)),
        ("batch_size.more=2", ("batch_size is a single value", "batch_size=...")),
        ("method.ranks.fc1=10", ("method.ranks is a single value", "method.ranks=...")),
        ("start.epochs=2", ("start is a single value",)),
        ("method.=2", ("method.", "no such setting")),
        ("method=condrl", ("method='condrl'", "did you mean 'condlr'?", "dense")),
        ("method=none", ("method='none'", "condlr")),
        ("objective=madri", ("objective='madri'", "did you mean 'madry'?")),
        ("mode=cond", ("mode='cond'", "condlr")),
        ("nominal=fifty", ("nominal='fifty'", "whole number")),
        ("epochs=2.5", ("epochs='2.5'", "whole number")),
        ("seed=none", ("seed='none'", "whole number")),
        ("batch_size=many", ("batch_size='many'", "whole number")),
        ("channels_last=yes", ("channels_last='yes'", "true or false")),
        ("optimizer.lr=fast", ("optimizer.lr='fast'", "a number, such as 0.1 or 8/255")),
        ("optimizer.lr=1/0", ("optimizer.lr='1/0'", "a number")),
        ("validate.eps=" + "9" * 400 + "/1", ("a number",)),
        ("method.ranks=10", ("method.ranks='10'", '{"fc1": 10}')),
        ("method.ranks={fc1: 10}", ("method.ranks", '{"fc1": 10}')),
        ('method.ranks={"fc1": 1.5}', ("condlr.ranks",)),
        ("method.exclude=[conv1", ("method.exclude", "a list")),
        ("schedule.milestones=0.5,late", ("schedule.milestones='late'", "a number")),
        ("schedule.milestones=0.5,2", ("steps.milestones", "between 0 and 1")),
        ("epochs=-1", ("epochs=-1", "at least 0")),
        ("batch_size=0", ("run.batch_size=0", "at least 1")),
        ("seed=-1", ("seed=-1", "at least 0")),
        ("tau=-1", ("condlr.tau=-1", "at least 0")),
        ("method.tau=-0.5", ("condlr.tau=-0.5", "at least 0")),
        ("method.keep=0", ("condlr.keep=0", "above 0 and at most 1")),
        ("method.keep=1.5", ("condlr.keep=1.5", "at most 1")),
        ("method.keep=nan", ("condlr.keep=nan", "finite")),
        ("optimizer.momentum=inf", ("momentum=inf", "finite")),
        ("nominal=100", ("nominal=100", "0 to 99")),
        ("precision=float16", ("precision='float16'", "float32, bfloat16")),
        ("data.validation=1", ("mnist.validation=1", "below 1")),
        ("data.augment=flip", ("augment='flip'", "crop-flip")),
        ("data=svhn", ("data='svhn'", "mnist")),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_is_allowed(text: str, words: tuple[str, ...]) -> None:
    with refuses(*words):
        lenet(text)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with refuses("recipe 'condlr/lenet-mnist'", "did you mean 'condlr/lenet5-mnist'?", "demo"):
        build_run("condlr/lenet-mnist")


def test_a_data_folder_for_data_in_the_package_is_refused() -> None:
    with refuses("fashion-small is part of the package"):
        lenet("data=fashion-small", data="there")
    assert lenet("data=fashion-small").data == FashionSmall(validation=0.25)


# ---- compression of a run folder


@pytest.fixture
def dense_folder(tmp_path: Path) -> Path:
    """A run folder as far as `compress_run` looks at it."""
    folder = tmp_path / "dense"
    write_json(
        folder / "run.json", encode(lenet("mode=dense", "epochs=5", "objective=madry", data="there", seed=4))
    )
    write_json(folder / "layout.json", {"format": 1, "layers": {}})
    (folder / "model.safetensors").touch()
    return folder


def test_compress_takes_the_run_with_another_method(dense_folder: Path) -> None:
    run, old = compress_run(dense_folder), decode_run(encode(lenet("mode=dense", "epochs=5")))
    assert (run.method, run.start, run.epochs, run.seed) == (SVD(), str(dense_folder), 3, 4)
    assert isinstance(run.objective, Madry) and run.data.folder == "there"
    assert (run.recipe, run.model) == (old.recipe, old.model)


def test_compress_trains_free_factors_at_a_tenth_of_the_learning_rate(dense_folder: Path) -> None:
    """As recipes do: at the full one they diverge. What is set by hand is taken as it is."""
    old = decode_run(encode(lenet("mode=dense"))).optimizer
    gentle = dataclasses.replace(old, lr=old.lr / 10)
    assert [compress_run(dense_folder, m).optimizer for m in ("svd", "uv", "condlr")] == [gentle, gentle, old]
    stages = compress_run(dense_folder, "cstar")
    assert (stages.start.optimizer, stages.optimizer) == (old, gentle)
    assert compress_run(dense_folder, "svd", optimizer=old).optimizer == old
    assert compress_run(dense_folder, "svd", ["optimizer.lr=0.07"]).optimizer.lr == 0.07


def test_compress_takes_overrides(dense_folder: Path) -> None:
    changes = ["method.tau=0.5", "epochs=1", "optimizer.lr=0.01", "optimizer.momentum=0"]
    run = compress_run(dense_folder, "condlr", [*changes, *shorthand("here", 1, "cuda")])
    assert (run.method, run.epochs, run.optimizer) == (CondLR(tau=0.5), 1, SGD(lr=0.01, momentum=0))
    assert (run.data.folder, run.seed, run.device) == ("here", 1, "cuda")
    assert compress_run(dense_folder, "uv", ["method.keep=0.5"]).method == UV(keep=0.5)


@pytest.mark.parametrize("method", ["cstar", "magnitude"])
def test_compress_to_multiply_adds_knows_the_shape_of_an_input(method: str, dense_folder: Path) -> None:
    run = compress_run(dense_folder, method, budget="macs=2x")
    run = run.start if isinstance(run.start, Run) else run
    assert (run.method.budget, run.method.input_shape) == ("macs=2x", (1, 28, 28))
    run = compress_run(dense_folder, method, ["method.input_shape=1,32,32"], budget="macs=2x")
    run = run.start if isinstance(run.start, Run) else run
    assert run.method.input_shape == (1, 32, 32)


def test_compress_takes_one_budget(dense_folder: Path) -> None:
    with refuses("budget='params=4x' and method.budget: give one of them"):
        compress_run(dense_folder, "svd", ["method.budget=params=8x"], budget="params=4x")
    with refuses("budget=''"):
        compress_run(dense_folder, "svd", budget="")
    with refuses("svd.budget='macs=2x': allowed is params, bytes"):
        compress_run(dense_folder, "svd", budget="macs=2x")


def test_compress_refuses_what_is_no_dense_net(dense_folder: Path) -> None:
    with refuses("cannot read", "run.json"):
        compress_run(dense_folder / "none")
    with refuses("method='svdd'", "did you mean 'svd'?"):
        compress_run(dense_folder, "svdd")
    with refuses("mode", "no such setting"):  # an argument of recipes
        compress_run(dense_folder, "svd", ["mode=svd"])
    write_json(dense_folder / "layout.json", {"format": 1, "layers": {"fc1": {"rank": 3}}})
    with refuses("low-rank already", "dense run"):
        compress_run(dense_folder)
    (dense_folder / "model.safetensors").unlink()
    with refuses("no trained net yet", "--resume"):
        compress_run(dense_folder)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"layers": 3'])
def test_compress_refuses_a_damaged_layout(dense_folder: Path, content: str) -> None:
    (dense_folder / "layout.json").write_text(content, encoding="utf-8")
    with refuses("layout.json"):
        compress_run(dense_folder)


def test_settings_take_the_place_of_those_of_the_run(dense_folder: Path) -> None:
    run = compress_run(
        dense_folder, "uv", ["method.keep=0.5"], objective=Clean(), epochs=7, data=MNIST(folder="x")
    )
    assert (run.objective, run.epochs, run.data.folder, run.method) == (Clean(), 7, "x", UV(keep=0.5))
    with refuses("epoch: no such setting of a run", "did you mean 'epochs'?"):
        compress_run(dense_folder, epoch=7)
    with refuses("condition=0.1", "method.tau"):
        compress_run(dense_folder, "condlr", condition=0.1)


def test_a_saved_net_needs_its_data_and_its_model(tmp_path: Path) -> None:
    folder = ironrank.save(LeNet5(width=0.1).build(MNIST().spec), tmp_path / "saved")
    with refuses("without a run.json", "data=...", "model=...", "ironrank list models"):
        compress_run(folder)
    with refuses("say model=... (see"):
        compress_run(folder, overrides=["data=mnist"])
    run = compress_run(
        folder, "uv", ["data=mnist", "model=lenet5", "model.width=0.1", "data.folder=here", "epochs=2"]
    )
    assert (run.data, run.model, run.start) == (MNIST(folder="here"), LeNet5(width=0.1), str(folder))
    assert compress_run(folder, data=MNIST(), model=Given()).model == Given()


def test_a_module_of_ones_own_needs_its_data() -> None:
    with refuses("a module of your own", "data=..."):
        compress_run(None)
    run = compress_run(None, "condlr", ["method.tau=0.5"], data=MNIST(), objective=Madry(), epochs=3)
    assert (run.model, run.start, run.epochs, run.method) == (Given(), None, 3, CondLR(tau=0.5))


def test_fine_tuning_shares_the_epochs() -> None:
    first = lenet("mode=dense", "epochs=5")
    run = fine_tuned(first)
    assert (run.epochs, run.start.epochs, run.method, run.optimizer.lr) == (
        2,
        3,
        Dense(),
        first.optimizer.lr / 10,
    )
    assert fine_tuned(first, 0.5).method == CondLR(tau=0.5)
    assert dataclasses.replace(run, epochs=3, start=None, optimizer=first.optimizer) == run.start


def test_the_default_settings_are_those_of_the_paper() -> None:
    run = lenet("epochs=120")
    assert run.data == MNIST(validation=0.25)
    assert (run.optimizer, run.batch_size, run.schedule) == (SGD(lr=0.1, momentum=0.3), 128, Steps())
    assert isinstance(run.validate, PGD)
