"""Ranks: costs of every form, menus, the choice under one budget, budgets as text, and what the data says."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import small_batch, small_net
from ironrank.data import DataSpec
from ironrank.errors import IronrankError
from ironrank.layers import factored_kind, full_rank, parts
from ironrank.linalg import hooi, hosvd, truncated_svd
from ironrank.methods import METHODS, CondLR
from ironrank.models import VGG16, LeNet5, ResNet18
from ironrank.objectives import Clean
from ironrank.ranks import (
    Menu,
    Option,
    Site,
    choose,
    energy,
    fit,
    menu,
    parse_budget,
    project,
    second_moments,
    sensitivity,
    sites,
    uniform,
    within,
)
from ironrank.ranks.choose import hull
from ironrank.ranks.cost import COSTS, DENSE, count_bytes, count_macs, count_params, macs, params, shapes_of
from ironrank.ranks.latency import measure, median_ms, thin
from ironrank.ranks.menu import matrix_errors, tucker_errors
from ironrank.ranks.weighting import patches
from ironrank.surgery import apply_plan, deploy, factored_layers, factorize, plan

whole = torch.float64
GRAY, COLOR = DataSpec((1, 28, 28), 10, (0.5,), (0.25,)), DataSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=whole)


# ---- what a layer costs

CONVS = {
    "plain": nn.Conv2d(6, 10, 3, padding=1),
    "strided": nn.Conv2d(6, 10, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "one-by-one": nn.Conv2d(6, 10, 1, stride=2),
    "1d": nn.Conv1d(6, 10, 4),
    "3d": nn.Conv3d(6, 10, 2, padding=1),
}


@pytest.mark.parametrize("name", CONVS)
def test_the_costs_are_those_of_the_deployed_layers(name):
    """Counted from the plain layers that a factored one becomes, on inputs of unequal sides."""
    net = nn.Sequential(CONVS[name])
    x = torch.zeros(2, 6, *(9, 11, 7)[: net[0].weight.ndim - 2])
    (site,) = sites(net, ["0"], x)
    assert params(site, "dense", DENSE)[0] == net[0].weight.numel()
    assert macs(site, "dense", DENSE)[0] == count_macs(net, x)
    for form in site.forms():
        rank = (4, 3) if form == "tucker2" else 3
        pair = np.array([rank if form == "tucker2" else (rank, rank)])
        layer = factored_kind(type(net[0]), form).like(net[0], rank, form == "tucker2", form=form)
        plain = layer.deploy(False)
        assert params(site, form, pair)[0] == count_params(plain) - 10 == sum(parts(site.shape, form, rank))
        assert macs(site, form, pair)[0] == count_macs(plain, x), form
        assert count_params(thin(net[0], form, rank)) == count_params(plain)


class ByName(nn.Module):
    """A net that calls its layer by keyword."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(input=x)


def test_layers_that_are_called_by_keyword_are_seen():
    x = torch.randn(5, 3, 4)
    (site,) = sites(ByName(), ["layer"], x)
    assert site.out == 3
    assert second_moments(ByName(), ["layer"], [x])["layer"].C.shape == (4, 4)


def test_sites_of_linear_layers_and_layers_that_are_called_twice_or_never():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    net = Net().train()
    found = sites(net, ["a", "b", "unused"], torch.zeros(8, 3, 5))
    assert [site.out for site in found] == [6, 3, 0] and net.training
    assert [site.out for site in sites(net, ["a"])] == [1]
    assert [macs(site, "dense", DENSE)[0] for site in found] == [150, 60, 0]


class Attending(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(64, 64)
        self.mha, self.lstm = (
            nn.MultiheadAttention(64, 4, batch_first=True),
            nn.LSTM(64, 64, batch_first=True),
        )
        self.encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    def forward(self, x):
        if self.kind == "lstm":
            return self.fc(self.lstm(x)[0])
        if self.kind == "encoder":
            return self.fc(self.encoder(x))
        return self.fc(
            self.mha(x, x, x)[0] if self.kind == "mha" else F.scaled_dot_product_attention(x, x, x)
        )


@pytest.mark.parametrize("kind, by_hand", [
    ("sdpa", 2 * 10 * 10 * 64), ("mha", 4 * 10 * 64 * 64 + 2 * 10 * 10 * 64), ("lstm", 10 * 2 * 4 * 64 * 64),
    ("encoder", 4 * 10 * 64 * 64 + 2 * 10 * 10 * 64 + 2 * 10 * 64 * 128),
])  # fmt: skip
def test_what_torch_runs_as_one_operation_is_counted(kind, by_hand):
    """Attention, its fast path and recurrent layers have no formula of their own."""
    net, x = Attending(kind).eval(), torch.randn(3, 10, 64)
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    assert count_macs(net, x) == by_hand + 10 * 64 * 64
    assert count_macs(net.to("meta"), x.to("meta")) == by_hand + 10 * 64 * 64
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before


def test_examples_may_be_dicts_and_states_may_hold_other_things():
    class Named(nn.Linear):
        def forward(self, batch):
            return F.linear(batch["x"], self.weight)

        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            pass

    net = Named(4, 3, bias=False)
    assert count_macs(net, {"x": torch.randn(5, 4)}) == 12 and count_bytes(net) == 48
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert count_bytes(tied) == count_bytes(shapes_of(tied)) == 4 * (16 + 8)


def test_ranks_are_not_chosen_without_weights():
    with pytest.raises(IronrankError, match="layer '0' is on the meta device"):
        plan(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to("meta"), budget="params=1.5x")


@pytest.mark.parametrize("size", [{"budget": "params=2x"}, {"keep": 0.5}])
def test_a_full_end_is_full_whatever_form_is_wished(size):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 8, 3))
    rows = CondLR(**size, form="auto", first="full-rank").plan(net).rows
    for row in (rows[0], rows[2]):
        assert row.rank is None or (row.form, row.rank) == ("channel", row.full_rank)


