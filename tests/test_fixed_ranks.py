"""The last steps at fixed rank of DLRT and RobustDLRT: what moves, what stands still, and how it is set."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from cases import Fit, holds_adaptive, small_net, tiny_run
from expect import refuses
from ironrank.artifact import load_model
from ironrank.config import build_run
from ironrank.data import Images, Stream
from ironrank.linalg import orthonormality_error
from ironrank.methods import DLRT, Dense, RobustDLRT
from ironrank.optim import SGD, AdamW
from ironrank.surgery import factored_layers
from ironrank.training import train
from test_dlrt import ranks_of, size

whole = torch.float64
FREE = {"first": "low-rank", "last": "low-rank", "keep": 0.5}
METHODS = {
    "dlrt": DLRT(steps=5, **FREE),
    "robust-dlrt": RobustDLRT(steps=5, cycle=3, **FREE),  # the second cycle is cut short
    "tall": RobustDLRT(
        steps=5, cycle=3, keep=0.5
    ),  # its ends have full rank, and bases that move all the time
}
optimizers = pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.4, momentum=0.5), AdamW(lr=0.02, weight_decay=0.5)], ids=["sgd", "adamw"]
)


def begun(method, optimizer, dtype=torch.float32) -> Fit:
    """A training that has just taken the last step in which ranks adapt."""
    fit = Fit(method, optimizer, dtype)
    for _ in range(method.steps):
        fit.step()
    return fit


@pytest.mark.parametrize("name", METHODS)
@optimizers
def test_ranks_stay_the_loss_falls_and_bases_are_orthonormal(name, optimizer):
    fit = begun(METHODS[name], optimizer)
    ranks, losses = ranks_of(fit.model), []
    for _ in range(40):
        losses.append(fit.step())
        assert ranks_of(fit.model) == ranks
        holds_adaptive(fit.model, fit.method)
    assert losses[-1] < 0.9 * losses[0]
    before = fit.model(fit.x).detach()
    final = fit.method.finish(copy.deepcopy(fit.model), fit.state)
    assert ranks_of(final) == ranks and torch.equal(final(fit.x).detach(), before), "nothing is left to cut"


@pytest.mark.parametrize("name", ["dlrt", "robust-dlrt"])
@optimizers
def test_it_is_the_optimizer_on_cores_and_biases_one_gradient_a_step(name, optimizer):
    """A twin: plain training of the same net, its bases held."""
    fit = begun(METHODS[name], optimizer, whole)
    twin = copy.deepcopy(fit.model)
    for _, layer in factored_layers(twin):
        layer.U.requires_grad_(False), layer.V.requires_grad_(False)
    fit.built, plain = (
        optimizer.build(fit.method.groups(net)) for net in (fit.model, twin)
    )  # no moments yet
    calls = []
    backward = fit.backward
    fit.backward = lambda: calls.append(1) or backward()  # type: ignore[method-assign]
    for _ in range(4):
        fit.step()
        plain.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(fit.x), fit.y) + fit.method.penalty(twin, {})
        loss.backward()
        plain.step()
    assert len(calls) == 4
    for (key, ours), theirs in zip(fit.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert not key.endswith((".U", ".V")) or torch.equal(ours, theirs), key


def test_ranks_adapt_until_then_and_a_cycle_that_is_cut_short_is_truncated():
    fit, ranks = Fit(METHODS["robust-dlrt"], SGD(lr=0.1)), []
    for _ in range(8):
        fit.step()
        ranks.append((ranks_of(fit.model), int(fit.state["widened"])))
    assert [widened for _, widened in ranks] == [1, 1, 0, 1, 0, 0, 0, 0]
    assert ranks[0][0] == ranks[1][0] != ranks[2][0], "cycles of three"
    assert ranks[3][0] != ranks[4][0] == ranks[7][0]


@pytest.mark.parametrize("kind", [DLRT, RobustDLRT])
def test_a_budget_is_met_before_the_fixed_stretch_and_in_it(kind):
    limit = size(small_net()) / 2.5
    settings = {"first": "low-rank", "last": "low-rank", "keep": 1.0, "min_rank": 1, "budget": "params=2.5x"}
    fit = begun(kind(steps=4, **settings), SGD(lr=0.1))
    for _ in range(3):
        assert size(fit.model) <= limit
        fit.step()


def test_bases_of_full_rank_move_on_in_robust_dlrt_and_no_others():
    fit = begun(METHODS["tall"], SGD(lr=0.1), whole)
    last, inner = fit.model[5], fit.model[3]
    assert last.rank == last.full_rank < len(last.V) and inner.rank < inner.full_rank
    old = [basis.detach().clone() for basis in (last.V, last.U, inner.U, inner.V)]
    fit.step()
    same = [torch.equal(a, b) for a, b in zip(old, (last.V, last.U, inner.U, inner.V), strict=True)]
    assert same == [False, True, True, True]
    assert orthonormality_error(last.V.detach()) < 1e-12


@pytest.mark.parametrize(
    "steps, average", [(4, 0.0), (5, 0.9)]
)  # at the end of an epoch; within one and a cycle
@pytest.mark.parametrize("name", ["dlrt", "robust-dlrt"])
def test_a_run_goes_on_to_the_bit(steps, average, name, mnist, tmp_path):
    method = dataclasses.replace(METHODS[name], steps=steps)
    run = tiny_run(mnist, method=method, average=average, epochs=3, optimizer=AdamW(lr=0.01), clip=0.5)
    straight = train(run, tmp_path / "straight")
    for epoch in (1, 2, 3):  # of four steps each
        stopped = train(run, tmp_path / "stopped", resume=True, until=epoch)
    for which in ("last.safetensors", "model.safetensors"):
        a, b = (load_file(folder / which) for folder in (straight, stopped))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    holds_adaptive(load_model(straight, "last"), method)


@pytest.mark.parametrize("name", METHODS)
def test_a_stretch_beyond_the_end_is_none(name, mnist, tmp_path):
    files = []
    for steps in (0, 8, 100):  # two epochs have eight steps
        run = tiny_run(mnist, method=dataclasses.replace(METHODS[name], steps=steps))
        files.append(load_file(train(run, tmp_path / f"{steps}") / "last.safetensors"))
    for other in (
        files[1:] if name == "dlrt" else [files[2]]
    ):  # at 8 a cycle of RobustDLRT is cut, before it is saved
        assert all(torch.equal(files[0][key], other[key]) for key in files[0])
    assert {k: v.shape for k, v in files[0].items()} == {k: v.shape for k, v in files[1].items()}
    with refuses("steps=-1: allowed is at least 0"):
        dataclasses.replace(METHODS[name], steps=-1)


# ---- the recipe


def recipe(*words: str):
    return build_run("robust-dlrt/vgg16-cifar10", words)


def test_the_recipe_ends_as_published():
    images = Images(torch.zeros(45_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(45_000, dtype=torch.int64))
    epoch = Stream(images, batch_size=128, seed=0).steps_per_epoch
    run = recipe()
    assert (run.epochs, run.clip, run.method.steps) == (21, 1.0, 20 * epoch)
    for mode in ("robust-dlrt", "dlrt"):
        assert recipe(f"mode={mode}", "epochs=10", "fixed=3").method.steps == 7 * epoch
        assert recipe(f"mode={mode}", "fixed=0").method.steps == 0
        assert recipe(f"mode={mode}", "epochs=1").method.steps == recipe("epochs=0").method.steps == 0
        assert recipe(f"mode={mode}", "tiny=true").epochs == 1
    dense = recipe("mode=dense", "pretrain=2")
    assert isinstance(dense.method, Dense) and dense.clip == dense.start.clip == 1.0
    assert recipe("method.steps=9", "clip=0").method.steps == 9


def test_a_recipe_without_an_epoch_of_adaptation_is_refused():
    for words in (["fixed=21"], ["fixed=-1"], ["fixed=1", "epochs=1"], ["fixed=1", "tiny=true"]):
        with refuses("fixed=", "allowed is 0 to"):
            recipe(*words)
