"""CSTAR: its twin, the convex problem whose answer is known, budgets, and its use in a user's own loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from cases import Fit, small_batch, small_net
from ironrank.data import DataSpec
from ironrank.errors import IronrankError
from ironrank.layers import Factored
from ironrank.linalg import hosvd, truncated_svd
from ironrank.methods import CSTAR
from ironrank.methods.targets import coupling, decoded, encoded, layers_of, pull
from ironrank.models import VGG16, LeNet5, ResNet18
from ironrank.optim import SGD, AdamW
from ironrank.ranks import parse_budget
from ironrank.ranks.cost import count_bytes, count_macs, count_params
from ironrank.surgery import deploy, factored_layers, factorize
from twins import CSTARTwin

whole = torch.float64
FREE = {"first": "low-rank", "last": "low-rank"}
GRAY, COLOR = DataSpec((1, 28, 28), 10, (0.5,), (0.25,)), DataSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)


def ranks_of(model, state) -> dict:
    return {name: decoded(state[f"rank.{name}"]) for name in layers_of(model, state)}


# ---- the twin


@pytest.mark.parametrize("form", ["tucker2", "channel", "spatial", "auto"])
@pytest.mark.parametrize("every", [1, 2])
def test_steps_agree_with_the_twin(form, every):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(5, 8, 3), nn.Tanh(), nn.Conv2d(8, 6, (3, 2)), nn.Flatten(), nn.Linear(72, 7)
    ).double()
    x, y = torch.randn(4, 5, 8, 6, dtype=whole), torch.randn(4, 7, dtype=whole)

    def twin_loss(W, b):
        hidden = F.conv2d(torch.tanh(F.conv2d(x, W[0], b[0])), W[1], b[1])
        return F.mse_loss(F.linear(hidden.flatten(1), W[2], b[2]), y)

    method = CSTAR(
        budget="params=2x", form=form, rho=0.3, rho_growth=1.5, rho_max=0.8, every=every, choose=0, **FREE
    )
    optimizer = torch.optim.SGD(method.groups(method.prepare(net)), lr=0.1)
    state, layers = method.init(net), [net[0], net[2], net[4]]
    ranks = list(ranks_of(net, state).values())
    assert form == "auto" or form in [kind for kind, _ in ranks], "the form is put to the test"
    W, b = ([getattr(layer, key).detach().numpy().copy() for layer in layers] for key in ("weight", "bias"))
    twin = CSTARTwin(twin_loss, W, b, ranks, 0.3, 1.5, 0.8, every, lr=0.1)

    def backward():
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss.detach()

    for t in range(5):
        method.step(net, optimizer, state, backward, t)
        twin.step()
        for k, name in enumerate(["0", "2", "4"]):
            for ours, theirs in (
                (layers[k].weight, twin.W[k]), (layers[k].bias, twin.bias[k]),
                (state[f"Z.{name}"], twin.Z[k]), (state[f"Y.{name}"], twin.Y[k]),
            ):  # fmt: skip
                if ranks[k][0] != "dense" or ours is layers[k].weight:
                    np.testing.assert_allclose(
                        ours.detach().numpy(), theirs, atol=1e-10, err_msg=f"{t} {name}"
                    )
    assert float(state["rho"]) == pytest.approx(twin.rho) and int(state["updates"]) == 5 // every


def test_the_pull_is_the_gradient_of_the_coupling():
    fit = Fit(CSTAR(budget="params=3x", rho=0.7, **FREE), SGD(lr=0.1), whole)
    for _ in range(2):
        fit.method.update(fit.model, fit.state)  # Y is no longer zero
    fit.backward()
    before = [p.grad.clone() for p in fit.model.parameters()]
    term = torch.autograd.grad(
        coupling(fit.model, fit.state), list(fit.model.parameters()), allow_unused=True
    )
    pull(fit.model, fit.state)
    assert sum(g is not None and bool(g.abs().max() > 1e-3) for g in term) >= 1
    for p, old, g in zip(fit.model.parameters(), before, term, strict=True):
        assert torch.allclose(p.grad, old + (0 if g is None else g), atol=1e-12)


def test_the_pull_leaves_frozen_weights_alone():
    fit = Fit(CSTAR(budget="params=3x", **FREE), SGD(lr=0.1))
    fit.model[3].weight.requires_grad_(False)
    before = fit.model[3].weight.clone()
    fit.step()
    assert torch.equal(fit.model[3].weight, before) and fit.model[3].weight.grad is None


# ---- a convex problem whose constrained answer is known


def quadratic(net: nn.Module, method: CSTAR, steps: int) -> tuple[dict, list[dict], float]:
    """Minimize ``sum |W - A|^2 / 2`` from near A, A the weights as they are: ranks are chosen for A."""
    A = {name: layer.weight.detach().clone() for name, layer in net.named_children()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.8 / (1 + method.rho))  # 1 / (1 + rho) would be exact
    state, course = method.init(net), []
    for k, (name, goal) in enumerate(A.items()):
        noise = torch.randn(goal.shape, generator=torch.Generator().manual_seed(k), dtype=whole)
        net.get_submodule(name).weight.data.add_(0.3 * goal.std() * noise)

    def backward():
        optimizer.zero_grad()
        loss = sum(0.5 * (net.get_submodule(name).weight - goal).square().sum() for name, goal in A.items())
        loss.backward()
        return loss.detach()

    for t in range(steps):
        loss = method.step(net, optimizer, state, backward, t)
        course.append(method.watch(net, state))
    return state, course, loss.item()


def falls(course: list[dict], key: str, every: int) -> bool:
    """Whether a residual falls to nothing, always lower after so many steps until rounding takes over."""
    values = [watched[key] for watched in course[5::every] if watched[key] > 1e-9]
    return course[-1][key] < 1e-6 and len(values) > 4 and all(b < a for a, b in itertools.pairwise(values))


def matrices(*shapes: tuple[int, int]) -> nn.Sequential:
    """Layers whose singular values fall by a factor of 0.7 each."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(m, n, bias=False) for n, m in shapes)).double()
    for layer in net:
        P, s, Qt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        layer.weight.data.copy_((P * 0.7 ** torch.arange(len(s))) @ Qt)
    return net


