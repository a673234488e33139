"""DLRT: its twin, ranks that it finds, sizes that it meets, and what changes of rank must not break."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import Fit, small_batch, small_net, tiny_run
from expect import refuses
from ironrank.artifact import load_model
from ironrank.linalg import USV, UV, orthonormality_error, truncated_svd
from ironrank.methods import DLRT
from ironrank.optim import SGD, AdamW
from ironrank.surgery import deploy, factored_layers, factorize
from ironrank.training import train
from ironrank.training.average import Average, decay_at
from twins_dlrt import DLRTTwin

whole = torch.float64
FREE = {"first": "low-rank", "last": "low-rank"}


def ranks_of(model: nn.Module) -> list:
    return [layer.rank for _, layer in factored_layers(model)]


def steps(method: DLRT, model: nn.Module, optimizer, loss, count: int) -> None:
    state = method.init(model)

    def backward():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value.detach()

    for t in range(count):
        method.step(model, optimizer, state, backward, t)


# ---- the twin


def linear_problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    x, y = torch.randn(12, 9, dtype=whole), torch.randn(12, 6, dtype=whole)
    plain = lambda W, b: F.mse_loss(F.linear(torch.tanh(F.linear(x, W[0], b[0])), W[1], b[1]), y)  # noqa: E731
    return net, plain, lambda model: F.mse_loss(model(x), y)


def conv_problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 2)).double()
    x, y = torch.randn(4, 2, 5, 4, dtype=whole), torch.randn(4, 5, 4, 3, dtype=whole)

    def plain(W, b):
        hidden = torch.tanh(F.conv2d(x, W[0].reshape(6, 2, 3, 3), b[0], padding=1))
        return F.mse_loss(F.conv2d(hidden, W[1].reshape(5, 6, 2, 2), b[1]), y)

    return net, plain, lambda model: F.mse_loss(model(x), y)


PROBLEMS = {"linear": linear_problem, "conv": conv_problem}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("keep, theta", [(0.4, 0.05), (0.8, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_three_steps_agree_with_the_twin(problem, keep, theta, momentum):
    net, plain, loss = PROBLEMS[problem]()
    method = DLRT(keep=keep, tolerance=theta, **FREE)
    layers = [layer for _, layer in factored_layers(method.prepare(net))]
    U, S, V, b = (
        [getattr(q, key).detach().numpy().copy() for q in layers] for key in ("U", "S", "V", "bias")
    )
    most = [high[0] for _, high in method.bounds(net).values()]
    twin = DLRTTwin(plain, U, S, V, b, theta, most, lr=0.2, momentum=momentum)
    optimizer = torch.optim.SGD(method.groups(net), lr=0.2, momentum=momentum)
    steps(method, net, optimizer, loss, 3)
    for _ in range(3):
        twin.step()
    for layer, W, bias in zip(layers, twin.weights(), twin.bias, strict=True):
        np.testing.assert_allclose(layer.matrix().detach(), W, atol=1e-10)
        np.testing.assert_allclose(layer.bias.detach(), bias, atol=1e-10)
    assert ranks_of(net) == [len(S) for S in twin.S]


# ---- ranks


def teacher_problem(rank: int, n: int = 14, m: int = 18):
    torch.manual_seed(1)
    target = truncated_svd(torch.randn(n, m, dtype=whole), rank)
    target = USV(target.U, torch.diag(torch.linspace(3, 2, rank, dtype=whole)), target.V).dense()
    x = torch.randn(60, m, dtype=whole)
    return (
        nn.Sequential(nn.Linear(m, n, bias=False)).double(),
        target,
        lambda net: F.mse_loss(net(x), x @ target.T),
    )


@pytest.mark.parametrize("rank", [2, 4, 6])
@pytest.mark.parametrize("optimizer", [SGD(lr=1.0, momentum=0.0), SGD(lr=0.5, momentum=0.5), AdamW(lr=0.1)])
def test_the_planted_rank_is_found(rank, optimizer):
    net, target, loss = teacher_problem(rank)
    method = DLRT(keep=1.0, tolerance=0.02, **FREE)
    built = optimizer.build(method.groups(method.prepare(net)))
    steps(method, net, built, loss, 150)
    assert ranks_of(net) == [rank]
    assert (net[0].matrix() - target).norm() < 0.05 * target.norm()


def test_ranks_go_up_as_well():
    net, target, loss = teacher_problem(5)
    factorize(net, ranks={"0": 2})
    steps(DLRT(keep=1.0, tolerance=0.02, **FREE), net, torch.optim.SGD(net.parameters(), lr=1.0), loss, 150)
    assert ranks_of(net) == [5] and (net[0].matrix() - target).norm() < 0.05 * target.norm()


def test_half_normal_singular_values_at_the_start():
    nets = []
    for _ in range(2):
        model = small_net(whole)  # seeds torch
        nets.append(DLRT(spectrum="half-normal", keep=1.0, **FREE).prepare(model))
    for (_, layer), (_, again) in zip(*(factored_layers(net) for net in nets), strict=True):
        s = torch.linalg.svdvals(layer.matrix().detach())
        torch.testing.assert_close(layer.S.detach(), torch.diag(s[: layer.rank]))
        assert 0.5 < s[0] < 4 and torch.equal(layer.S, again.S)
    plain = dict(factored_layers(DLRT(keep=1.0, **FREE).prepare(small_net(whole))))
    for name, layer in factored_layers(nets[0]):
        assert torch.equal(layer.U, plain[name].U) and (layer.S - plain[name].S).abs().max() > 0.1


def test_ranks_stay_within_their_limits():
    method = DLRT(keep=0.6, tolerance=0.9, min_rank=2, ranks={"3": 7}, round_to=2)
    fit = Fit(method, SGD(lr=0.1))
    assert ranks_of(fit.model) == [4, 7]
    fit.step()
    assert ranks_of(fit.model) == [2, 2], "a large tolerance ends at the smallest rank"
    fit = Fit(DLRT(keep=1.0, tolerance=0.0, max_rank=3), SGD(lr=0.1))
    assert ranks_of(fit.model) == [3, 3], "training starts there"
    for _ in range(3):
        fit.step()
        assert ranks_of(fit.model) == [3, 3]


def test_a_basis_of_full_rank_moves():
    fit = Fit(DLRT(keep=1.0, tolerance=0.0, **FREE), SGD(lr=0.1), whole)
    old = {name: layer.V.detach().clone() for name, layer in factored_layers(fit.model)}
    fit.step()
    for name, layer in factored_layers(fit.model):
        V = layer.V.detach()
        outside = (V - old[name] @ (old[name].mT @ V)).norm()
        assert layer.rank == layer.full_rank and outside > 1e-4, name


def test_bases_stay_orthonormal_and_biases_train_under_weight_decay():
    fit = Fit(DLRT(keep=0.75, **FREE), AdamW(lr=0.02, weight_decay=0.5))
    bias = fit.model[0].bias.detach().clone()
    for _ in range(40):
        fit.step()
    for _, layer in factored_layers(fit.model):
        assert max(orthonormality_error(layer.U.detach()), orthonormality_error(layer.V.detach())) < 1e-5
    assert (fit.model[0].bias - bias).abs().min() > 0


# ---- sizes


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in deploy(model).parameters())


@pytest.mark.parametrize("ratio", [2, 4])
def test_a_budget_holds_after_every_step_and_at_the_end(ratio):
    limit = size(small_net()) / ratio
    fit = Fit(
        DLRT(keep=1.0, tolerance=0.0, min_rank=1, budget=f"params={ratio}x", last="low-rank"), SGD(lr=0.1)
    )
    assert size(fit.method.finish(fit.model, {})) <= limit, "before the first step too"
    for _ in range(6):
        fit.step()
        assert limit - 75 < size(fit.model) <= limit, "within one direction"
        assert fit.method.watch(fit.model, {})["params"] == size(fit.model)


@pytest.mark.parametrize("ratio", [1.5, 2, 4])
def test_a_budget_is_met_at_the_least_tolerance_that_does_the_same_for_all_layers(ratio):
    free = DLRT(keep=1.0, tolerance=0.0, min_rank=1, last="low-rank")
    net = free.prepare(small_net())
    limit = size(small_net()) / ratio

    def cut(method: DLRT, theta: float) -> nn.Module:
        found = copy.deepcopy(net)
        method.truncate(found, tolerance=theta)
        return found

    thetas = (number / 1000 for number in range(1001))
    expected = next(found for theta in thetas if size(found := cut(free, theta)) <= limit)
    found = cut(replace(free, budget=f"params={ratio}x"), 0.0)
    assert [layer.rank for _, layer in factored_layers(found)] == [
        layer.rank for _, layer in factored_layers(expected)
    ]


def test_within_meets_a_number_of_parameters():
    for params in (200, 350, 500):
        method = DLRT(min_rank=1).within(small_net(), params)
        net = method.finish(method.prepare(small_net()), {})
        assert size(net) <= params and DLRT(min_rank=1).within(small_net().to("meta"), params) == method
    with refuses("dlrt within 50 parameters", "lower min_rank"):
        DLRT().within(small_net(), 50)


def test_what_cannot_be_is_refused():
    with refuses("dlrt.budget='params=30x'", "smallest ranks"):
        DLRT(budget="params=30x").prepare(small_net())
    with refuses("allowed is params, bytes"):
        DLRT(budget="macs=2x")
    with refuses("dlrt.form='tucker2'", "channel, spatial"):
        DLRT(form="tucker2")
    with refuses("layer '0' is in Tucker-2 form", "robust-dlrt"):
        DLRT().prepare(factorize(small_net(), 0.5, form="tucker2"))
    with refuses("dlrt.max_rank=1", "at least dlrt.min_rank=2"):
        DLRT(max_rank=1)
    with refuses("cannot be attached", "DLRT.step"):
        DLRT().attach(small_net(), None)
    with refuses("RMSprop keeps 'square_avg'", "SGD and Adam"):
        model = DLRT().prepare(small_net())
        fitted = torch.optim.RMSprop(model.parameters())
        x, y = small_batch()
        steps(DLRT(), model, fitted, lambda net: F.cross_entropy(net(x), y), 2)


# ---- what a change of rank must not break


def test_the_average_is_the_nearest_net_to_the_mean_of_the_weights():
    fit = Fit(DLRT(keep=0.75, tolerance=0.1), SGD(lr=0.1, momentum=0.0), whole)
    average, means = Average(fit.model, 0.9), {}
    means = {name: layer.matrix().detach() for name, layer in factored_layers(fit.model)}
    for t in range(30):
        fit.step()
        average.update(fit.model, t)
        for name, layer in factored_layers(fit.model):
            d = decay_at(0.9, t)
            means[name] = d * means[name] + (1 - d) * layer.matrix().detach()
    for name, layer in factored_layers(average.model(fit.model, fit.method)):
        expected = truncated_svd(means[name], layer.rank).dense()
        torch.testing.assert_close(layer.matrix().detach(), expected, rtol=1e-9, atol=1e-12)


def test_a_compiled_model_follows_the_ranks():
    method, (x, y) = DLRT(keep=1.0, tolerance=0.3, **FREE), small_batch()
    nets = [method.prepare(small_net()) for _ in range(2)]
    compiled = torch.compile(nets[0], backend="eager")
    for run, net in ((compiled, nets[0]), (nets[1], nets[1])):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
        steps(method, net, optimizer, lambda _, run=run: F.cross_entropy(run(x), y), 4)
    assert ranks_of(nets[0]) == ranks_of(nets[1]) != ranks_of(method.prepare(small_net()))
    torch.testing.assert_close(compiled(x), nets[1](x))


def test_a_resumed_average_goes_on_to_the_bit(mnist, tmp_path):
    run = tiny_run(
        mnist, method=DLRT(keep=0.75, tolerance=0.2), average=0.9, epochs=3, optimizer=AdamW(lr=0.01)
    )
    straight = train(run, tmp_path / "straight")
    for epoch in (1, 2, 3):
        stopped = train(run, tmp_path / "stopped", resume=True, until=epoch)
    for which in ("best", "last"):
        a, b = (load_model(folder, which).state_dict() for folder in (straight, stopped))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_factors_without_a_core_get_one():
    net = factorize(small_net(), 0.5, core=False)
    assert isinstance(net[0].factors(), UV)
    x, _ = small_batch()
    before = net(x).detach()
    torch.testing.assert_close(DLRT().prepare(net)(x).detach(), before, rtol=1e-4, atol=1e-5)
    assert isinstance(net[0].factors(), USV)
