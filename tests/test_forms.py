"""The forms of a layer across the rooms: Tucker-2 and spatial layers, plans, files, the judge, CondLR."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ironrank
from cases import LAYERS, Fit, small_batch, small_net
from expect import refuses
from ironrank.artifact import layout_of, load_model, restore, save
from ironrank.judge.evaluate import describe_layer
from ironrank.layers import (
    FACTORED,
    FORMS,
    TUCKER2,
    FactoredConv1d,
    FactoredConv2d,
    FactoredLinear,
    Tucker2Conv2d,
    frozen,
    full_rank,
    natural_form,
    parts,
)
from ironrank.layers.forms import from_matrix, to_matrix
from ironrank.linalg import USV, Tucker2, condition_number, orthonormality_error
from ironrank.methods import SVD, UV, CondLR
from ironrank.optim import SGD, AdamW
from ironrank.ranks import Site
from ironrank.report import rows, tables, text
from ironrank.surgery import Plan, Row, apply_plan, deploy, factored_layers, factorize, plan
from twins import into_band, sign_fixed_qr

whole = torch.float64
forms = pytest.mark.parametrize("form", FORMS)


def conv_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Convolutions of several shapes, one 1 x 1, and a linear layer, for 3 x 9 x 8 images and 4 classes."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 12, 3, padding=1), nn.Tanh(), nn.Conv2d(12, 16, (3, 2), stride=2), nn.Tanh(),
        nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(128, 4),
    ]  # fmt: skip
    return nn.Sequential(*layers).to(dtype)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()))


# ---- layers


def test_the_spatial_matrix_has_rows_of_output_and_width_and_columns_of_input_and_height():
    W = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    M = to_matrix(W, "spatial")
    assert M.shape == (10, 12)
    assert all(
        M[a * 5 + j, b * 4 + i] == W[a, b, i, j]
        for a in range(2)
        for b in range(3)
        for i in range(4)
        for j in range(5)
    )
    assert torch.equal(from_matrix(M, W.shape, "spatial"), W)


def test_a_separable_filter_has_spatial_rank_one():
    down, across = torch.randn(3, dtype=whole), torch.randn(5, dtype=whole)
    conv = nn.Conv2d(1, 1, (3, 5), padding=(1, 2), bias=False, dtype=whole)
    conv.weight.data = torch.outer(down, across)[None, None]
    layer, x = FactoredConv2d.from_conv(conv, 1, form="spatial"), torch.randn(2, 1, 7, 9, dtype=whole)
    assert close(layer(x), conv(x), 1e-12)


def test_stages_have_the_kernels_that_their_form_says():
    kernels = {
        form: [tuple(stage.kernel.shape[2:]) for stage in layer.stages()]
        for form, layer in {
            "channel": FactoredConv2d(4, 6, (3, 5), 2),
            "spatial": FactoredConv2d(4, 6, (3, 5), 2, form="spatial"),
            "tucker2": Tucker2Conv2d(4, 6, (3, 5), (2, 3)),
        }.items()
    }
    assert kernels == {
        "channel": [(3, 5), (1, 1)],
        "spatial": [(3, 1), (1, 5)],
        "tucker2": [(1, 1), (3, 5), (1, 1)],
    }


def test_costs_of_a_strided_layer_are_counted_where_each_stage_acts():
    shape = (2, 8, 16, 12)
    spatial = FactoredConv2d(8, 16, 3, 5, stride=2, padding=1, bias=False, form="spatial")
    tucker = Tucker2Conv2d(8, 16, 3, (6, 4), stride=2, padding=1, bias=False)
    assert spatial.positions(shape) == (2 * 8 * 6, 2 * 8 * 12) and tucker.positions(shape) == (
        2 * 8 * 6,
        2 * 16 * 12,
    )
    assert spatial.cost(96, 192).macs == 192 * 8 * 3 * 5 + 96 * 5 * 16 * 3
    assert tucker.cost(96, 384).macs == 384 * 8 * 4 + 96 * (4 * 6 * 9 + 6 * 16)
    assert (
        tucker.cost(96, 384).stored
        == 16 * 6 + 6 * 4 * 9 + 8 * 4
        == sum(parts((16, 8, 3, 3), "tucker2", (6, 4)))
    )


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (6, 3)])
def test_tucker_factors_of_other_ranks_keep_the_parameters(ranks):
    case = LAYERS["tucker2-conv2d-same"]
    layer, x = case.kind.from_dense(case.make_dense(whole), case.low), case.input(whole)
    before, (n, c, *k) = dict(layer.named_parameters()), layer.weight_shape
    U, S, V = (torch.randn(shape, dtype=whole) for shape in ((n, ranks[0]), (*ranks, *k), (c, ranks[1])))
    layer.set_factors(Tucker2(U, S, V))
    assert layer.rank == ranks and all(p is before[key] for key, p in layer.named_parameters())
    assert close(layer.dense(), torch.einsum("ai,ijxy,bj->abxy", U, S, V), 1e-12)
    assert close(layer.unfoldings()[0], S.flatten(1)) and close(
        layer.unfoldings()[1], S.transpose(0, 1).flatten(1)
    )
    layer(x).sum().backward()
    assert layer.S.grad.shape == S.shape


def test_what_a_layer_cannot_be_is_refused():
    with refuses("rank 3 of a Tucker-2 layer", "pair"):
        Tucker2Conv2d(4, 6, 3, 3)
    with refuses("(6, 5)", "1 to 6 and 1 to 4"):
        Tucker2Conv2d(4, 6, 3, (6, 5))
    with refuses("(6, 1)", "r1 <= 4 r2", "(4, 1)"):
        Tucker2Conv2d(4, 6, 2, (6, 1))
    with refuses("core=False", "always has a core"):
        Tucker2Conv2d(4, 6, 3, (2, 2), core=False)
    with refuses("groups=2"):
        Tucker2Conv2d(4, 6, 3, (2, 2), groups=2)
    with refuses("form='spatial' of a FactoredConv1d", "channel"):
        FactoredConv1d(4, 6, 3, 2, form="spatial")
    with refuses("form='spatial' of a linear layer"):
        FactoredLinear.from_dense(nn.Linear(4, 4), 2, form="spatial")
    with refuses("Tucker-2 layer takes Tucker2"):
        Tucker2Conv2d(4, 6, 3, (2, 2)).set_factors(USV(torch.ones(6, 2), torch.eye(2), torch.ones(4, 2)))
    with refuses("S of shape (2, 2, 3)", "(2, 2, 3, 3)"):
        Tucker2Conv2d(4, 6, 3, (2, 2)).set_factors(
            Tucker2(torch.ones(6, 2), torch.ones(2, 2, 3), torch.ones(4, 2))
        )


@pytest.mark.parametrize("name", ["linear-wide", "conv2d-same", "spatial-conv2d-same", "tucker2-conv2d-same"])
@pytest.mark.parametrize("core", [True, False])
def test_orthonormalizing_changes_no_function_and_adds_a_core(name, core):
    case = LAYERS[name]
    layer = case.kind.from_dense(case.make_dense(whole), case.low, core or case.form == "tucker2", case.form)
    for factor in layer.factors():
        factor.data += 0.3 * torch.randn(factor.shape, dtype=whole)
    before, x = copy.deepcopy(layer), case.input(whole)
    layer.orthonormalize()
    assert layer.S is not None and layer.rank == before.rank and close(layer(x), before(x), 1e-10)
    assert max(orthonormality_error(basis.detach()) for basis in (layer.U, layer.V)) < 1e-12
    assert list(layer.state_dict()) == ["U", "V", "S", "bias"]
    kept = torch.linalg.svdvals(layer.unfoldings()[0])
    assert torch.allclose(kept, torch.linalg.svdvals(layer.matrix())[: len(kept)])


# ---- plans


def test_each_layer_gets_the_form_that_was_asked_or_the_one_it_has():
    def found(**options):
        chosen = plan(conv_net(), 0.5, **options)
        return chosen.forms, chosen.ranks

    assert found() == (
        {"0": "channel", "2": "channel", "4": "channel", "6": "channel"},
        {"0": 6, "2": 8, "4": 4, "6": 2},
    )
    spatial = {"0": "spatial", "2": "spatial", "4": "channel", "6": "channel"}
    assert found(form="spatial") == (spatial, {"0": 5, "2": 16, "4": 4, "6": 2})
    assert found(form="tucker2")[1] == {"0": (6, 2), "2": (8, 6), "4": 4, "6": 2}
    assert found(form="tucker2", round_to=4)[1] == {"0": (8, 3), "2": (8, 8), "4": 4, "6": 4}
    assert found(form="tucker2", ranks={"0": 2, "2": (5, 3)})[1] == {"0": (2, 2), "2": (5, 3), "4": 4, "6": 2}
    mixed = {"0": "tucker2", "2": "spatial", "4": "channel", "6": "channel"}
    assert found(forms={"*": "spatial", "0": "tucker2"})[0] == mixed, "the last match wins"


FALLS_BACK = {
    "linear": nn.Linear(4, 6), "1x1": nn.Conv2d(4, 6, 1), "1d": nn.Conv1d(4, 6, 3),
    "3d": nn.Conv3d(4, 6, (1, 3, 2)), "one column": nn.Conv2d(4, 6, (3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", FALLS_BACK)
def test_layers_without_the_spatial_form_get_the_channel_form_with_or_without_a_budget(name):
    net = nn.Sequential(copy.deepcopy(FALLS_BACK[name]))
    shape = tuple(net[0].weight.shape)
    assert natural_form("spatial", shape) == "channel"
    assert Site("0", shape).forms("spatial") == ("channel",) and "spatial" not in Site("0", shape).forms()
    for size in ({"keep": 0.5}, {"budget": "params=1.2x"}):
        (row,) = plan(net, **size, form="spatial").rows
        assert row.rank is not None and (row.form, row.reason) == ("channel", "")
    assert factorize(net, 0.5, form="spatial")[0].form == "channel"


def test_a_kernel_of_one_row_has_the_spatial_form():
    net, x = nn.Sequential(nn.Conv2d(4, 6, (1, 3), padding=1)), torch.randn(2, 4, 5, 5)
    assert Site("0", (6, 4, 1, 3)).forms() == ("channel", "spatial", "tucker2")
    before = net(x)
    assert factorize(net, form="spatial")[0].form == "spatial" and close(net(x), before, 1e-5)


def test_keep_leaves_out_the_idle_part_of_a_pair():
    (row,) = plan(nn.Sequential(nn.Conv2d(2, 64, 2)), form="tucker2").rows
    assert row.full_rank == row.rank == (8, 2)
    (row,) = plan(nn.Sequential(nn.Conv2d(2, 64, 2)), 0.5, form="tucker2").rows
    assert row.rank == (4, 1)


@forms
@pytest.mark.parametrize("core", [True, False])
def test_a_net_of_any_form_keeps_its_function_at_full_rank_and_deployed(form, core):
    net, x = conv_net(whole), torch.randn(2, 3, 9, 8, dtype=whole)
    before = net(x)
    factorize(net, form=form, core=core)
    assert [layer.form for _, layer in factored_layers(net)] == [form, form, "channel", "channel"]
    assert close(net(x), before, 1e-10)
    for dense in (None, True, False):
        assert close(deploy(net, dense)(x), before, 1e-10)
    assert all(
        (layer.S is not None) == (core or layer.form == "tucker2") for _, layer in factored_layers(net)
    )


def kept_energy(layer, weight: torch.Tensor) -> float:
    return 1 - ((layer.dense() - weight).square().sum() / weight.square().sum()).item()


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 1.0])
def test_auto_keeps_as_much_as_the_channel_form_and_costs_no_more(keep):
    net = conv_net(whole)
    with (
        torch.no_grad()
    ):  # a separable one, and one of low multilinear rank, so that each form wins somewhere
        net[0].weight.copy_(torch.einsum("ax,bi->abix", torch.randn(12, 3), torch.randn(3, 3)).double())
        net[2].weight.copy_(
            torch.einsum(
                "ai,ijxy,bj->abxy", *(torch.randn(s) for s in ((16, 2), (2, 2, 3, 2), (12, 2)))
            ).double()
        )
    channel, auto = (factorize(copy.deepcopy(net), keep, form=form) for form in ("channel", "auto"))
    dense = dict(net.named_modules())
    for (name, a), (_, b) in zip(factored_layers(channel), factored_layers(auto), strict=True):
        assert kept_energy(b, dense[name].weight) >= kept_energy(a, dense[name].weight) - 1e-10
        p, q = 64, 64 * getattr(dense[name], "stride", (1, 1))[0] ** 2
        assert b.cost(p, q if b.form == "tucker2" else p).macs <= a.cost(p).macs
    if keep == 0.8:
        assert (auto[0].form, auto[2].form) == ("spatial", "tucker2")


def test_auto_stays_with_the_channel_form_where_nothing_is_cheaper_than_dense():
    torch.manual_seed(0)
    (row,) = plan(nn.Sequential(nn.Conv2d(8, 8, 3)), form="auto").rows
    assert (row.form, row.rank, row.reason) == ("channel", 8, "")


def test_a_plan_made_elsewhere_is_applied():
    net = conv_net()
    rows = (Row("0", "Conv2d", (12, 3, 3, 3), (12, 3), (4, 2), "", "tucker2"),
            Row("2", "Conv2d", (16, 12, 3, 2), 32, 7, "", "spatial"),
            Row("6", "Linear", (4, 128), 4, None, "costs more"))  # fmt: skip
    found = factored_layers(apply_plan(net, Plan(rows, core=False)))
    assert [(name, layer.form, layer.rank) for name, layer in found] == [
        ("0", "tucker2", (4, 2)),
        ("2", "spatial", 7),
    ]
    with refuses("layer '0' is a Tucker2Conv2d"):
        apply_plan(net, Plan(rows))


def test_mistakes_are_named():
    net = conv_net()
    with refuses("form='tucker'", "channel, spatial, tucker2, auto"):
        plan(net, form="tucker")
    with refuses("no layer matches 'stem'"):
        plan(net, forms={"stem": "spatial"})
    with refuses("rank (2, 2) for layer '0' in channel form", "one number"):
        plan(net, ranks={"0": (2, 2)})
    with refuses("layer '0'", "(13, 2)", "1 to 12 and 1 to 3"):
        plan(net, form="tucker2", ranks={"0": (13, 2)})
    with refuses("rank 40 for layer '2'", "1 to 32"):
        plan(net, form="spatial", ranks={"2": 40})
    net[0].weight.data[0, 0, 0, 0] = torch.nan
    with refuses("layer '0'", "not finite"):
        plan(net, form="auto")


def test_the_table_of_a_plan_shows_form_and_both_ranks():
    lines = str(plan(conv_net(), 0.5, form="tucker2", exclude=["6"])).splitlines()
    assert lines[1].split() == ["0", "Conv2d", "12x3x3x3", "tucker2", "6", "x", "2", "12", "x", "3"]
    assert lines[4].split() == ["6", "Linear", "4x128", "-", "-", "4", "excluded"]


# ---- files and the judge


@forms
def test_a_net_of_any_form_is_saved_and_rebuilt(form, tmp_path):
    net, x = factorize(conv_net(), 0.5, form=form).eval(), torch.randn(2, 3, 9, 8)
    loaded = load_model(save(net, tmp_path), model=conv_net())
    assert torch.equal(loaded(x), net(x))
    assert [(layer.form, layer.rank) for _, layer in factored_layers(loaded)] == [
        (layer.form, layer.rank) for _, layer in factored_layers(net)
    ]


def test_layouts_without_a_form_mean_the_channel_form_and_wrong_ones_are_refused():
    net = factorize(conv_net(), 0.5)
    layout = json.loads(json.dumps(layout_of(net)))
    for entry in layout["layers"].values():
        del entry["form"]
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(restore(conv_net(), layout, net.state_dict())(x), net(x))
    layout = json.loads(json.dumps(layout_of(factorize(conv_net(), 0.5, form="tucker2"))))
    layout["layers"]["0"]["form"] = "channel"
    with refuses("the layout says Tucker2Conv2d where the model has Conv2d"):
        restore(conv_net(), layout, {})


def test_the_judge_and_the_report_show_both_ranks():
    net = factorize(conv_net(), 0.5, form="tucker2")
    entry = json.loads(json.dumps(describe_layer("0", net[0])))
    assert (entry["form"], entry["rank"], entry["full_rank"]) == ("tucker2", [6, 2], [12, 3])
    unfolded = torch.linalg.svdvals(net[0].dense().flatten(1).double())[:6]
    assert torch.allclose(torch.tensor(entry["singular_values"], dtype=whole), unfolded, rtol=1e-5)
    assert entry["cond"] == pytest.approx((unfolded[0] / unfolded[-1]).item(), rel=1e-5)
    assert entry["orthonormality_error"] < 1e-5 and describe_layer("6", nn.Linear(3, 2))["form"] == "dense"
    (row,) = rows.read(
        [
            {
                "name": "a",
                "clean": 0.5,
                "robust": [],
                "params_deployed": 9,
                "layers": [entry, entry | {"rank": 3, "full_rank": 4}],
            }
        ]
    )
    times = text.TIMES
    shown = [line[3] for line in tables.layers(row).rows]
    assert [(cell.text, cell.detail) for cell in shown] == [
        (f"6 {times} 2", f"of 12 {times} 3"),
        ("3", "of 4"),
    ]
    assert row.layers[0].share == pytest.approx((12 / 36) ** 0.5) and row.layers[1].share == 0.75


# ---- CondLR


class TuckerTwin:
    """CondLR with SGD for two Tucker-2 convolutions, from the formulas, in numpy and float64."""

    def __init__(self, loss, layers, tau: float, lr: float, momentum: float) -> None:
        self.loss, self.tau, self.lr, self.momentum, self.buffers = loss, tau, lr, momentum, {}
        self.U, self.S, self.V, self.bias = (
            [getattr(layer, key).detach().numpy().copy() for layer in layers]
            for key in ("U", "S", "V", "bias")
        )
        self.U, self.V = [sign_fixed_qr(U) for U in self.U], [sign_fixed_qr(V) for V in self.V]
        self.S = [S if np.linalg.cond(S.reshape(len(S), -1)) <= 1 + tau else self.banded(S) for S in self.S]

    def banded(self, S):
        wide = S.reshape(len(S), -1)
        P, s, Qt = np.linalg.svd(wide, full_matrices=False)
        s = np.diag(into_band(np.diag(s), self.tau, "mean"))
        return (P @ np.diag(s) @ Qt).reshape(S.shape)

    def moved(self, key, gradient, project=None):
        old = self.buffers.get(key)
        if old is not None:
            old = old if project is None else project @ old
            gradient = gradient + self.momentum * old
        self.buffers[key] = gradient
        return self.lr * gradient

    def step(self):
        W = [
            torch.tensor(np.einsum("ai,ijxy,bj->abxy", U, S, V), requires_grad=True)
            for U, S, V in zip(self.U, self.S, self.V, strict=True)
        ]
        b = [torch.tensor(bias, requires_grad=True) for bias in self.bias]
        gradients = [g.numpy() for g in torch.autograd.grad(self.loss(W, b), [*W, *b])]
        for k, (U, S, V) in enumerate(zip(self.U, self.S, self.V, strict=True)):
            G = gradients[k]
            gU = np.einsum("abxy,ijxy,bj->ai", G, S, V)
            gV = np.einsum("abxy,ijxy,ai->bj", G, S, U)
            gS = np.einsum("abxy,ai,bj->ijxy", G, U, V)
            first, second = np.einsum("ijxy,kjxy->ik", S, S), np.einsum("ijxy,ikxy->jk", S, S)
            PU, PV = np.eye(len(U)) - U @ U.T, np.eye(len(V)) - V @ V.T
            self.U[k] = sign_fixed_qr(U - self.moved(f"U{k}", PU @ gU @ np.linalg.inv(first), PU))
            self.V[k] = sign_fixed_qr(V - self.moved(f"V{k}", PV @ gV @ np.linalg.inv(second), PV))
            self.S[k] = self.banded(S - self.moved(f"S{k}", gS))
            self.bias[k] = self.bias[k] - self.moved(f"b{k}", gradients[len(W) + k])


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_three_steps_on_tucker_layers_agree_with_the_twin(tau, momentum):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 2)).double()
    x, y = torch.randn(4, 3, 6, 5, dtype=whole), torch.randn(4, 4, 2, 2, dtype=whole)

    def twin_loss(W, b):
        hidden = torch.tanh(F.conv2d(x, W[0], b[0], stride=2, padding=1))
        return F.mse_loss(F.conv2d(hidden, W[1], b[1]), y)

    method = CondLR(tau=tau, form="tucker2", last="low-rank", ranks={"0": (4, 2), "2": (3, 5)})
    layers = [layer for _, layer in factored_layers(method.prepare(net))]
    assert [layer.rank for layer in layers] == [(4, 2), (3, 5)]
    twin = TuckerTwin(twin_loss, layers, tau, lr=0.1, momentum=momentum)
    optimizer = SGD(lr=0.1, momentum=momentum).build(method.groups(net))
    state = method.init(net)

    def backward():
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss.detach()

    for t in range(3):
        method.step(net, optimizer, state, backward, t)
        twin.step()
        for k, layer in enumerate(layers):
            for name in ("U", "S", "V", "bias"):
                reference = getattr(twin, name)[k]
                assert np.abs(getattr(layer, name).detach().numpy() - reference).max() < 1e-10, (t, k, name)


def holds(model: nn.Module, tau: float, slack: float = 1e-5) -> None:
    layers = factored_layers(model)
    assert layers
    for _, layer in layers:
        assert max(orthonormality_error(basis.detach()) for basis in (layer.U, layer.V)) <= 1e-5
        assert condition_number(layer.unfoldings()[0].detach()) <= 1 + tau + slack
        assert condition_number(layer.matrix().detach(), layer.U.shape[1]) <= 1 + tau + slack


@pytest.mark.parametrize("form", [*FORMS, "auto"])
@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.1, momentum=0.5), AdamW(lr=0.01, weight_decay=0.1)], ids=["sgd", "adamw"]
)
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_the_bounds_hold_after_every_step_in_every_form(form, optimizer, tau):
    fit = Fit(CondLR(tau=tau, keep=0.5, form=form), optimizer)
    losses = []
    for _ in range(25):
        losses.append(fit.step())
        holds(fit.model, tau)
    assert losses[-1] < losses[0]
    watched = fit.method.watch(fit.model, fit.state)
    assert watched["max_cond"] <= 1 + tau + 1e-5 and watched["orthonormality"] <= 1e-5


def test_images_with_channels_last_do_no_harm_to_a_tucker_core():
    method = CondLR(tau=0.1, keep=0.5, form="tucker2")
    net = method.prepare(conv_net()).to(memory_format=torch.channels_last)
    method.init(net)
    holds(net, 0.1)


@pytest.mark.parametrize("form", [*FORMS, "auto"])
@pytest.mark.parametrize("core", [True, False])
def test_a_factored_net_is_adopted_and_can_be_trained(form, core):
    (x, y), given = small_batch(), factorize(small_net(), 0.5, form=form, core=core, exclude=["5"])
    before = [(name, layer.form, layer.rank) for name, layer in factored_layers(given)]
    logits = given(x)
    method = CondLR(tau=0.5)
    model = method.prepare(given)
    assert model is given and close(model(x), logits)
    assert [(name, layer.form, layer.rank) for name, layer in factored_layers(model)] == before
    assert type(model[5]) is nn.Linear, "what was left dense stays dense"
    optimizer = SGD(lr=0.1, momentum=0.5).build(method.groups(model))
    state = method.init(model)

    def backward():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    losses = [method.step(model, optimizer, state, backward, t).item() for t in range(20)]
    holds(model, 0.5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", [SVD(keep=0.5), UV(keep=0.5)], ids=["svd", "uv"])
@pytest.mark.parametrize("form", [*FORMS, "auto"])
def test_the_free_methods_train_every_form(method, form):
    fit = Fit(type(method)(keep=0.5, form=form), SGD(lr=0.05))
    losses = [fit.step() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_the_form_is_a_setting():
    with refuses("form='tucker'", "channel, spatial, tucker2, auto"):
        CondLR(form="tucker")
    assert CondLR(ranks={"0": [3, 2], "1": 4}).ranks == {"0": (3, 2), "1": 4}
    assert full_rank((16, 8, 3, 3), "spatial") == 24


# ---- the choice of how to act


def test_few_channels_act_dense_since_the_hidden_image_costs_more_than_it_saves():
    first = FactoredConv2d(1, 20, 5, rank=10)  # 500 multiply-adds a pixel dense, 450 factored
    assert first._dense_is_cheaper(*first.positions((128, 1, 28, 28))) and not first.deploys_dense
    for wide in (
        FactoredConv2d(64, 64, 3, 16),
        FactoredConv2d(64, 64, 3, 16, form="spatial"),
        Tucker2Conv2d(64, 64, 3, (32, 32)),
    ):
        assert not wide._dense_is_cheaper(*wide.positions((128, 64, 16, 16)))


@pytest.mark.parametrize("name", ["conv2d-same", "spatial-conv2d-same", "tucker2-conv2d-same"])
def test_frozen_layers_of_every_form_build_once_and_act_alike(name):
    case = LAYERS[name]
    layer, x = case.kind.from_dense(case.make_dense(whole), case.low, form=case.form), case.input(whole)
    expected = layer(x)
    with frozen(layer):
        assert close(layer(x), expected, 1e-12) and layer.dense().data_ptr() == layer.dense().data_ptr()
    layer.U.data.mul_(2)
    assert not close(layer(x), expected, 1e-3), "what was kept is gone"


def test_every_factored_layer_is_a_name_of_the_package():
    kinds = {*FACTORED.values(), *TUCKER2.values()}
    assert {getattr(ironrank, kind.__name__) for kind in kinds} == kinds
    assert {kind.__name__ for kind in kinds} <= {*ironrank.__all__}