@pytest.mark.parametrize("rho", [2.0, 4.0])
def test_the_residuals_fall_and_the_answer_is_that_of_eckart_and_young(rho):
    net = matrices((12, 10), (9, 14))
    A = [layer.weight.detach().clone() for layer in net]
    method = CSTAR(budget="params=3x", rho=rho, rho_growth=1.0, every=1, choose=0, **FREE)
    chosen = method.plan(net)
    state, course, loss = quadratic(net, method, 150)
    assert falls(course, "primal", 10) and falls(course, "dual", 10)
    assert loss == pytest.approx(chosen.error / 2, rel=1e-6), "half of what the choice says it drops"
    for layer, goal, option in zip(net, A, chosen.options, strict=True):
        assert torch.allclose(layer.weight, truncated_svd(goal, option.rank).dense(), atol=1e-6)
    small = method.finish(net, state)
    assert [layer.rank for layer in small] == [option.rank for option in chosen.options]
    for layer, goal in zip(small, A, strict=True):
        assert torch.allclose(layer.dense(), truncated_svd(goal, layer.rank).dense(), atol=1e-6)


def test_the_residuals_fall_for_tucker2_and_the_answer_is_no_worse_than_hosvd():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 10, 3, bias=False)).double()
    A = net[0].weight.data
    A.copy_(hosvd(A, (4, 3)).dense() + 0.05 * A)
    A = A.clone()
    method = CSTAR(budget="params=20%", rho=2.0, rho_growth=1.0, every=1, choose=0, **FREE)
    state, course, loss = quadratic(net, method, 150)
    assert ranks_of(net, state)["0"][0] == "tucker2"
    assert falls(course, "primal", 10) and falls(course, "dual", 10)
    assert loss <= 0.5 * (A - hosvd(A, ranks_of(net, state)["0"][1]).dense()).square().sum() + 1e-9


