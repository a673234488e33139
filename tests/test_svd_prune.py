"""SVD training: its twin, its penalties, pruning by energy and within a budget, and moments that follow."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import GRAY, Fit, small_batch, small_net, tiny_run
from expect import refuses
from ironrank.artifact import load_model
from ironrank.data import DataSpec
from ironrank.linalg import orthonormality_error
from ironrank.methods import SVDPrune
from ironrank.methods.svd_prune import rank_at
from ironrank.models import LeNet5, ResNet18
from ironrank.optim import SGD, AdamW
from ironrank.ranks.cost import count_params
from ironrank.surgery import deploy, factored_layers, factorize
from ironrank.training import train
from twins_prune import SVDPruneTwin

whole = torch.float64


@pytest.mark.parametrize("kind", ["hoyer", "l1"])
def test_steps_agree_with_the_twin(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(16, 6, dtype=whole), torch.randn(16, 3, dtype=whole)

    def twin_loss(W, b):
        return F.mse_loss(F.linear(torch.tanh(F.linear(x, W[0], b[0])), W[1], b[1]), y)

    method = SVDPrune(energy=0.2, steps=5, orthogonality=0.7, sparsity=0.05, penalty_of=kind)
    net = method.prepare(net)
    state, layers = method.init(net), [net[0], net[2]]
    arrays = (
        [getattr(layer, key).detach().numpy().copy() for layer in layers] for key in ("U", "S", "V", "bias")
    )
    U, S, V, b = arrays
    twin = SVDPruneTwin(
        twin_loss, U, [np.diag(core).copy() for core in S], V, b, 0.7, 0.05, kind == "hoyer", lr=0.2
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)

    def backward():
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y) + method.penalty(net, state)
        loss.backward()
        return loss.detach()

    for t in range(5):
        method.step(net, optimizer, state, backward, t)
        twin.step()
        for k, layer in enumerate(layers):
            np.testing.assert_allclose(layer.U.detach(), twin.U[k], atol=1e-12)
            np.testing.assert_allclose(layer.S.detach(), np.diag(twin.s[k]), atol=1e-12)
            np.testing.assert_allclose(layer.V.detach(), twin.V[k], atol=1e-12)
            np.testing.assert_allclose(layer.bias.detach(), twin.b[k], atol=1e-12)
    method.finish(net, state)
    assert [layer.rank for layer in layers] == twin.ranks(0.2) != [6, 3]


def test_the_bases_stay_orthonormal_and_the_spectrum_becomes_sparse():
    with_, without = (Fit(SVDPrune(sparsity=s), SGD(lr=0.1)) for s in (0.3, 0.0))
    for _ in range(150):
        with_.step(), without.step()
    ranks = []
    for fit in (with_, without):
        layer = fit.model[3]
        assert max(float(orthonormality_error(basis.detach())) for basis in (layer.U, layer.V)) < 0.5
        ranks.append(rank_at(layer.S.diagonal(), 0.01))
    assert ranks[0] < ranks[1], ranks
    loose = Fit(SVDPrune(sparsity=0.0, orthogonality=0.0), SGD(lr=0.1))
    for _ in range(150):
        loose.step()
    drift = [float(orthonormality_error(fit.model[3].U.detach())) for fit in (without, loose)]
    assert drift[0] < 0.5 * drift[1]


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize("ratio", [2, 4])
def test_budgets_are_met_by_what_drops_least_of_all_layers_together(form, ratio):
    torch.manual_seed(0)
    net = ResNet18(width=0.125).build(DataSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3))
    before, method = count_params(net), SVDPrune(budget=f"params={ratio}x", form=form)
    x = torch.rand(2, 3, 32, 32)
    wanted = copy.deepcopy(net).eval()(x).detach()
    net = method.prepare(net)
    assert torch.allclose(net.eval()(x), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    forms = {layer.form for _, layer in factored_layers(net)}
    assert forms == ({"channel", "spatial"} if form == "spatial" else {"channel"})
    layers = dict(factored_layers(net))
    matrices = {name: layer.matrix().detach().clone() for name, layer in layers.items()}
    small = method.finish(net, method.init(net))
    size = count_params(deploy(small))
    assert before / ratio * 0.98 < size <= before / ratio
    gains, full = [], {name: torch.linalg.svdvals(matrix) for name, matrix in matrices.items()}
    for name, layer in layers.items():
        assert torch.allclose(layer.S.diagonal(), full[name][: layer.rank], atol=1e-5)
        if layer.rank < len(full[name]):
            cost = sum(len(basis) for basis in (layer.U, layer.V))
            gains.append(float(full[name][layer.rank - 1] ** 2) / cost)  # of the last one that stays
            gains.append(-float(full[name][layer.rank] ** 2) / cost)  # of the first one that goes
    kept, gone = [g for g in gains if g > 0], [-g for g in gains if g <= 0]
    assert max(gone) < 1.5 * min(kept), "what a layer drops would help no other much more for its cost"


def crooked(seed: int = 0) -> nn.Module:
    """A layer whose bases are not orthonormal and whose core has another order and signs."""
    torch.manual_seed(seed)
    net = SVDPrune().prepare(nn.Sequential(nn.Linear(6, 5, bias=False)).double())
    with torch.no_grad():
        net[0].S.copy_(torch.diag(torch.tensor([0.1, -3.0, 0.2, 2.0, 0.4], dtype=whole)))
        net[0].V.mul_(torch.tensor([9.0, 0.5, 1.0, 0.2, 5.0], dtype=whole)).add_(0.1 * torch.randn(6, 5))
    return net


def test_what_is_dropped_are_singular_values_of_the_weight():
    net = crooked()
    W = net[0].dense().detach().clone()
    s = torch.linalg.svdvals(W)
    SVDPrune(energy=0.2).prune(net)
    r = net[0].rank
    assert r == rank_at(s, 0.2) < 5
    assert torch.allclose(net[0].S, s[:r].diag())
    assert float((W - net[0].dense().detach()).norm()) == pytest.approx(float(s[r:].norm()), rel=1e-9)
    assert max(float(orthonormality_error(basis.detach())) for basis in (net[0].U, net[0].V)) < 1e-12


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05, momentum=0.9), AdamW(lr=0.003)])
def test_moments_of_what_is_decomposed_again_begin_anew(optimizer):
    fit = Fit(SVDPrune(budget="params=2x", steps=3), optimizer)
    for _ in range(3):
        fit.step()
    layer = fit.model[3]
    factors, others = [layer.U, layer.S, layer.V], [layer.bias]
    assert all(fit.built.state[p] for p in factors + others)
    fit.method.prune(fit.model, fit.built)
    assert not any(p in fit.built.state for p in factors) and fit.built.state[layer.bias]
    assert np.isfinite(fit.step())
    for p in factors:
        held = [v for v in fit.built.state[p].values() if torch.is_tensor(v) and v.ndim]
        assert held and all(v.shape == p.shape for v in held)


def test_after_the_cut_steps_are_a_share_of_the_learning_rate():
    fit = Fit(SVDPrune(budget="params=2x", steps=2, rate=0.25), SGD(lr=0.1, momentum=0, weight_decay=0))
    for t in range(4):
        before = [parameter.detach().clone() for parameter in fit.model.parameters()]
        fit.step()
        if t != 2:  # then the factors change their shapes
            for old, new in zip(before, fit.model.parameters(), strict=True):
                rate = 0.1 if t < 2 else 0.025
                assert torch.allclose(new, old - rate * new.grad, atol=1e-7)
        assert {group["lr"] for group in fit.built.param_groups} == {0.1}


def test_an_average_of_weights_is_judged_in_the_form_of_an_svd(mnist, tmp_path):
    run = tiny_run(mnist, method=SVDPrune(budget="params=2x", steps=5), average=0.9, epochs=2)
    net = load_model(train(run, tmp_path / "run"), "last")
    for _, layer in factored_layers(net):
        assert torch.equal(layer.S, layer.S.diagonal().diag())
    assert count_params(deploy(net)) <= count_params(LeNet5(width=0.1).build(GRAY)) / 2


def test_mistakes_get_one_line():
    with refuses("svd-prune.budget='macs=2x': allowed is params"):
        SVDPrune(budget="macs=2x")
    with refuses("svd-prune.budget='params=100x': rank 1 everywhere has", "ask for less"):
        SVDPrune(budget="params=100x").prepare(small_net())
    with refuses("this net is factored"):
        SVDPrune().prepare(factorize(small_net(), 0.5))
    with refuses("rank 1 everywhere"):
        SVDPrune().within(small_net(), 100)
    with torch.device("meta"):
        net = LeNet5().build(GRAY)
    method = SVDPrune(form="spatial").within(net, 50_000)
    assert method.budget == "params=50000" and method.form == "spatial"


def test_the_penalty_is_that_of_the_largest_precision():
    fit, (x, _) = Fit(SVDPrune(), SGD(lr=0.1)), small_batch()
    assert x.shape[0] == 24
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = fit.method.penalty(fit.model, fit.state)
    assert torch.allclose(found.float(), fit.method.penalty(fit.model, fit.state), rtol=1e-6)
