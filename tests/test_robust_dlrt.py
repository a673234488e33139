"""RobustDLRT: its twin on matrices and Tucker-2 kernels, ranks that it finds, its regulariser, its promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import Fit, small_batch, small_net, tiny_run
from expect import refuses
from ironrank.artifact import load_model
from ironrank.linalg import condition_number, orthonormality_error, spread, truncated_svd
from ironrank.methods import DLRT, RobustDLRT
from ironrank.optim import SGD, AdamW
from ironrank.ranks.cores import pair_of
from ironrank.surgery import deploy, factored_layers, factorize
from ironrank.training import train
from test_dlrt import ranks_of, size, steps, teacher_problem
from twins_dlrt import RobustDLRTTwin

whole = torch.float64
FREE = {"first": "low-rank", "last": "low-rank"}


# ---- the twin


def kernel(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 4 else array[:, :, None, None]


@pytest.mark.parametrize("keep, theta", [(0.4, 0.02), (0.7, 0.3), (1.0, 0.05)])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("cycle", [1, 2, 5])
def test_steps_agree_with_the_twin(keep, theta, momentum, cycle):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 10, (1, 2)), nn.Tanh(), nn.Conv2d(10, 6, 3), nn.Flatten(), nn.Tanh(), nn.Linear(72, 7)
    ).double()
    x, y = torch.randn(5, 3, 6, 6, dtype=whole), torch.randn(5, 7, dtype=whole)

    def plain(W, b):
        hidden = F.conv2d(torch.tanh(F.conv2d(x, W[0], b[0])), W[1], b[1])
        return F.mse_loss(F.linear(torch.tanh(hidden.flatten(1)), W[2].flatten(1), b[2]), y)

    method = RobustDLRT(keep=keep, tolerance=theta, beta=0.03, cycle=cycle, **FREE)
    method.prepare(net)
    layers = [layer for _, layer in factored_layers(net)]
    U, S, V, b = (
        [getattr(layer, key).detach().numpy().copy() for layer in layers] for key in ("U", "S", "V", "bias")
    )
    most = [high for _, high in method.bounds(net).values()]
    twin = RobustDLRTTwin(plain, U, [kernel(s) for s in S], V, b, [s.ndim == 2 for s in S], most,
                          [pair_of(layer.full_rank) for layer in layers], theta, 0.03, cycle,
                          lr=0.2, momentum=momentum)  # fmt: skip
    optimizer = torch.optim.SGD(method.groups(net), lr=0.2, momentum=momentum)
    state = method.init(net)

    def backward():
        optimizer.zero_grad()
        value = F.mse_loss(net(x), y) + method.penalty(net, state)
        value.backward()
        return value.detach()

    for t in range(6):
        method.step(net, optimizer, state, backward, t)
        twin.step()
        for layer, W, bias in zip(layers, twin.weights(), twin.bias, strict=True):
            np.testing.assert_allclose(kernel(layer.dense().detach().numpy()), W, atol=1e-9)
            np.testing.assert_allclose(layer.bias.detach(), bias, atol=1e-9)
    assert [pair_of(rank) for rank in ranks_of(net)] == [s.shape[:2] for s in twin.S]


# ---- ranks


@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("optimizer", [SGD(lr=1.0, momentum=0.0), SGD(lr=0.5, momentum=0.5), AdamW(lr=0.1)])
@pytest.mark.parametrize("begin", ["from above", "from below"])
def test_the_planted_rank_is_found(rank, optimizer, begin):
    net, target, loss = teacher_problem(rank)
    if begin == "from below":
        factorize(net, ranks={"0": 1})
    method = RobustDLRT(keep=1.0, tolerance=0.02, beta=0.0, cycle=5, **FREE)
    built = optimizer.build(method.groups(method.prepare(net)))
    steps(method, net, built, loss, 150)
    assert ranks_of(net) == [rank]
    assert (net[0].matrix() - target).norm() < 0.05 * target.norm()


def test_the_planted_ranks_of_a_convolution_are_found():
    torch.manual_seed(2)
    teacher, net = (nn.Sequential(nn.Conv2d(8, 9, 3, bias=False)).double() for _ in range(2))
    factorize(teacher, ranks={"0": (3, 2)}, form="tucker2")
    x = torch.randn(30, 8, 6, 6, dtype=whole)
    y = teacher(x).detach()
    method = RobustDLRT(keep=1.0, tolerance=0.02, beta=0.0, cycle=5, **FREE)
    optimizer = torch.optim.SGD(method.prepare(net).parameters(), lr=2.0)
    steps(method, net, optimizer, lambda net: F.mse_loss(net(x), y), 300)
    assert ranks_of(net) == [(3, 2)]
    assert (net[0].dense() - teacher[0].dense()).norm() < 0.05 * teacher[0].dense().norm()


# ---- the regulariser


@pytest.mark.parametrize("form", ["channel", "tucker2"])
def test_a_larger_beta_leaves_a_smaller_condition_number(form):
    conds = []
    for beta in (0.0, 0.02, 0.2):
        fit = Fit(
            RobustDLRT(keep=0.75, beta=beta, cycle=5, form=form, tolerance=0.01, **FREE), SGD(lr=0.05), whole
        )
        for _ in range(60):
            fit.step()
        conds.append(
            max(float(condition_number(q.unfoldings()[0].detach())) for _, q in factored_layers(fit.model))
        )
    assert conds[0] > 1.5 * conds[1] > 1.5 * conds[2] and conds[2] < 3, conds


def test_the_penalty_is_beta_times_the_sum_of_spreads_and_has_a_gradient_everywhere():
    method = RobustDLRT(keep=0.5, beta=0.3)
    net = method.prepare(small_net(whole))
    expected = 0.3 * sum(spread(layer.unfoldings()[0]) for _, layer in factored_layers(net))
    torch.testing.assert_close(method.penalty(net, {}), expected)
    for _, layer in factored_layers(net):
        layer.S.data.zero_().view(layer.S.shape[0], -1).fill_diagonal_(2.0)
    method.penalty(net, {}).backward()
    assert all((layer.S.grad == 0).all() for _, layer in factored_layers(net)), "R = 0 everywhere"
    assert dataclasses.replace(method, beta=0.0).penalty(net, {}) == 0.0


# ---- what the published code gets wrong


def test_bases_stay_orthonormal_and_biases_train_under_weight_decay():
    fit = Fit(RobustDLRT(keep=0.5, cycle=4), AdamW(lr=0.02, weight_decay=0.5))
    biases = {key: value.clone() for key, value in fit.model.state_dict().items() if "bias" in key}
    for _ in range(42):
        fit.step()
        for _, layer in factored_layers(fit.model):
            assert max(orthonormality_error(layer.U.detach()), orthonormality_error(layer.V.detach())) < 1e-5
    assert len(biases) == 3
    assert all((fit.model.state_dict()[key] - bias).abs().min() > 0 for key, bias in biases.items())


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.5), AdamW(lr=0.01)])
def test_bases_of_full_rank_move(optimizer):
    fit = Fit(RobustDLRT(keep=1.0, tolerance=0.0), optimizer, whole)
    old = {name: layer.V.detach().clone() for name, layer in factored_layers(fit.model)}
    for _ in range(3):
        fit.step()
    for name, layer in factored_layers(fit.model):
        V, full = layer.V.detach(), pair_of(layer.full_rank)[1]
        outside = (V - old[name] @ (old[name].mT @ V)).norm()
        assert layer.rank == layer.full_rank and (outside > 1e-4) == (full < len(V)), name


def test_every_batch_moves_the_core():
    fit = Fit(RobustDLRT(keep=0.5, cycle=3), SGD(lr=0.1))
    for _ in range(6):
        before = fit.model[3].dense().detach().clone()
        fit.step()
        assert (fit.model[3].dense() - before).abs().max() > 1e-4


def test_a_step_takes_one_gradient_and_a_change_of_basis_one_more():
    fit, calls = Fit(RobustDLRT(keep=0.5, cycle=3), SGD(lr=0.1)), []
    whole_backward = fit.backward
    fit.backward = lambda: calls.append(1) or whole_backward()  # type: ignore[method-assign]
    for _ in range(6):
        fit.step()
    assert len(calls) == 6 + 2


# ---- sizes, and what a change of rank must not break


def test_a_budget_holds_after_every_cycle_and_at_the_end():
    limit = size(small_net()) / 2.5
    fit = Fit(RobustDLRT(keep=1.0, cycle=3, min_rank=1, budget="params=2.5x", **FREE), SGD(lr=0.1))
    for t in range(8):
        fit.step()
        assert fit.method.watch(fit.model, fit.state)["params"] <= limit
        assert t % 3 != 2 or size(fit.model) <= limit
    assert ranks_of(fit.model) != ranks_of(fit.method.finish(fit.model, fit.state)), "stopped within a cycle"
    assert size(fit.model) <= limit


def test_within_gives_up_full_ends_only_where_it_has_to():
    net = small_net()
    made = {params: RobustDLRT(min_rank=1).within(net, params) for params in (400, 140, 120)}
    ends = [("full-rank", "full-rank"), ("full-rank", "low-rank"), ("low-rank", "low-rank")]
    assert [(method.first, method.last) for method in made.values()] == ends
    for params, method in made.items():
        assert size(method.finish(method.prepare(small_net()), {})) <= params
    with refuses("robust-dlrt within 60 parameters"):
        RobustDLRT().within(net, 60)


def test_it_starts_from_given_factors_too():
    net, (x, _) = factorize(small_net(), 0.5, form="tucker2"), small_batch()
    before = net(x).detach()
    assert RobustDLRT.begins == "trained" and DLRT.begins == "random"
    torch.testing.assert_close(RobustDLRT().prepare(net)(x).detach(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_that_stops_within_a_cycle_goes_on_to_the_bit(average, mnist, tmp_path):
    method = RobustDLRT(keep=0.75, cycle=3, tolerance=0.05)
    run = tiny_run(mnist, method=method, average=average, epochs=3, optimizer=AdamW(lr=0.01))
    straight = train(run, tmp_path / "straight")
    for epoch in (1, 2, 3):  # of four steps each
        stopped = train(run, tmp_path / "stopped", resume=True, until=epoch)
    for which in ("best", "last"):
        a, b = (load_model(folder, which).state_dict() for folder in (straight, stopped))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_saved_is_truncated():
    fit = Fit(RobustDLRT(keep=0.5, cycle=50, tolerance=0.2), SGD(lr=0.1), whole)
    fit.step()
    widened = ranks_of(fit.model)
    dense = [layer.dense().detach().clone() for _, layer in factored_layers(fit.model)]
    final = fit.method.finish(fit.model, fit.state)
    assert ranks_of(final)[1] < widened[1]
    for (_, layer), W in zip(factored_layers(final), dense, strict=True):
        assert (layer.dense() - W).norm() <= 0.2 * W.norm() * (1 + 1e-9)
    W = dense[1]
    torch.testing.assert_close(final[3].dense().detach(), truncated_svd(W, final[3].rank).dense())
    assert sum(p.numel() for p in deploy(final).parameters()) == fit.method.watch(final, {})["params"]


def test_directions_that_are_lost_in_rounding_are_not_added():
    net = factorize(nn.Sequential(nn.Linear(9, 8)).double(), ranks={"0": 3})
    layer, method = net[0], RobustDLRT(beta=0.0, cycle=2, tolerance=0.0, keep=1.0, **FREE)
    x = torch.randn(1, 9, dtype=whole)  # of one image the gradient has rank 1
    steps(method, net, torch.optim.SGD(net.parameters(), lr=0.1), lambda net: net(x).square().sum(), 1)
    assert layer.rank == 4
