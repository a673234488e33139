"""Muon: its twin, torch's own optimizers, resume, and what orthonormal factors have to do with it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cases import METHOD_CASES, Fit, small_batch, small_net, tiny_run
from expect import refuses
from ironrank.config import override, pairs_of
from ironrank.linalg import USV, newton_schulz, orthogonal_factor
from ironrank.methods import UV, CondLR, Dense
from ironrank.optim import SGD, AdamW, Muon, set_lr
from ironrank.surgery import factored_layers, last_parameters
from ironrank.training import train
from twins_ortho import MuonTwin, msign, quintic

KINDS = {"newton-schulz": Muon(), "exact": Muon(polar="exact")}
kinds = pytest.mark.parametrize("muon", KINDS.values(), ids=KINDS)


def moved(settings, W, course, last=False):
    """A parameter after steps along given gradients."""
    p = nn.Parameter(torch.tensor(W))
    optimizer = settings.build([{"params": [p]}], [p] if last else [])
    for G in course:
        p.grad = torch.tensor(G)
        optimizer.step()
    return p.detach().numpy()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 2, 3, 3), (40, 2, 3, 3)])
@pytest.mark.parametrize("polar", ["exact", "newton-schulz"])
@pytest.mark.parametrize(("nesterov", "adjust"), [(True, "original"), (False, "match_rms_adamw")])
def test_three_steps_agree_with_the_twin(shape, polar, nesterov, adjust):
    rng = np.random.default_rng(0)
    W, course = rng.normal(size=shape), list(rng.normal(size=(3, *shape)))
    muon = Muon(lr=0.1, momentum=0.8, weight_decay=0.3, nesterov=nesterov, polar=polar, adjust=adjust)
    twin = MuonTwin(0.1, 0.8, 0.3, nesterov, 5 if polar == "newton-schulz" else 0, adjust != "original")
    np.testing.assert_allclose(moved(muon, W, course), twin.run(W, course), atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (6, 4)])
def test_what_is_no_hidden_matrix_moves_as_by_torch(shape):
    rng = np.random.default_rng(1)
    W, course = rng.normal(size=shape), list(rng.normal(size=(4, *shape)))
    how = {"lr": 0.01, "weight_decay": 0.3}
    for others, twin in {"adamw": AdamW(beta1=0.8, **how), "sgd": SGD(momentum=0.8, **how)}.items():
        muon = Muon(others=others, other_lr=0.01, other_momentum=0.8, weight_decay=0.3)
        np.testing.assert_allclose(moved(muon, W, course, last=True), moved(twin, W, course), atol=1e-12)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_matrices_move_as_by_torch_up_to_bfloat16(adjust):
    rng = np.random.default_rng(2)
    W, course = rng.normal(size=(12, 7)).astype("float32"), rng.normal(size=(3, 12, 7)).astype("float32")
    p = nn.Parameter(torch.tensor(W))
    theirs = torch.optim.Muon([p], lr=0.1, weight_decay=0.3, momentum=0.8, adjust_lr_fn=adjust)
    for G in course:
        p.grad = torch.tensor(G)
        theirs.step()
    ours = moved(Muon(lr=0.1, momentum=0.8, weight_decay=0.3, adjust=adjust), W, list(course))
    assert np.abs(ours - p.detach().numpy()).max() < 0.02 * np.abs(ours - W).max()


# ---- the orthogonal factor


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_both_factors_are_those_of_the_twin(shape):
    G = np.random.default_rng(3).normal(size=shape)
    np.testing.assert_allclose(orthogonal_factor(torch.tensor(G)).numpy(), msign(G), atol=1e-12)
    np.testing.assert_allclose(newton_schulz(torch.tensor(G), 3).numpy(), quintic(G, 3), atol=1e-12)


def test_newton_schulz_brings_singular_values_near_one():
    s = torch.logspace(-2, 0, 200, dtype=torch.float64)
    for value in s:  # in units of the Frobenius norm
        rest = (1 - value**2).clamp_min(0).sqrt()
        found = torch.linalg.svdvals(newton_schulz(torch.diag(torch.stack((value, rest)))))
        assert found[found > 0].min() > 0.68 and found.max() < 1.14


def test_directions_without_a_gradient_stay_still():
    G = torch.randn(6, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    O = orthogonal_factor(G)  # noqa: E741
    assert torch.linalg.svdvals(O).round(decimals=9).tolist() == [1, 1, 0, 0, 0]
    assert torch.equal(orthogonal_factor(0 * G), 0 * G) and torch.equal(newton_schulz(0 * G), 0 * G)


# ---- orthonormal factors


def turned(net):
    """The same net, its bases and cores in other coordinates: U Q1, Q1^T S Q2, V Q2."""
    other = copy.deepcopy(net)
    for _, layer in factored_layers(other):
        Q1, Q2 = (torch.linalg.qr(torch.randn_like(layer.S))[0] for _ in range(2))
        layer.set_factors(USV(layer.U.detach() @ Q1, Q1.T @ layer.S.detach() @ Q2, layer.V.detach() @ Q2))
    return other


def after_steps(net, method, settings, steps=3, constrain=True):
    """The full weights of a net after some steps of a method, with or without its projections."""
    (x, y), optimizer = small_batch(torch.float64), settings.build(method.groups(net))

    def backward():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss.detach()

    for t in range(steps):
        (method if constrain else Dense()).step(net, optimizer, {}, backward, t)
    return [layer.matrix().detach() for _, layer in factored_layers(net)]


def dependence(method, settings, **how):
    """By how much the weights after some steps depend on the coordinates of the factors."""
    torch.manual_seed(0)
    net = method.prepare(small_net(torch.float64))
    method.init(net)
    pairs = zip(
        after_steps(turned(net), method, settings, **how),
        after_steps(net, method, settings, **how),
        strict=True,
    )
    return max((a - b).abs().max().item() for a, b in pairs)


# the gradient of softmax lacks one rank in the last layer, where the step of V is then not orthonormal
METHOD = CondLR(tau=0.5, keep=0.5, last="dense")


@kinds
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_on_orthonormal_factors_do_not_depend_on_their_coordinates(muon, nesterov):
    settings = replace(muon, nesterov=nesterov, lr=0.1, momentum=0.5)
    assert dependence(METHOD, settings, steps=1, constrain=False) < 1e-10
    assert dependence(METHOD, AdamW(lr=0.1), steps=1, constrain=False) > 1e-2, "elementwise scaling does"


def test_nor_do_whole_steps_of_condlr():
    """The retraction divides by a number, since the step of a basis is orthogonal to it and orthonormal itself."""
    assert dependence(METHOD, Muon(polar="exact", lr=0.1, momentum=0.5)) < 1e-9
    assert dependence(METHOD, AdamW(lr=0.1)) > 1e-2
    near = [dependence(METHOD, Muon(lr=lr), steps=1) for lr in (0.1, 0.01)]
    assert near[1] < 0.02 * near[0], "with Newton-Schulz up to the square of the learning rate"


def test_free_factors_have_more_coordinates_than_that():
    """U A and V A^-T for an invertible A: the same W, and after a step of Muon another one."""
    torch.manual_seed(0)
    net = UV(keep=0.5).prepare(small_net(torch.float64))
    other = copy.deepcopy(net)
    for _, layer in factored_layers(other):
        A = torch.randn(layer.rank, layer.rank, dtype=torch.float64) + 2 * torch.eye(layer.rank)
        layer.U.data, layer.V.data = layer.U.data @ A, layer.V.data @ torch.linalg.inv(A).T
    a, b = (after_steps(one, UV(), Muon(polar="exact", lr=0.1), 1, constrain=False) for one in (net, other))
    assert max((p - q).abs().max().item() for p, q in zip(a, b, strict=True)) > 1e-2


# ---- in the loop


NAMES = ("dense", "uv", "condlr", "cstar", "cayley", "spectral")


@kinds
@pytest.mark.parametrize("name", NAMES)
def test_every_step_keeps_what_the_method_claims_and_the_loss_falls(name, muon):
    case = METHOD_CASES[name]
    fit = Fit(case.low, replace(muon, lr=0.05))
    losses = []
    for _ in range(15):
        losses.append(fit.step())
        case.holds(fit.model, case.low)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("others", ["adamw", "sgd"])
@pytest.mark.parametrize("name", NAMES)
def test_stop_and_resume_equals_straight_through_to_the_bit(name, others, mnist, tmp_path):
    run = tiny_run(mnist, method=METHOD_CASES[name].low, optimizer=Muon(others=others), epochs=2)
    straight = train(run, tmp_path / "straight")
    for epoch in range(run.epochs + 1):
        stopped = train(run, tmp_path / "stopped", resume=True, until=epoch)
    for file in ("last.safetensors", "model.safetensors"):
        a, b = load_file(straight / file), load_file(stopped / file)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_learns(mnist, tmp_path):
    run = tiny_run(mnist, method=CondLR(keep=0.5), epochs=8, optimizer=Muon(lr=0.02, other_lr=0.01))
    folder = train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    course = [line["loss"] for line in lines if "epoch" in line]
    assert course[-1] < 0.5 * course[0]


def test_the_last_layer_and_vectors_are_the_others():
    net = CondLR(keep=0.5).prepare(small_net())
    optimizer = Muon(other_lr=0.003).build(CondLR().groups(net), last_parameters(net))
    matrices = {id(p) for group in optimizer.param_groups if group["matrices"] for p in group["params"]}
    expected = {id(p) for name, p in net.named_parameters() if p.ndim >= 2 and not name.startswith("5.")}
    assert matrices == expected and len(matrices) == 6
    assert {group["lr"] for group in optimizer.param_groups if not group["matrices"]} == {0.003}
    set_lr(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.0015, 0.01]
    assert last_parameters(nn.Sequential(nn.Linear(2, 2))) == [], "one layer is not a last one"


def test_a_closure_gives_the_loss_back():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon().build([{"params": [p]}])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0 and (p < 1).all()


def test_it_is_chosen_by_name(mnist):
    run = override(
        tiny_run(mnist), pairs_of(["optimizer=muon", "optimizer.lr=0.05", "optimizer.polar=exact"])
    )
    assert run.optimizer == Muon(lr=0.05, polar="exact"), "nothing of SGD stays"


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"polar": "svd"}, {"steps": 0}, {"others": "lion"}])
def test_settings_are_checked_at_the_door(wrong):
    with refuses(f"muon.{next(iter(wrong))}"):
        Muon(**wrong)