def test_a_rank_is_given_to_the_forms_that_can_have_it():
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3))
    first, second = plan(net, budget="params=1.2x", form="auto", ranks={"0": 20, "1": (8, 8)}).rows
    assert (first.form, first.rank, second.form, second.rank) == ("channel", 20, "tucker2", (8, 8))
    with pytest.raises(IronrankError, match="rank 99 for layer '0' in channel form"):
        plan(net, budget="params=1.2x", form="auto", ranks={"0": 99})


def test_forms_of_a_layer():
    assert Site("fc", (4, 5)).forms("tucker2") == ("channel",)
    assert Site("conv", (4, 5, 1, 1)).forms("auto") == ("channel",)
    assert Site("conv", (4, 5, 3, 1)).forms("spatial") == ("channel",)
    assert Site("conv", (4, 5, 3)).forms("auto") == ("channel", "tucker2")
    assert Site("conv", (4, 5, 3, 3)).forms("auto") == ("channel", "spatial", "tucker2")
    with pytest.raises(IronrankError, match="form='cp': allowed is channel, spatial, tucker2, auto"):
        Site("conv", (4, 5, 3, 3)).forms("cp")


# ---- what a form loses


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
def test_errors_of_a_matrix_are_those_of_its_truncations(shape):
    W = random(*shape)
    errors = matrix_errors(W)
    assert errors[0] == pytest.approx(W.square().sum().item()) and errors[-1] == 0
    for rank in range(1, min(shape)):
        assert errors[rank] == pytest.approx((W - truncated_svd(W, rank).dense()).square().sum().item())


def test_errors_of_tucker2_are_those_of_the_truncated_hosvd_and_hooi_is_never_worse():
    W = random(6, 5, 3, 2)
    errors = tucker_errors(W)
    tails = [matrix_errors(W.flatten(1)), matrix_errors(W.transpose(0, 1).flatten(1))]
    for pair in itertools.product(range(1, 7), range(1, 6)):
        lost = (W - hosvd(W, pair).dense()).square().sum().item()
        assert errors[pair] == pytest.approx(lost, abs=1e-9)
        assert errors[pair] <= tails[0][pair[0]] + tails[1][pair[1]] + 1e-9, "the usual bound"
        assert (W - hooi(W, pair).dense()).square().sum().item() <= errors[pair] + 1e-9
    assert errors[0, 0] == pytest.approx(W.square().sum().item()) and errors[6, 5] < 1e-12


def test_a_menu_rises_in_cost_and_falls_in_error_and_leaves_out_what_dense_beats():
    W = random(16, 12, 3, 3).float()
    site = Site("conv", tuple(W.shape))
    for form in ("channel", "spatial", "tucker2", "auto"):
        made = menu(site, W, form=form)
        costs, errors = [o.cost for o in made.options], [o.error for o in made.options]
        assert costs == sorted(set(costs)) and errors == sorted(set(errors), reverse=True)
        assert made.options[-1] == Option("dense", None, W.numel(), 0.0)
        assert all(option.cost < W.numel() for option in made.options[:-1])
        for option in made.options[:: max(1, len(made.options) // 5)]:
            lost = (W - project(W, option.form, option.rank)).double().square().sum().item()
            assert lost <= option.error * (1 + 1e-5) + 1e-6
    forms = {option.form for option in menu(site, W).options}
    assert "dense" in forms and len(forms) > 2, "auto mixes"


def test_every_pair_of_tucker2_is_on_the_menu_or_beaten():
    W = random(6, 5, 3, 3)
    site, errors = Site("conv", (6, 5, 3, 3)), tucker_errors(W)
    options = menu(site, W, form="tucker2").options
    for pair in itertools.product(range(1, 7), range(1, 6)):
        cost = params(site, "tucker2", np.array([pair]))[0]
        assert any(o.cost <= cost and o.error <= errors[pair] + 1e-9 for o in options), pair


def test_minimum_ranks_multiples_given_ranks_and_factors():
    W = random(20, 16, 3, 3)
    site = Site("conv", (20, 16, 3, 3))
    for option in menu(site, W, form="tucker2", min_rank=3, round_to=4).options[:-1]:
        assert all(
            r >= 3 and (r % 4 == 0 or r == full) for r, full in zip(option.rank, (20, 16), strict=True)
        )
    assert [o.rank for o in menu(site, W, form="channel", min_rank=9, round_to=4).options] == [12, 16, None]
    assert [(o.form, o.rank) for o in menu(site, W, form="tucker2", rank=(5, 4)).options] == [
        ("tucker2", (5, 4))
    ]
    assert [o.rank for o in menu(site, W, form="tucker2", rank=4).options] == [(4, 4)]
    plain, doubled = menu(site, W), menu(site, W, factor=2.0)
    assert [2 * o.error for o in plain.options] == pytest.approx([o.error for o in doubled.options])
    assert doubled.energy == pytest.approx(2 * plain.energy)
    assert doubled.kept(doubled.options[0]) == pytest.approx(plain.kept(plain.options[0]))


def test_a_given_rank_that_is_deployed_dense_costs_what_the_dense_layer_costs():
    """Full rank, as the last layer of many methods has it, stores more than the weight: that is then deployed."""
    net, x = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10)), torch.rand(1, 20)
    for budget, count in (("params=2x", count_params), ("macs=2x", lambda net: count_macs(net, x))):
        made = plan(net, budget=budget, ranks={"2": 10}, example=x)
        small = deploy(apply_plan(copy.deepcopy(net), made))
        assert made.choice.after == count(small) <= count(net) / 2 and made.ranks["2"] == 10


