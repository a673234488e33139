"""Clipping: known lengths, every method under it, CondLR's tangents, and runs that stop, resume and blow up."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from cases import METHOD_CASES, Fit, tiny_run
from expect import refuses
from ironrank.config import build_run
from ironrank.methods import DLRT, Cayley, CondLR, Dense, Projected, RobustDLRT
from ironrank.optim import SGD, AdamW, Muon, clip_gradients, clip_steps
from ironrank.surgery import factored_layers
from ironrank.training import train

whole = torch.float64


def norm_of(optimizer: torch.optim.Optimizer) -> float:
    grads = [
        p.grad.double() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    return math.sqrt(sum(float(grad.square().sum()) for grad in grads))


def lengths(optimizer: torch.optim.Optimizer) -> list[float]:
    """What is appended to at every step: the norm of the gradient that it follows."""
    found: list[float] = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: found.append(norm_of(optimizer)))
    return found


# ---- known answers


@pytest.mark.parametrize("size", [3.0, 1e30])  # the square of the second is infinite in float32
def test_a_long_gradient_makes_a_step_of_lr_times_clip_in_its_own_direction(size):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    optimizer = SGD(lr=0.25, momentum=0.0).build([{"params": weights[:1]}, {"params": weights[1:]}])
    clip_steps(optimizer, 0.5)
    whole_gradient = torch.randn(25)
    whole_gradient *= size / whole_gradient.norm()
    for weight, part in zip(weights, whole_gradient.split([12, 5, 8]), strict=True):
        weight.grad = part.reshape(weight.shape).clone()
    optimizer.step()
    moved = torch.cat([weight.data.flatten() for weight in weights])
    torch.testing.assert_close(moved, -0.25 * 0.5 * whole_gradient / size)


def test_a_short_gradient_stays_to_the_bit_and_parameters_without_one_do_not_count():
    weight, idle, other = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = SGD(lr=1.0, momentum=0.0).build([{"params": [weight, idle]}])
    clip_steps(optimizer, 5.0)
    weight.grad, other.grad = (
        torch.tensor([3.0, 4.0]),
        torch.tensor([100.0, 0.0]),
    )  # other: not the optimizer's
    optimizer.step()
    assert torch.equal(weight.data, torch.tensor([-3.0, -4.0])) and idle.grad is None
    clip_gradients(torch.optim.SGD([other], lr=1.0))
    assert torch.equal(other.grad, torch.tensor([100.0, 0.0])), "no clip was set"


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_not_shortened(bad):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = SGD().build([{"params": [weight]}])
    clip_steps(optimizer, 1.0)
    weight.grad = torch.tensor([1.0, bad])
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert torch.equal(weight.data, torch.zeros(2))


# ---- every method


@pytest.mark.parametrize("name", METHOD_CASES)
@pytest.mark.parametrize("optimizer", [SGD(lr=0.2, momentum=0.5), AdamW(lr=0.01), Muon()])
def test_no_step_of_any_method_follows_more_and_its_promise_holds(name, optimizer):
    if isinstance(optimizer, Muon) and METHOD_CASES[name].low.label() in ("dlrt", "robust-dlrt"):
        optimizer = SGD(lr=0.2)  # moments are carried for SGD and Adam
    fit = Fit(METHOD_CASES[name].low, optimizer)
    clip_steps(fit.built, 0.01)
    found = lengths(fit.built)
    for _ in range(8):
        fit.step()
        METHOD_CASES[name].holds(fit.model, fit.method)
    assert found and max(found) <= 0.01 * (1 + 1e-6)
    if name not in ("cayley", "projected"):  # of the others most of the gradient is still there
        assert max(found) == pytest.approx(0.01, rel=1e-5)


def test_dlrt_is_clipped_at_both_of_its_steps():
    fit = Fit(DLRT(keep=0.5), SGD(lr=0.1, momentum=0.0))
    clip_steps(fit.built, 0.01)
    found = lengths(fit.built)
    fit.step()
    assert found == pytest.approx([0.01, 0.01], rel=1e-5)


def test_what_robust_dlrt_drops_does_not_count():
    free = {"first": "low-rank", "last": "low-rank"}
    plain, clipped = (Fit(RobustDLRT(keep=0.5, **free), SGD(lr=0.1, momentum=0.0), whole) for _ in range(2))
    found = lengths(plain.built)
    plain.step()
    clip_steps(clipped.built, found[0] * (1 + 1e-9))
    clipped.step()  # its bases have gradients of their own, which are no part of this norm
    for a, b in zip(plain.model.parameters(), clipped.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", [Cayley(momentum=0.0), Projected(momentum=0.0)])
def test_weights_that_a_method_moves_itself_are_clipped_too(method):
    fit = Fit(method, SGD(lr=0.1, momentum=0.0), whole)
    clip_steps(fit.built, 0.01)
    before = [p.detach().clone() for p in fit.model.parameters()]
    fit.step()
    pairs = zip(before, fit.model.parameters(), strict=True)
    moved = math.sqrt(sum(float((p - old).detach().square().sum()) for old, p in pairs))
    assert 0.1 * 0.1 * 0.01 < moved <= 0.1 * 0.01 * (1 + 1e-6), "a part of it was normal to the manifold"


# ---- CondLR


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_momentum_of_a_clipped_step_is_tangent(nesterov):
    fit = Fit(CondLR(keep=0.5), SGD(lr=0.1, momentum=0.9, nesterov=nesterov), whole)
    clip_steps(fit.built, 0.01)
    for _ in range(4):
        before = {name: layer.U.detach().clone() for name, layer in factored_layers(fit.model)}
        fit.step()
        for name, layer in factored_layers(fit.model):
            assert (before[name].mT @ fit.built.state[layer.U]["momentum_buffer"]).abs().max() < 1e-12


def test_what_condlr_divides_by_a_nearly_singular_core_is_clipped():
    fit = Fit(CondLR(keep=0.5, tau=1e6), SGD(lr=0.1, momentum=0.0), whole)
    for _, layer in factored_layers(fit.model):
        layer.S.data.copy_(torch.diag(torch.logspace(0, -4, len(layer.S), dtype=whole)))
    clip_steps(fit.built, 1.0)
    found = lengths(fit.built)
    fit.backward()
    assert norm_of(fit.built) < 10, "the gradient of the loss is not long"
    fit.step()
    assert found == pytest.approx([1.0], rel=1e-9)


def test_attached_gives_the_same_bits_as_the_step():
    method, optimizer = CondLR(keep=0.5), SGD(lr=0.1, momentum=0.9)
    ours, theirs = Fit(method, optimizer), Fit(method, optimizer, begun=False)
    method.attach(theirs.model, theirs.built)
    for fit in (ours, theirs):
        clip_steps(fit.built, 0.05)
    for _ in range(4):
        ours.step()
        theirs.built.zero_grad()
        F.cross_entropy(theirs.model(theirs.x), theirs.y).backward()
        theirs.built.step()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- runs


def weights(folder) -> torch.Tensor:
    return torch.cat(
        [value.double().flatten() for _, value in sorted(load_file(folder / "last.safetensors").items())]
    )


def test_a_run_of_one_step_goes_lr_times_clip_and_by_default_nothing_is_clipped(mnist, tmp_path):
    one = {"batch_size": 1000, "epochs": 1, "optimizer": SGD(lr=0.1, momentum=0.0)}
    start = weights(train(tiny_run(mnist, epochs=0), tmp_path / "start"))
    found = {
        clip: weights(train(tiny_run(mnist, **one, clip=clip), tmp_path / f"{clip}"))
        for clip in (0.01, 0, 1e9)
    }
    assert float((found[0.01] - start).norm()) == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert float((found[0] - start).norm()) > 5 * 0.1 * 0.01
    assert torch.equal(found[0], found[1e9]) and tiny_run(mnist).clip == 0


@pytest.mark.parametrize("name, optimizer", [
    ("condlr", SGD(lr=0.1, momentum=0.5)), ("cayley", SGD(lr=0.1)), ("dlrt", SGD(lr=0.1, momentum=0.5)),
    ("robust-dlrt", AdamW(lr=0.01)),
])  # fmt: skip
def test_a_clipped_run_goes_on_to_the_bit(name, optimizer, mnist, tmp_path):
    run = tiny_run(mnist, method=METHOD_CASES[name].low, optimizer=optimizer, epochs=3, clip=0.02)
    straight = train(run, tmp_path / "straight")
    for epoch in (1, 2, 3):
        stopped = train(run, tmp_path / "stopped", resume=True, until=epoch)
    assert torch.equal(weights(straight), weights(stopped))


@pytest.mark.parametrize("name", ["dense", "condlr"])
def test_a_clipped_run_learns_in_bfloat16(name, mnist, tmp_path):
    run = tiny_run(mnist, method=METHOD_CASES[name].low, epochs=4, precision="bfloat16", clip=0.5,
                   optimizer=AdamW(lr=0.01))  # fmt: skip
    folder = train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "epoch" in line]
    assert losses[-1] < 0.9 * losses[0]


def test_a_gradient_that_is_not_finite_stops_the_run(mnist, tmp_path, monkeypatch):
    def poisoned(self, model, x, y, *, generator=None, memory=None):
        return (0 * model.fc1.weight).square().sum().sqrt()  # 0, and its gradient is 0 / 0

    monkeypatch.setattr("ironrank.objectives.Clean.__call__", poisoned)
    with refuses("about to become infinite at step 0", "lower optimizer.lr"):
        train(tiny_run(mnist, clip=1.0), tmp_path / "run")


def test_a_loss_that_is_not_finite_says_what_it_said(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ironrank.objectives.Clean.__call__", lambda self, model, x, y, **_: model(x).sum() * math.nan
    )
    with refuses("the loss is nan at step 0", "lower optimizer.lr"):
        train(tiny_run(mnist, clip=1.0), tmp_path / "run")


def test_it_is_set_like_any_setting_and_reaches_the_earlier_stage():
    run = build_run("condlr/lenet5-mnist", ["mode=svd", "clip=1"])
    assert run.clip == run.start.clip == 1.0
    assert build_run("condlr/lenet5-mnist").clip == 0.0 and isinstance(run.start.method, Dense)
    with refuses("run.clip=-1: allowed is at least 0"):
        build_run("condlr/lenet5-mnist", ["clip=-1"])
    with refuses("run.clip=inf"):
        build_run("condlr/lenet5-mnist", ["clip=inf"])