def test_the_ranks_go_where_the_energy_is():
    """A planted net: one layer has rank 2, the other one is full; the budget is just enough for both."""
    net = matrices((20, 20), (20, 20))
    net[0].weight.data.copy_(truncated_svd(net[0].weight.detach(), 2).dense())
    method = CSTAR(budget="params=60%", every=1, **FREE)
    assert ranks_of(net, method.init(net)) == {"0": ("channel", 2), "1": ("dense", None)}


# ---- ranks: chosen for a while, then frozen


@pytest.mark.parametrize("choose_on", ["weights", "shifted"])
def test_ranks_are_chosen_anew_and_then_frozen(choose_on):
    method = CSTAR(budget="params=2x", rho=0.1, every=1, choose=2, choose_on=choose_on, **FREE)
    net = matrices((12, 10), (9, 14))
    state = method.init(net)
    before = [ranks_of(net, state)]
    for t, factor in enumerate((10.0, 1e-3, 1e4, 10.0)):  # the energy goes from layer to layer
        net[0].weight.data.mul_(factor)
        dual = float(choose_on == "shifted")
        seen = {name: net[int(name)].weight.detach() + dual * state[f"Y.{name}"] for name in ("0", "1")}
        wanted = {name: (o.form, o.rank) for name, o in method.plan(net, seen).by_name.items()}
        assert wanted != before[-1], "there is a reason to choose anew"
        method.update(net, state)
        before.append(ranks_of(net, state))
        assert int(state["updates"]) == t + 1
        assert before[-1] == (wanted if t < 2 else before[2])


def test_ranks_of_weights_that_stand_still_are_those_of_the_dry_run():
    """Chosen on W + Y, the weak direction of the first matrix has gathered enough by the last choice to be kept."""
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    for layer, values in zip(net, ((1.0, 0.27), (0.9, 0.8)), strict=True):
        layer.weight.data = torch.diag(torch.tensor([*values, 0.0, 0.0, 0.0, 0.0]))
    ranks = {}
    for choose_on in ("weights", "shifted"):
        method = CSTAR(budget="params=36", choose_on=choose_on, **FREE)
        state = method.init(net)
        assert ranks_of(net, state) == {"0": ("channel", 1), "1": ("channel", 2)}
        for _ in range(method.choose):
            method.update(net, state)
        ranks[choose_on] = [rank for _, rank in ranks_of(net, state).values()]
    assert ranks == {"weights": [1, 2], "shifted": [2, 1]}


def test_layers_that_stay_dense_are_not_pulled():
    method = CSTAR(budget="params=1x", rho=1.0, every=1)
    fit, plain = Fit(method, SGD(lr=0.1)), Fit(CSTAR(budget="params=1x"), SGD(lr=0.1))
    for _ in range(3):
        fit.step()
        plain.step()
    assert all(
        torch.equal(p, q) for p, q in zip(fit.model.parameters(), plain.model.parameters(), strict=True)
    )
    assert fit.method.watch(fit.model, fit.state)["primal"] == 0.0
    assert not factored_layers(method.finish(fit.model, fit.state))


def test_the_dual_residual_is_that_of_layers_with_a_target():
    """A layer that stays dense moves as the training moves it: that says nothing about convergence."""
    net = matrices((20, 20), (20, 20))
    net[0].weight.data.copy_(truncated_svd(net[0].weight.detach(), 2).dense())
    method = CSTAR(budget="params=60%", rho=1.0, every=1, choose=0, **FREE)
    state = method.init(net)
    assert [kind for kind, _ in ranks_of(net, state).values()] == ["channel", "dense"]
    net[1].weight.data.add_(1.0)
    method.update(net, state)
    assert method.watch(net, state)["dual"] < 1e-9
    net[0].weight.data.mul_(2.0)
    norm = net[0].weight.norm().item() / 2
    method.update(net, state)
    assert method.watch(net, state)["dual"] == pytest.approx(method.rho * norm, rel=1e-6)