def test_options_that_would_be_deployed_dense_are_not_counted_as_thin():
    """Where padding makes the output the larger image, a pair may store more than the weight and multiply less."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(4, 4, 2, padding=4)), torch.zeros(1, 4, 2, 2)
    (site,) = sites(net, ["0"], x)
    assert macs(site, "tucker2", np.array([[3, 4]])) < macs(site, "dense", DENSE)
    assert params(site, "tucker2", np.array([[3, 4]])) > params(site, "dense", DENSE)
    made = plan(net, budget="macs=95%", form="tucker2", example=x)
    assert count_macs(deploy(apply_plan(copy.deepcopy(net), made)), x) <= 0.95 * count_macs(net, x)


@pytest.mark.parametrize("options, words", [
    ({"rank": 99, "form": "channel"}, "rank 99 for layer 'conv' in channel form: allowed is 1 to 20"),
    ({"rank": (3, 2), "form": "spatial"}, r"rank \(3, 2\) for layer 'conv' in spatial form: allowed is 1 to 48"),
    ({"rank": (30, 2), "form": "tucker2"}, r"ranks \(30, 2\)"),
    ({"min_rank": 0}, "min_rank=0, round_to=1: both must be at least 1"),
])  # fmt: skip
def test_menus_refuse_impossible_ranks(options, words):
    with pytest.raises(IronrankError, match=words):
        menu(Site("conv", (20, 16, 3, 3)), random(20, 16, 3, 3), **options)


# ---- the choice


def made_up(seed: int, layers: int = 4, options: int = 6) -> list[Menu]:
    """Menus with random convexity: costs rise and errors fall, and that is all."""
    rng = np.random.default_rng(seed)
    menus = []
    for k in range(layers):
        costs = rng.integers(1, 20, options).cumsum()
        errors = rng.exponential(size=options).cumsum()[::-1] * rng.uniform(0.1, 3)
        errors[-1] = 0.0
        rows = [
            Option("channel", i + 1, float(c), float(e))
            for i, (c, e) in enumerate(zip(costs, errors, strict=True))
        ]
        menus.append(Menu(f"layer{k}", float(errors[0]) * 2, float(costs[-1]), tuple(rows)))
    return menus


def best_of_all(menus: list[Menu], limit: float) -> float:
    combinations = itertools.product(*(made.options for made in menus))
    return min(
        sum(o.error for o in chosen) for chosen in combinations if sum(o.cost for o in chosen) <= limit
    )


@pytest.mark.parametrize("seed", range(25))
def test_the_choice_against_brute_force(seed):
    menus = made_up(seed)
    least, most = (sum(made.options[i].cost for made in menus) for i in (0, -1))
    for share in (0.0, 0.1, 0.35, 0.6, 0.9, 1.0):
        limit = least + share * (most - least)
        options, bound = choose(menus, limit)
        cost, error, best = (
            sum(o.cost for o in options),
            sum(o.error for o in options),
            best_of_all(menus, limit),
        )
        assert cost <= limit
        assert bound <= best + 1e-9 <= error + 2e-9
        edges = [max(a.error - b.error for a, b in itertools.pairwise(corners(made))) for made in menus]
        assert error - best <= max(edges) + 1e-9, "never further off than one edge of one hull"
        for option, made in zip(options, menus, strict=True):
            better = [o for o in made.options if o.error < option.error]
            assert all(o.cost - option.cost > limit - cost for o in better), "nothing more fits"
    assert options == [made.options[-1] for made in menus], "with the whole budget nothing is dropped"


def corners(made: Menu) -> list[Option]:
    costs, errors = (np.array([getattr(o, key) for o in made.options]) for key in ("cost", "error"))
    return [made.options[i] for i in hull(costs, errors)]


def test_the_gap_to_the_best_choice_is_small_on_average():
    """Random menus of six options are far rougher than spectra; see the next test for those."""
    gaps = []
    for seed in range(40):
        menus = made_up(seed)
        limit = 0.4 * sum(made.dense for made in menus)
        gaps.append(sum(o.error for o in choose(menus, limit)[0]) / best_of_all(menus, limit) - 1)
    assert np.mean(gaps) < 0.05 and min(gaps) > -1e-9 and np.median(gaps) < 0.02, gaps


def test_the_bound_shows_a_gap_below_a_percent_on_a_real_net():
    torch.manual_seed(0)
    net = ResNet18(width=0.125).build(COLOR)
    for form in ("channel", "spatial", "tucker2", "auto"):
        chosen = fit(net, layers(net), "params=4x", form=form)
        assert chosen.bound <= chosen.error <= 1.01 * chosen.bound, form


def test_the_hull_is_convex_and_below_every_option():
    for made in made_up(3, layers=5, options=12):
        shape = corners(made)
        slopes = [(a.error - b.error) / (b.cost - a.cost) for a, b in itertools.pairwise(shape)]
        assert shape[0] == made.options[0] and shape[-1] == made.options[-1]
        assert slopes == sorted(slopes, reverse=True)
        for option in made.options:
            line = np.interp(option.cost, [o.cost for o in shape], [o.error for o in shape])
            assert option.error >= line - 1e-12


def test_a_limit_that_is_too_low_is_refused():
    with pytest.raises(IronrankError, match="the cheapest options cost 37 together: a limit of 3 is too low"):
        choose([Menu("a", 1, 50, (Option("channel", 1, 37, 1), Option("dense", None, 50, 0)))], 3)


def test_uniform_and_energy_and_the_global_rule_is_better_than_both_at_equal_cost():
    torch.manual_seed(0)
    net = LeNet5(width=0.3).build(GRAY)
    with torch.no_grad():  # spectra that fall at different rates, as in trained nets
        for layer, decay in ((net.conv2, 0.2), (net.fc1, 0.9)):
            P, s, Qt = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
            layer.weight.copy_(
                ((P * s * (1 + torch.arange(len(s))) ** -decay) @ Qt).reshape(layer.weight.shape)
            )
    menus = fit(net, ["conv1", "conv2", "fc1"], "params=1x").menus
    for made, option in zip(menus, uniform(menus, 0.3), strict=True):
        assert option.cost <= 0.3 * made.dense or option == made.options[0]
    for made, option in zip(menus, energy(menus, 0.8), strict=True):
        assert made.kept(option) >= 0.8
        cheaper = [o for o in made.options if o.cost < option.cost]
        assert all(made.kept(o) < 0.8 for o in cheaper)
    for limit in (600, 1000, 2000):
        best = sum(o.error for o in choose(menus, limit)[0])
        for rule in (uniform, energy):
            options = within(rule, menus, limit)
            assert sum(o.cost for o in options) <= limit
            assert best <= sum(o.error for o in options) + 1e-9
    assert within(energy, menus, 1e9) == [made.options[-1] for made in menus]
    for share in (0.0, 1.5):
        with pytest.raises(IronrankError, match=f"share={share}: allowed is above 0 and at most 1"):
            uniform(menus, share)
    with pytest.raises(IronrankError, match="no share fits a limit of 3"):
        within(energy, menus, 3)


# ---- the whole net


def layers(net: nn.Module) -> list[str]:
    """All linear and convolution layers but the first and the last."""
    return [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)][1:-1]


def deployed(net: nn.Module, chosen) -> nn.Module:
    """The net with every chosen layer replaced by its plain thin layers."""
    for name, option in chosen.by_name.items():
        if option.form != "dense":
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, thin(net.get_submodule(name), option.form, option.rank))
    return net


NETS = {
    "lenet5": (LeNet5(width=0.4), GRAY),
    "vgg16": (VGG16(width=0.125), COLOR),
    "resnet18": (ResNet18(width=0.125), COLOR),
}
COUNTS = {
    "params": lambda net, x: count_params(net),
    "macs": count_macs,
    "bytes": lambda net, x: count_bytes(net),
}


@pytest.mark.parametrize("form", ["tucker2", "auto"])
@pytest.mark.parametrize("budget", ["params=4x", "params=30%", "macs=3x", "bytes=4x"])
@pytest.mark.parametrize("name", NETS)
def test_every_budget_is_met_within_one_direction_by_the_deployed_net(name, budget, form):
    model, spec = NETS[name]
    torch.manual_seed(0)
    net, x = model.build(spec), torch.zeros(2, *spec.shape)
    count = COUNTS[parse_budget(budget).cost]
    before = count(net, x)
    chosen = fit(net, layers(net), budget, form=form, example=x)
    after = count(deployed(net, chosen), x)
    assert (chosen.before, chosen.after) == (before, after) and after <= chosen.limit
    for made in chosen.menus:
        option = chosen.by_name[made.name]
        steps = [o.cost - option.cost for o in made.options if o.cost > option.cost]
        assert not steps or steps[0] > chosen.limit - after, made.name


def test_a_table_with_totals():
    torch.manual_seed(0)
    chosen = fit(LeNet5(width=0.4).build(GRAY), ["conv2", "fc1"], "params=5x", form="tucker2")
    head, *rows, blank, totals = str(chosen).splitlines()
    assert head.split() == ["layer", "form", "rank", "kept", "energy", "params", "of", "dense"]
    assert [row.split()[0] for row in rows] == ["conv2", "fc1"] and blank == ""
    assert f"{chosen.after:,.0f} after" in totals and "params=5x: at most" in totals and "before" in totals


def test_what_is_out_of_reach_is_said():
    net = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    with pytest.raises(
        IronrankError, match=r"params=64x: the smallest this net can become is 8.48x \(1,310 of 11,110\)"
    ):
        fit(net, ["0"], "params=64x")
    with pytest.raises(IronrankError, match="budget='macs=2x' needs an example input"):
        fit(net, ["0"], "macs=2x")
    given = fit(net, ["0"], "params=2x", ranks={"0": 7})
    assert given.by_name["0"].rank == 7 and given.after == 1400 + 100 + 1010


# ---- through surgery


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2", "auto"])
@pytest.mark.parametrize("budget", ["params=3x", "macs=2x"])
def test_factorize_takes_a_budget(budget, form):
    torch.manual_seed(0)
    net, x = ResNet18(width=0.125).build(COLOR), torch.zeros(1, 3, 32, 32)
    count = COUNTS[parse_budget(budget).cost]
    before, chosen = count(net, x), plan(net, budget=budget, example=x, form=form, exclude=["conv1"])
    assert factorize(net, budget=budget, example=x, form=form, exclude=["conv1"]) is net
    after = count(deploy(net), x)
    assert (
        after == chosen.choice.after <= parse_budget(budget).limit(before) and chosen.choice.before == before
    )
    assert {n: layer.rank for n, layer in factored_layers(net)} == chosen.ranks
    assert form == "auto" or set(chosen.forms.values()) <= {form, "channel"}
    whys = {row.reason for row in chosen.rows if row.rank is None}
    assert whys == {"excluded", "stays dense: under this budget no rank is worth it"}


def test_a_budget_may_be_shared_out_by_another_rule():
    net = LeNet5(width=0.4).build(GRAY)
    made = {rule: plan(net, budget="params=4x", rule=rule).choice for rule in ("global", "uniform", "energy")}
    assert made["global"] == plan(net, budget="params=4x").choice
    for rule, bare in (("uniform", uniform), ("energy", energy)):
        choice = made[rule]
        assert list(choice.options) == within(bare, choice.menus, choice.limit - choice.fixed)
        assert choice.after <= choice.limit and choice.bound == 0
        assert choice.error >= made["global"].error > 0
    small = deploy(factorize(copy.deepcopy(net), budget="params=4x", rule="uniform"))
    assert count_params(small) == made["uniform"].after
    with pytest.raises(IronrankError, match="rule='unifrom': did you mean 'uniform'"):
        plan(net, budget="params=4x", rule="unifrom")
    with pytest.raises(IronrankError, match="rule='energy' shares out a budget: give one"):
        factorize(net, keep=0.5, rule="energy")


def test_a_plan_within_a_budget_shows_what_it_costs_and_keeps(capsys):
    torch.manual_seed(0)
    net = LeNet5(width=0.4).build(GRAY)
    assert (
        factorize(net, budget="params=5x", exclude=["conv1"], forms={"conv2": "tucker2"}, dry_run=True) is net
    )
    head, conv1, *_, fc2, blank, totals = capsys.readouterr().out.rstrip("\n").splitlines()
    words = [
        "layer",
        "kind",
        "shape",
        "form",
        "rank",
        "of",
        "kept",
        "energy",
        "params",
        "of",
        "dense",
        "note",
    ]
    assert head.split() == words and blank == "" and totals.startswith("params=5x: at most")
    assert conv1.endswith("excluded") and fc2.split()[-1].endswith("%")
    assert not factored_layers(net)


def test_budgets_with_given_ranks_minimum_ranks_and_multiples():
    net = LeNet5(width=0.4).build(GRAY)
    chosen = plan(net, budget="params=4x", form="tucker2", ranks={"conv2": (4, 3), "fc2": 2}, round_to=4)
    assert chosen.ranks["conv2"] == (4, 3) and chosen.ranks["fc2"] == 2 and chosen.ranks["fc1"] % 4 == 0
    assert plan(net, budget="params=4x", min_rank=9).ranks["fc1"] >= 9


def test_factorize_projects_in_the_metric_of_the_inputs():
    net, x = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8)).double(), skewed(200, 12)
    moments, W = second_moments(net, ["0"], [x]), net[0].weight.detach().clone()
    losses = []
    for seen in (None, moments):
        small = factorize(copy.deepcopy(net), budget="params=1.5x", exclude=["1"], moments=seen)
        losses.append((x @ (W - small[0].dense().detach()).mT).square().mean().item())
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("options, words", [
    ({"budget": "params=5x", "keep": 0.5}, "keep=0.5 and budget='params=5x': give one of them"),
    ({"budget": "params=500x"}, "params=500x: the smallest this net can become is"),
    ({"budget": "params=9M"}, r"budget='params=9M': the net costs only \S+ as it is: ask for less"),
    ({"budget": "macs=2x"}, "budget='macs=2x' needs an example input"),
    ({"budget": "params=5x", "form": "cp"}, "form='cp'"),
    ({"budget": "params=5x", "ranks": {"fc1": 9999}}, "rank 9999 for layer 'fc1' in channel form"),
    ({"budget": "params=5x", "ranks": {"fc9": 9}}, "no layer matches 'fc9'"),
])  # fmt: skip
def test_factorize_refuses_budgets_that_it_cannot_meet(options, words):
    with pytest.raises(IronrankError, match=words) as error:
        factorize(LeNet5(width=0.4).build(GRAY), **options)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused():
    net = LeNet5(width=0.4).build(GRAY)
    net.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(IronrankError, match="layer 'fc1' has weights that are not finite"):
        plan(net, budget="params=5x")


# ---- budgets as text


@pytest.mark.parametrize("text, limit", [
    ("params=8x", 100), ("params=25%", 200), ("params=1.2M", 1.2e6), ("params = 300", 300), ("macs=50M", 5e7),
    ("macs=4X", 200), ("bytes=2MB", 2e6), ("bytes=1.5KiB", 1536), ("latency=3ms", 3), ("latency=2x", 400),
    ("latency=0.5s", 500), ("latency=800us", 0.8), ("params=1e3", 1000), ("params=.5K", 500), ("bytes=1x", 800),
])  # fmt: skip
def test_budgets(text, limit):
    budget = parse_budget(text)
    assert budget.limit(800 if budget.relative else 1e9) == pytest.approx(limit)


def test_a_budget_above_the_cost_is_refused_but_for_measured_times():
    for text in ("params=801", "macs=1K", "bytes=1KB"):
        with pytest.raises(IronrankError, match=f"^budget='{text}': the net costs only 800(| B) as it is"):
            parse_budget(text).limit(800)
    assert parse_budget("latency=3ms").limit(2.9) == 3 and parse_budget("params=800").limit(800) == 800


@pytest.mark.parametrize(
    "method", ["svd", "uv", "condlr", "cstar", "dlrt", "robust-dlrt", "svd-prune", "magnitude"]
)
def test_every_method_refuses_a_budget_above_the_net_before_training(method):
    net, shape = LeNet5(width=0.4).build(GRAY), {"input_shape": (1, 28, 28)} if method == "magnitude" else {}
    made = METHODS[method](budget="params=9M", **shape)
    with pytest.raises(IronrankError, match="the net costs only"):
        made.init(made.prepare(net))


@pytest.mark.parametrize("text, words", [
    ("parms=8x", "did you mean 'params'"),
    ("8x", r"allowed: bytes, latency, macs, params \(write it as cost=amount, such as params=8x\)"),
    ("params=8y", "'8y' is no amount of params; write 8x, 25% or 1.2M"),
    ("params=3ms", "'3ms' is no amount of params"),
    ("latency=3M", "'3M' is no amount of latency; write 2x, 50% or 3ms"),
    ("bytes=", "'' is no amount of bytes"),
    ("params=-2x", "'-2x' is no amount"),
    ("params=0", "the amount must be above 0"),
    ("params=0.5x", "allows more than the model costs now: half of it is 2x, or 50%"),
    ("macs=120%", "allows more than the model costs now"),
])  # fmt: skip
def test_budgets_that_are_misspelled(text, words):
    with pytest.raises(IronrankError, match=words) as error:
        parse_budget(text)
    assert "\n" not in str(error.value)


# ---- latency


def paced(module: nn.Module, x) -> float:
    """A stopwatch that always shows a tenth of a millisecond for a call, and one for every thousand weights."""
    return 0.1 * len([m for m in module.modules() if not list(m.children())]) + 1e-3 * count_params(module)


def test_latency_is_interpolated_between_what_was_measured():
    torch.manual_seed(0)
    net, x = LeNet5(width=0.4).build(GRAY), torch.zeros(2, 1, 28, 28)
    found = sites(net, ["conv2", "fc1"])
    table = measure(net, found, dict.fromkeys(("conv2", "fc1"), "auto"), x, timer=paced)
    for site in found:
        for form in ("dense", *site.forms()):
            measured = table.times[site.name, form]
            assert (np.diff(measured.params) > 0).all() and (np.diff(measured.ms) >= 0).all()
        assert table(site, "dense", DENSE)[0] == pytest.approx(paced(net.get_submodule(site.name), None))
    ranks = np.array([[3, 3], [7, 7]])
    weights = params(found[1], "channel", ranks)
    assert table(found[1], "channel", ranks) == pytest.approx(0.2 + 1e-3 * (weights + 200), rel=1e-6)


def test_a_budget_of_latency_is_met_on_the_stopwatch():
    torch.manual_seed(0)
    net, x = LeNet5(width=0.4).build(GRAY), torch.zeros(2, 1, 28, 28)
    chosen = fit(net, ["conv2", "fc1"], "latency=3x", example=x, timer=paced)
    assert chosen.before == paced(net, x) and chosen.after <= chosen.before / 3
    assert paced(deployed(net, chosen), x) == pytest.approx(chosen.after, rel=0.02)


def test_the_stopwatch_takes_the_median_of_calls():
    ticks = iter(np.cumsum([1, 1] * 3 + [1, 5, 1, 7, 1, 90]))
    assert median_ms(
        nn.Identity(), torch.zeros(1), runs=3, clock=lambda: float(next(ticks))
    ) == pytest.approx(7000)
    with pytest.raises(IronrankError, match="runs=0: allowed is at least 1"):
        median_ms(nn.Identity(), torch.zeros(1), runs=0)


# ---- what the data says


@pytest.mark.parametrize("name", CONVS)
def test_patches_are_what_the_matrix_acts_on(name):
    conv = CONVS[name]
    x = torch.randn(2, 6, *(9, 11, 7)[: conv.weight.ndim - 2])
    out = conv(x) - conv.bias.reshape(-1, *[1] * (conv.weight.ndim - 2))
    assert torch.allclose(
        conv.weight.flatten(1) @ patches(conv, x), out.transpose(0, 1).flatten(1), atol=1e-5
    )


def test_patches_with_padding_of_other_modes():
    conv = nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect", bias=False)
    x = torch.randn(2, 3, 6, 7)
    assert torch.allclose(
        conv.weight.flatten(1) @ patches(conv, x), conv(x).transpose(0, 1).flatten(1), atol=1e-5
    )


def skewed(n: int, m: int, seed: int = 0) -> torch.Tensor:
    """Inputs (n, m) of which a few directions carry nearly everything."""
    basis = torch.linalg.qr(random(m, m, seed=seed))[0]
    return (random(n, m, seed=seed + 1) * torch.logspace(0, -3, m, dtype=whole)) @ basis


def test_whitening_projects_best_for_the_inputs_that_were_seen():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(12, 10)).double(), skewed(400, 12)
    moments = second_moments(net, ["0"], [x[:150], (x[150:], None)])["0"]
    assert torch.allclose(moments.C, x.mT @ x / 400, atol=1e-12)
    W = net[0].weight.detach()
    for rank in (1, 3, 6):
        blind, seeing = (W - project(W, "channel", rank, root) for root in (None, moments["channel"]))
        losses = [(x @ D.mT).square().sum().item() / 400 for D in (blind, seeing)]
        assert losses[1] < 0.5 * losses[0], "measured on the inputs"
        s = torch.linalg.svdvals(W @ x.mT / 20)
        assert losses[1] == pytest.approx(s[rank:].square().sum().item(), rel=1e-3), (
            "and it is the best there is"
        )
        errors = {o.rank: o.error for o in menu(Site("0", (10, 12)), W, roots=moments).options}
        assert errors.get(rank, losses[1]) == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2"])
def test_whitening_helps_a_convolution_in_every_form(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1, bias=False)).double()
    x = skewed(6 * 49, 8).reshape(6, 7, 7, 8).permute(0, 3, 1, 2).contiguous()
    root = second_moments(net, ["0"], [x])["0"][form]
    W, rank = net[0].weight.detach(), (4, 3) if form == "tucker2" else 4
    assert torch.allclose(root.untilt(root.tilt(W)), W, atol=1e-9)
    blind, seeing = (
        F.conv2d(x, W - project(W, form, rank, r), padding=1).square().sum() for r in (None, root)
    )
    assert seeing < 0.7 * blind


def test_whitening_changes_the_choice_for_the_better():
    """Two layers of equal spectra; the inputs of the second reach two of its directions only."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(12, 12, bias=False), "b": nn.Linear(12, 12, bias=False)}).double()
    x = {"a": random(300, 12, seed=5), "b": skewed(300, 12)}
    net["b"].weight.data.copy_(net["a"].weight.data @ torch.linalg.qr(random(12, 12, seed=9))[0])
    moments = {name: second_moments(nn.Sequential(net[name]), ["0"], [x[name]])["0"] for name in net}

    def loss(roots) -> float:
        chosen, total = fit(net, ["a", "b"], "params=2x", moments=roots).by_name, 0.0
        for name, option in chosen.items():
            root = roots[name][option.form] if roots and option.form != "dense" else None
            W = net[name].weight.detach()
            total += (x[name] @ (W - project(W, option.form, option.rank, root)).mT).square().mean().item()
        return total

    assert loss(moments) < 0.6 * loss(None)


