"""What low-rank methods share: a budget for the whole net in place of a kept fraction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expect import refuses
from ironrank.data import MNIST
from ironrank.methods import SVD, UV, CondLR
from ironrank.methods.lowrank import LowRank
from ironrank.models import LeNet5, count
from ironrank.surgery import deploy, factored_layers

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