def test_the_state_has_the_layout_that_a_file_gives_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(9, 5))
    method = CSTAR(budget="params=3x", every=1, **FREE)
    state = method.init(net)
    assert any(key.startswith("V.") for key in state)
    for _ in range(2):
        assert all(tensor.is_contiguous() for tensor in state.values())
        method.update(net, state)


def test_relative_errors_do_not_depend_on_the_scale_of_a_layer():
    def chosen(errors, scale):
        net = matrices((12, 10), (9, 14))
        net[0].weight.data.mul_(scale)
        return ranks_of(net, CSTAR(budget="params=2x", errors=errors, **FREE).init(net))

    assert chosen("relative", 1.0) == chosen("relative", 100.0)
    assert chosen("absolute", 1.0) != chosen("absolute", 100.0)


# ---- budgets

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


@pytest.mark.parametrize("budget, form", [
    ("params=5x", "tucker2"), ("params=5x", "spatial"), ("macs=3x", "auto"), ("bytes=5x", "channel"),
])  # fmt: skip
@pytest.mark.parametrize("name", NETS)
def test_what_finish_returns_is_within_the_budget_when_deployed(name, budget, form):
    model, spec = NETS[name]
    torch.manual_seed(0)
    net, x, count = model.build(spec), torch.rand(2, *spec.shape), COUNTS[parse_budget(budget).cost]
    before, method = count(net, x), CSTAR(budget=budget, form=form, input_shape=spec.shape)
    state = method.init(method.prepare(net))
    small = method.finish(net, state)
    after = count(deploy(small), x)
    assert after <= parse_budget(budget).limit(before)
    assert float(state["ratio"]) == pytest.approx(before / after)
    assert after > 0.95 * parse_budget(budget).limit(before), "and the budget is used"
    assert small.eval()(x).shape == (2, 10)
    kinds = {kind for kind, _ in ranks_of(small, state).values()}
    assert form == "auto" or kinds <= {"dense", "channel", form}


def test_finish_does_not_stay_in_a_subspace_of_other_weights():
    """A basis left over from W + Y, in which the direction that W holds least of came first."""
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    method = CSTAR(budget="params=10x", **FREE)
    state = method.init(net)
    W = torch.zeros(8, 8, 3, 3)
    W[0, 0, 1, 1], W[1, 1, 1, 1] = 1.0, 0.9
    state["rank.0"], state["V.0"] = encoded("tucker2", (1, 1)), torch.eye(8)[:, 1:2].contiguous()
    net[0].weight.data.copy_(W)
    method.finish(net, state)
    assert (net[0].dense() - W).square().sum().item() == pytest.approx(0.81, rel=1e-4)


def test_frozen_layers_stay_dense_and_count():
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    net[0].requires_grad_(False)
    method = CSTAR(budget="params=1.5x", **FREE)
    assert method.names(net) == ["2", "4"]
    small = method.finish(net, method.init(net))
    assert type(small[0]) is nn.Linear and not small[0].weight.requires_grad
    assert sum(p.numel() for p in deploy(small).parameters()) <= 3 * 1056 / 1.5
    with pytest.raises(IronrankError, match="the smallest this net can become"):
        CSTAR(budget="params=8x", **FREE).prepare(nn.Sequential(*list(net)[:2], nn.Linear(32, 32)))
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).requires_grad_(False)
    with pytest.raises(IronrankError, match="all that may become low-rank here are frozen"):
        method.prepare(net)


def test_first_and_last_layer_stay_dense_and_count():
    net = small_net()
    assert CSTAR(budget="params=2x").names(net) == ["3"]
    assert CSTAR(budget="params=2x", first="low-rank").names(net) == ["0", "3"]
    assert CSTAR(budget="params=2x", **FREE, exclude=("3",)).names(net) == ["0", "5"]
    method = CSTAR(budget="params=3x")
    small = method.finish(net, method.init(net))
    assert [type(layer).__name__ for layer in small if hasattr(layer, "weight") or isinstance(layer, Factored)] == [
        "Conv2d", "FactoredLinear", "Linear"
    ]  # fmt: skip
    assert small[3].S is None and count_params(small) <= count_params(small_net()) / 3