def test_the_sensitivity_of_a_frozen_weight_is_measured_all_the_same():
    net, batch = small_net(), small_batch()
    free = sensitivity(net, ["0", "3"], Clean(), [batch])
    net[3].weight.requires_grad_(False)
    assert sensitivity(net, ["0", "3"], Clean(), [batch]) == free
    assert [net[k].weight.requires_grad for k in (0, 3)] == [True, False]


def test_sensitivity_changes_the_choice_for_the_better():
    """The loss is a quadratic in the weights, a hundred times steeper in the first: there its error counts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)).double()
    start, steep = [layer.weight.detach().clone() for layer in net], (100.0, 1.0)

    def loss(weights) -> float:
        return sum(0.5 * f * (W - A).square().sum() for f, W, A in zip(steep, weights, start, strict=True))

    def objective(model, x, y, *, generator):
        # gradients of samples at the optimum, whose mean square is the curvature
        noise = [torch.randn(12, 12, generator=generator, dtype=whole) * f**0.5 for f in steep]
        return sum((layer.weight * e).sum() for layer, e in zip(model, noise, strict=True))

    batches = [(torch.zeros(1, 12, dtype=whole), torch.zeros(1))] * 20
    net.train()
    factors = sensitivity(net, ["0", "1"], objective, batches)
    assert net.training and net[0].weight.grad is None
    assert factors["0"] / factors["1"] == pytest.approx(100, rel=0.1)
    assert sum(factors.values()) / 2 == pytest.approx(1)

    def after(scale) -> float:
        chosen = fit(net, ["0", "1"], "params=2x", factors=scale).by_name
        return loss([project(net[int(k)].weight, o.form, o.rank) for k, o in chosen.items()]).item()

    assert after(factors) < 0.7 * after(None)


def test_a_scale_that_moves_from_a_weight_to_the_next_moves_no_rank():
    """ReLU nets compute the same with ``W_1 -> a W_1, W_2 -> W_2 / a``: inputs must not count in both measures."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    other, a = copy.deepcopy(net), 30.0
    with torch.no_grad():
        other[0].weight.mul_(a)
        other[0].bias.mul_(a)
        other[2].weight.div_(a)
    x, y = random(200, 12), torch.arange(200) % 4
    assert torch.allclose(net(x), other(x))
    found, names = [], ["0", "2"]
    for model in (net, other):
        moments, factors = second_moments(model, names, [x]), sensitivity(model, names, Clean(), [(x, y)])
        chosen = fit(model, names, "params=1.5x", moments=moments, factors=factors)
        errors = {made.name: made.energy for made in chosen.menus}
        found.append(([option.rank for option in chosen.options], errors["2"] / errors["0"]))
    assert found[0][0] == found[1][0] and found[0][1] == pytest.approx(found[1][1], rel=1e-3)


