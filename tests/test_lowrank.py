"""What low-rank methods share: a budget for the whole net in place of a kept fraction; frozen layers; refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import Fit, small_net, tiny_run
from expect import refuses
from ironrank.data import MNIST
from ironrank.methods import DLRT, SVD, UV, CondLR, Method, RobustDLRT, SVDPrune
from ironrank.methods.lowrank import LowRank
from ironrank.models import Given, LeNet5, count
from ironrank.optim import SGD
from ironrank.ranks.cost import count_params
from ironrank.surgery import deploy, factored_layers, factorize
from ironrank.training import train

METHODS = {
    "svd": SVD(budget="params=8x"),
    "uv-auto": UV(budget="params=8x", form="auto"),
    "condlr-tucker2": CondLR(budget="params=8x", form="tucker2", last="low-rank"),
}


def lenet5() -> nn.Module:
    torch.manual_seed(0)
    return LeNet5().build(MNIST().spec)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_deployed_net_meets_the_budget_within_one_direction(method: LowRank) -> None:
    limit = count(LeNet5(), MNIST().spec) / 8
    net = method.prepare(lenet5())
    size = sum(p.numel() for p in deploy(net).parameters())
    directions = [layer.U.shape[0] + layer.V.shape[0] for _, layer in factored_layers(net)]
    assert limit - max(directions) < size <= limit


def test_a_layer_that_no_rank_pays_for_stays_dense() -> None:
    plan = SVD(budget="params=2x").plan(lenet5(), core=False)
    dense = {row.name: row.reason for row in plan.rows if row.rank is None}
    assert "conv1" in dense
    assert "budget" in dense["conv1"]


def test_given_ranks_and_left_out_layers_hold_under_a_budget() -> None:
    net = SVD(budget="params=8x", ranks={"fc1": 10}, exclude=("conv2",)).prepare(lenet5())
    assert isinstance(net.get_submodule("conv2"), nn.Conv2d)
    assert net.get_submodule("fc1").rank == 10


def test_keep_and_budget_exclude_each_other() -> None:
    with refuses("keep=0.5", "svd.budget='params=8x'", "give one of them"):
        SVD(keep=0.5, budget="params=8x")


def test_a_budget_that_needs_an_input_is_refused() -> None:
    with refuses("svd.budget='macs=2x'", "params, bytes"):
        SVD(budget="macs=2x")
    with refuses("budget='parms=2x'", "did you mean 'params'?"):
        CondLR(budget="parms=2x")


LOW = {
    "svd": SVD(keep=0.5),
    "uv": UV(keep=0.5),
    "condlr": CondLR(keep=0.5, tau=0.5),
    "dlrt": DLRT(keep=0.5),
    "robust-dlrt": RobustDLRT(keep=0.5),
    "svd-prune": SVDPrune(energy=0.3, steps=2),
}


@pytest.mark.parametrize("method", LOW.values(), ids=LOW)
def test_a_frozen_layer_stays_what_it_is(method: Method) -> None:
    net = small_net()
    frozen = next(m for m in net if isinstance(m, nn.Conv2d))
    frozen.requires_grad_(False)
    fit = Fit(method, SGD(lr=0.1, momentum=0.9), given=net)
    layer = fit.model[0]
    assert layer is not frozen and not any(p.requires_grad for p in layer.parameters())
    before = layer.dense().clone()
    for _ in range(4):
        fit.step()
    after = method.finish(fit.model, fit.state)[0].dense()
    assert torch.equal(before, after)


def test_a_frozen_first_layer_is_the_first_all_the_same() -> None:
    def ranks(frozen: bool) -> list[int]:
        torch.manual_seed(0)
        layers = [nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3)]
        net = nn.Sequential(nn.Flatten(), *layers)
        net[1].requires_grad_(not frozen)
        fit = Fit(RobustDLRT(cycle=2, keep=0.5, tolerance=0.0), SGD(lr=0.1), given=net)
        for _ in range(4):
            fit.step()
        return [layer.rank for _, layer in factored_layers(fit.model)]

    assert ranks(frozen=True) == ranks(frozen=False) == [24, 10, 3]


def test_a_budget_counts_what_is_frozen_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    net[0].requires_grad_(False)
    with refuses("svd-prune.budget='params=3x'", "ask for less compression"):
        SVDPrune(budget="params=3x").prepare(net)
    net = SVDPrune(budget="params=1.5x").prepare(net)
    assert (
        count_params(deploy(SVDPrune(budget="params=1.5x").finish(net, {"pruned": torch.tensor(0)})))
        <= 8320 / 1.5
    )


@pytest.mark.parametrize("method", LOW.values(), ids=LOW)
def test_a_resumed_training_knows_what_is_frozen(method: Method, mnist, tmp_path) -> None:
    def given() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)
        )
        net[3].requires_grad_(False)
        return net

    run = tiny_run(mnist, model=Given(), method=method, epochs=2, optimizer=SGD(lr=0.05, momentum=0.9))
    nets = []
    for name, stops in (("straight", (2,)), ("resumed", (1, 2))):
        for stop in stops:
            train(run, tmp_path / name, model=given(), until=stop, resume=stop != stops[0])
        nets.append((tmp_path / name / "last.safetensors").read_bytes())
    assert nets[0] == nets[1]


NOTHING = [type(m)(exclude=("*",)) for m in LOW.values()] + [RobustDLRT(budget="params=1x", exclude=("*",))]


@pytest.mark.parametrize("method", NOTHING, ids=[*LOW, "budget"])
def test_a_net_of_which_nothing_becomes_low_rank_is_refused(method: Method) -> None:
    with refuses(f"{method.label()}: no layer of the model becomes low-rank", "exclude less"):
        method.prepare(small_net())


def test_weights_in_half_precision_are_adopted_or_refused_in_one_line() -> None:
    for method in (DLRT(), RobustDLRT()):
        with refuses("is bfloat16: allowed are float32 and float64"):
            method.prepare(small_net().bfloat16())
    for core in (True, False):
        net = factorize(small_net().bfloat16(), 0.5, core=core)
        before = net[0].dense().float()
        layer = CondLR().prepare(net)[0]
        assert {factor.dtype for factor in (layer.U, layer.S, layer.V)} == {torch.bfloat16}
        assert torch.allclose(layer.dense().float(), before, atol=0.02)