def test_minimum_ranks_and_multiples_are_kept():
    torch.manual_seed(0)
    net = ResNet18(width=0.25).build(COLOR)
    method = CSTAR(budget="params=4x", min_rank=4, round_to=4)
    ranks = [rank for form, rank in ranks_of(net, method.init(net)).values() if form == "tucker2"]
    assert ranks and all(r % 4 == 0 and r >= 4 for pair in ranks for r in pair)


# ---- in a user's own loop


def own_loop(fit: Fit, steps: int) -> None:
    for _ in range(steps):
        fit.built.zero_grad()
        F.cross_entropy(fit.model(fit.x), fit.y).backward()
        fit.built.step()


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.5), AdamW(lr=0.01)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("every", [1, 3])
def test_attached_gives_the_same_bits_as_the_step(optimizer, every):
    method = CSTAR(budget="params=2x", rho=0.1, every=every, choose=1, **FREE)
    ours, theirs = Fit(method, optimizer), Fit(method, optimizer, begun=False)
    attached = method.attach(theirs.model, theirs.built)
    for _ in range(4):
        ours.step()
    own_loop(theirs, 4)
    assert attached.steps == 4 and attached.state.keys() == ours.state.keys()
    assert all(torch.equal(attached.state[key], value) for key, value in ours.state.items())
    assert method.watch(theirs.model, attached.state) == method.watch(ours.model, ours.state)
    one, other = method.finish(ours.model, ours.state), attached.finish()
    assert factored_layers(other)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_loop_that_was_interrupted_goes_on_to_the_same_bits(tmp_path):
    method = CSTAR(budget="params=2x", rho=0.1, every=2, choose=1, form="tucker2", **FREE)
    whole_run, first = (Fit(method, SGD(lr=0.1, momentum=0.0), begun=False) for _ in range(2))
    never = method.attach(whole_run.model, whole_run.built)
    own_loop(whole_run, 7)
    stopped = method.attach(first.model, first.built)
    own_loop(first, 3)
    save_file({key: value.clone() for key, value in stopped.state.items()}, tmp_path / "admm.safetensors")
    then = Fit(method, SGD(lr=0.1, momentum=0.0), begun=False)
    then.model.load_state_dict(first.model.state_dict())
    state = load_file(tmp_path / "admm.safetensors")
    again = method.attach(then.model, then.built).resume(state, stopped.steps)
    own_loop(then, 4)
    assert again.steps == 7 and all(
        torch.equal(again.state[key], value) for key, value in never.state.items()
    )
    pairs = zip(again.finish().parameters(), never.finish().parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    other = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(IronrankError, match="attach: the state does not fit this net and method, at 'Y"):
        method.attach(other, torch.optim.SGD(other.parameters(), lr=0.1)).resume(state, 3)


def test_the_attachment_ends_with_finish():
    fit = Fit(CSTAR(budget="params=2x", every=1, **FREE), SGD(lr=0.1), begun=False)
    attached = fit.method.attach(fit.model, fit.built)
    own_loop(fit, 1)
    small = attached.finish()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    F.cross_entropy(small(fit.x), fit.y).backward()
    optimizer.step()
    fit.built.step()
    assert attached.steps == 1, "neither optimizer is accompanied any more"
    with pytest.raises(
        IronrankError, match=r"attach: finish\(\) was called before: train on what it returned"
    ):
        attached.finish()


def test_weights_that_are_not_finite_are_named_in_one_line():
    fit = Fit(CSTAR(budget="params=2x", every=1, choose=0, **FREE), SGD(lr=0.1), begun=False)
    fit.method.attach(fit.model, fit.built)
    F.cross_entropy(fit.model(fit.x), fit.y).backward()
    for what, words in (
        ("grad", "a gradient is not finite; the step is not taken"),
        ("data", "weights or gradients"),
    ):
        for p in fit.model.parameters():
            p.grad.zero_()
            getattr(p, what).fill_(torch.nan)
        with pytest.raises(IronrankError, match=f"attach: {words}") as error:
            fit.built.step()
        assert "\n" not in str(error.value)


def test_attached_refuses_what_it_cannot_serve():
    net, (x, y) = small_net(), small_batch()
    with pytest.raises(IronrankError, match="the optimizer does not hold the weight of layer '3'"):
        CSTAR(budget="params=2x").attach(net, torch.optim.SGD(net[0].parameters(), lr=0.1))
    with pytest.raises(IronrankError, match="cstar compresses dense layers"):
        CSTAR().attach(factorize(small_net(), 0.5), torch.optim.SGD(net.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attached = CSTAR(budget="params=2x").attach(net, optimizer)
    with pytest.raises(IronrankError, match="without a closure"):
        optimizer.step(lambda: F.cross_entropy(net(x), y))
    with pytest.warns(UserWarning, match="never fired"):
        attached.remove()


# ---- settings


@pytest.mark.parametrize("change, words", [
    ({"budget": "parms=8x"}, "did you mean 'params'"),
    ({"budget": "8x"}, "write it as cost=amount"),
    ({"budget": "latency=2x"}, "cstar.budget='latency=2x': allowed is params, macs, bytes"),
    ({"budget": "macs=2x"}, r"cstar.budget='macs=2x' needs cstar.input_shape, such as \(3, 32, 32\)"),
    ({"form": "cp"}, "form='cp': allowed is channel, spatial, tucker2, auto"),
    ({"rho": 0.0}, "cstar.rho=0: allowed is above 0"),
    ({"rho_growth": 0.9}, "cstar.rho_growth=0.9"),
    ({"every": 0}, "cstar.every=0"),
    ({"errors": "squared"}, "cstar.errors='squared': allowed is absolute, relative"),
    ({"first": "full-rank"}, "cstar.first='full-rank': allowed is dense, low-rank"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(IronrankError, match=words) as error:
        CSTAR(**change)
    assert "\n" not in str(error.value)


def test_nets_that_cannot_be_compressed_are_refused():
    two, one = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), nn.Sequential(nn.Linear(9, 9))
    for net, change, words in (
        (two, {}, "no layer is left to compress, .*: set first or last to 'low-rank'"),
        (one, {"last": "low-rank"}, "no layer is left to compress, .*: set first and last to 'low-rank'"),
        (nn.Sequential(nn.ReLU()), {}, "cstar: no layer of the model can become low-rank"),
    ):
        with pytest.raises(IronrankError, match=words):
            CSTAR(budget="params=2x", **change).prepare(net)
    for net, change in ((two, {"last": "low-rank"}), (one, FREE)):
        CSTAR(budget="params=1.2x", **change).prepare(net)
    with pytest.raises(IronrankError, match="no layer matches 'fc9'"):
        CSTAR(exclude=("fc9",)).prepare(small_net())
    with pytest.raises(IronrankError, match=r"params=64x: the smallest this net can become is 4.61x"):
        CSTAR(budget="params=64x").prepare(small_net())


@pytest.mark.parametrize("budget, form", [
    ("params=8x", "tucker2"), ("params=64x", "channel"), ("macs=1000", "auto"), ("bytes=2KB", "spatial"),
])  # fmt: skip
@pytest.mark.parametrize("limits", [{}, {"min_rank": 3, "round_to": 2}])
def test_a_budget_is_refused_by_shapes_as_it_would_be_by_weights(budget, form, limits):
    net = LeNet5(width=0.3).build(GRAY)
    method = CSTAR(budget=budget, form=form, input_shape=(1, 28, 28), **limits, **FREE)
    said = []
    for call in (method.prepare, method.plan):
        try:
            call(net)
            said.append("")
        except IronrankError as error:
            said.append(str(error))
    assert said[0] == said[1] and bool(said[0]) == (budget != "params=8x")


def test_ranks_as_tensors():
    for form, rank in (("dense", None), ("channel", 3), ("spatial", 5), ("tucker2", (2, 7))):
        assert decoded(encoded(form, rank)) == (form, rank)