def test_forms_are_compared_in_one_metric():
    """Inputs that are constant over positions, where those of Tucker-2 and of the spatial form see less energy."""
    W = random(8, 6, 3, 3).abs()
    moments = second_moments(
        net := nn.Sequential(nn.Conv2d(6, 8, 3, bias=False)).double(),
        ["0"],
        [random(20, 6, 1, 1).expand(20, 6, 8, 8)],
    )["0"]
    net[0].weight.data.copy_(W)
    kinds = ("channel", "spatial", "tucker2")
    seen = [menu(Site("0", (8, 6, 3, 3)), W, form=kind, roots=moments).energy for kind in kinds]
    assert seen == pytest.approx([moments.energy(W)] * 3, rel=1e-6)
    small = random(8, 6, 3, 3) * 0.1
    assert moments.energy(small) == pytest.approx(
        (small.flatten(1) @ moments.C @ small.flatten(1).T).trace().item()
    )


def test_what_cannot_be_weighted_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    some = second_moments(net, ["0"], [torch.rand(5, 3)])
    with pytest.raises(IronrankError, match="moments of layer '1' are missing"):
        fit(net, ["0", "1"], "params=1.2x", moments=some)
    with pytest.raises(IronrankError, match="no input of layer '0' was seen: give at least one batch"):
        second_moments(net, ["0"], [])
    with pytest.raises(IronrankError, match="sensitivity: the loss has no finite, nonzero gradient"):
        sensitivity(net, ["0"], lambda *_, **__: torch.zeros(()), [])


def test_full_ranks_are_those_of_the_layers():
    for shape in ((6, 5), (6, 5, 3), (6, 5, 3, 2)):
        W = random(*shape)
        for form in Site("x", shape).forms():
            full = full_rank(shape, form)
            assert (W - project(W, form, full)).abs().max() < 1e-12
    assert set(COSTS) == {"params", "macs", "bytes"}
