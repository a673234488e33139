"""Filters: coupled groups, counts, removal that changes no more than the filters that are gone, and the methods."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import GRAY, small_batch, small_net, tiny_run
from expect import refuses
from ironrank.artifact import load_model, save
from ironrank.compression import compress_run, planned
from ironrank.data import DataSpec
from ironrank.judge import evaluate_folder
from ironrank.layers import narrowed, widths
from ironrank.methods import SVD, ADMMFilters, Magnitude, Method, Scores, SVDPrune
from ironrank.methods.filters import FilterPruning, largest, norms
from ironrank.models import VGG16, Given, LeNet5, Model, PreActResNet18, ResNet18, ResNet20, WideResNet
from ironrank.ranks.cost import count_bytes, count_macs, count_params
from ironrank.surgery import deploy, factored_layers, factorize, find_groups, remove
from ironrank.surgery.inputs import find_input_shape
from ironrank.training import train
from ironrank.verbs import compress
from twins_prune import ADMMFiltersTwin, ScoresTwin

COLOR = DataSpec((3, 32, 32), 7, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
NETS: dict[str, Model] = {
    "lenet5": LeNet5(width=0.2),
    "vgg16": VGG16(width=0.0625),
    "resnet18": ResNet18(width=0.0625),
    "resnet20-pad": ResNet20(width=0.5),
    "resnet20-conv": ResNet20(width=0.5, shortcut="conv"),
    "preact": PreActResNet18(width=0.0625),
    "preact-norm": PreActResNet18(width=0.0625, last_norm=True),
    "wrn": WideResNet(depth=10, widen=2, width=0.5),
}
every_net = pytest.mark.parametrize("name", NETS)


def trained(name: str) -> nn.Module:
    """A net in evaluation mode whose batch norms all do something."""
    torch.manual_seed(0)
    net = NETS[name].build(COLOR).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    return net


def pixels(n: int = 4) -> torch.Tensor:
    return torch.rand((n, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def some(groups) -> dict[str, torch.Tensor]:
    """Every other filter, not the first ones."""
    return {group.name: torch.arange(group.size)[group.size > 1 :: 2] for group in groups}


@torch.no_grad()
def masked(net: nn.Module, groups, keep) -> nn.Module:
    """The net with zeros in place of all that makes and reads the filters that are not kept."""
    net = copy.deepcopy(net)
    for group in groups:
        gone = [i for i in range(group.size) if i not in keep[group.name].tolist()]
        for member in group.members:
            for parameter in net.get_submodule(member.layer).parameters():
                if member.side == "out":
                    parameter[member.where[gone].flatten()] = 0
                elif parameter.ndim > 1:
                    parameter[:, member.where[gone].flatten()] = 0
    return net


# ---- groups and removal


@every_net
def test_the_net_without_filters_is_the_net_that_has_zeros_for_them(name):
    net, x = trained(name), pixels()
    groups = find_groups(net)
    keep = some(groups)
    wanted = masked(net, groups, keep)(x).detach()
    assert (wanted - net(x).detach()).abs().max() > 1e-3 * wanted.abs().max(), "the mask does something"
    found = remove(net, groups, keep)(x).detach()
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@every_net
def test_counts_are_those_of_the_net_that_is_left(name):
    net, x = trained(name), pixels(1)
    costs = {"params": count_params, "bytes": count_bytes, "macs": lambda model: count_macs(model, x)}
    for cost, count in costs.items():
        method = Magnitude(budget=f"{cost}=3x", input_shape=(3, 32, 32))
        plan = method.plan(net)
        small = method.prepare(copy.deepcopy(net))
        assert (plan.before, plan.after) == (count(net), count(small)) and plan.after <= plan.before / 3
        more = {name: min(kept + 1, size) for (name, kept), size in
                zip(plan.kept.items(), [group.size for group in plan.groups], strict=True)}  # fmt: skip
        keep = {group.name: torch.arange(more[group.name]) for group in plan.groups}
        assert count(remove(copy.deepcopy(net), plan.groups, keep)) > plan.before / 3, (
            "no share is left unused"
        )


@every_net
def test_every_channel_but_those_of_the_classes_is_in_a_group(name):
    net = trained(name)
    groups = find_groups(net)
    makers = {member.layer for group in groups for member in group.side("out")}
    weighted = [n for n, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert {n for n in weighted if n not in makers} == {weighted[-1]}
    assert len({group.name for group in groups}) == len(groups)
    sizes = {1: pixels(1), 2: pixels(2)}
    small = remove(net, groups, {group.name: torch.tensor([0]) for group in groups})
    assert all(small(x).shape == (n, 7) for n, x in sizes.items())


@every_net
def test_a_smaller_net_is_rebuilt_without_the_library_that_cut_it(name, tmp_path, monkeypatch):
    net = Magnitude(budget="params=3x").prepare(trained(name))
    save(net, tmp_path)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    loaded = load_model(tmp_path, model=NETS[name].build(COLOR))
    assert torch.equal(loaded(pixels()), net(pixels())) and widths(loaded) == widths(net)
    with refuses("removing filters needs Torch-Pruning", "pip install 'ironrank[prune]'"):
        Magnitude().prepare(loaded)


def test_parameters_stay_the_same_objects_with_their_settings():
    net = small_net()
    net[0].weight.requires_grad_(False)
    (x, _), held = small_batch(), list(net.parameters())
    net(x).sum().backward()
    state = torch.get_rng_state()
    Magnitude(budget="params=3x").prepare(net)
    assert torch.equal(torch.get_rng_state(), state) and net.training
    assert all(a is b for a, b in zip(net.parameters(), held, strict=True))
    assert [p.requires_grad for p in held] == [False] + [True] * 5 and all(p.grad is None for p in held)


def test_what_is_looked_at_stays_as_it_was():
    net = trained("preact").train()
    net.conv1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    find_groups(net)
    Magnitude().plan(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert (
        net.training
        and not net.conv1.weight.requires_grad
        and not any(p.grad is not None for p in net.parameters())
    )


class Odd(nn.Module):
    """A depthwise convolution, a concatenation, a norm that cannot be narrowed, and a weight used twice."""

    def __init__(self):
        super().__init__()
        self.one, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.three, self.four = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 6, 1)
        self.five = nn.Conv2d(6, 6, 1)
        self.five.weight = self.four.weight
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.cat([self.deep(self.one(x)).relu(), self.norm(self.two(x)).relu()], 1)
        return self.fc(self.five(self.four(self.three(x)).relu()).mean((2, 3)))


def test_what_cannot_be_narrowed_stays_whole():
    torch.manual_seed(0)
    net, x = Odd().eval(), pixels()
    groups = find_groups(net)
    assert [group.name for group in groups] == ["one"]
    assert {(m.layer, m.side) for m in groups[0].members} == {
        ("one", "out"),
        ("deep", "out"),
        ("three", "in"),
    }
    wanted = masked(net, groups, some(groups))(x)
    small = remove(net, groups, some(groups))
    assert torch.allclose(small(x), wanted, atol=1e-6)
    assert (small.deep.groups, small.three.in_channels, small.four.in_channels) == (4, 8, 6)


class Rearranged(nn.Module):
    """Channels that change places between two layers, which no trace of shapes sees."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1)
        self.c = nn.Conv2d(3 if how == "pixels" else 12, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.b(self.a(x).relu())
        if self.how == "pixels":
            x = F.pixel_shuffle(x, 2)
        else:
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.c(x).relu().mean((2, 3)))


@pytest.mark.parametrize("how", ["shuffle", "pixels"])
def test_channels_that_change_places_stay(how):
    net, x = Rearranged(how).eval(), pixels()
    nn.init.zeros_(net.fc.weight)  # a head that begins at zero hides nothing
    groups = find_groups(net)
    assert [group.name for group in groups] == ["a", "c"]
    nn.init.normal_(net.fc.weight)
    wanted = masked(net, groups, some(groups))(x)
    assert torch.allclose(remove(net, groups, some(groups))(x), wanted, atol=1e-5)


class Joined(nn.Module):
    """A convolution that reads two others, or one and the input."""

    def __init__(self, image: bool):
        super().__init__()
        self.image, self.a, self.b = image, nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 48, 3, padding=1)
        self.c, self.fc = nn.Conv2d(51 if image else 64, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x):
        a = self.a(x)
        joined = torch.cat([x if self.image else a, self.b(a)], 1)
        return self.fc(self.c(joined).mean((2, 3)))


@pytest.mark.parametrize("image, exclude", [(True, ()), (False, ()), (False, ("a",)), (False, ("b",))])
@pytest.mark.parametrize("cost", ["params", "bytes", "macs"])
def test_channels_that_nobody_prunes_beside_others_count_whole(cost, image, exclude):
    net, x = Joined(image), pixels(1)
    count = {"params": count_params, "bytes": count_bytes, "macs": lambda model: count_macs(model, x)}[cost]
    method = Magnitude(budget=f"{cost}=3x", input_shape=(3, 32, 32), exclude=exclude)
    plan = method.plan(net)
    small = method.prepare(copy.deepcopy(net))
    assert small(x).shape == (1, 10)
    assert (plan.before, plan.after) == (count(net), count(small)) and plan.after <= plan.before / 3


def test_layers_may_be_excluded():
    net = trained("resnet18")
    all_names = [group.name for group in find_groups(net)]
    assert all_names[0] == "conv1"
    plan = Magnitude(budget="params=2x", exclude=("conv1", "stage2.block1.conv1")).plan(net)
    assert [n for n in all_names if n not in plan.kept] == ["conv1", "stage2.block1.conv1"]
    with refuses("no layer matches 'conv9'", "did you mean 'conv1'"):
        Magnitude(exclude=("conv9",)).plan(net)


def test_mistakes_get_one_line():
    with refuses("magnitude.budget='params=100x' is at most", "the smallest net has", "ask for less"):
        Magnitude(budget="params=100x").prepare(small_net())
    with refuses("this net is factored: start from a dense one"):
        Magnitude().prepare(factorize(small_net(), 0.5))
    with refuses("magnitude.budget='latency=2x': allowed is params, macs, bytes"):
        Magnitude(budget="latency=2x")
    with refuses("needs magnitude.input_shape, such as (3, 32, 32)"):
        Magnitude(budget="macs=2x")
    with refuses("no filters that could be removed"):
        Magnitude().prepare(nn.Sequential(nn.Linear(5, 3)))
    with refuses("no linear or convolution layer"):
        Magnitude().prepare(nn.Sequential(nn.ReLU()))
    with refuses("no square image of up to 256 pixels", "set input_shape"):
        Magnitude().prepare(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(7, 2)))
    for params in (1, 80):
        with refuses("ask for less compression"):
            Magnitude().within(LeNet5().build(GRAY), params)


@pytest.mark.parametrize("side", [16, 28, 44])
def test_the_shape_of_an_input_is_found(side):
    spec = DataSpec((2, side, side), 5, (0.0,) * 2, (1.0,) * 2)
    assert find_input_shape(LeNet5(width=0.1).build(spec))[1] in (side, side + 1, side + 2, side + 3)
    assert find_input_shape(nn.Sequential(nn.Flatten(), nn.Linear(784, 5))) == (784,)
    assert find_input_shape(nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten(), nn.Linear(3 * 9, 2))) == (2, 13)


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_numbers_of_filters_are_multiples(round_to):
    plan = Magnitude(budget="params=3x", round_to=round_to).plan(LeNet5().build(GRAY))
    assert all(
        kept % round_to == 0 or kept == g.size
        for kept, g in zip(plan.kept.values(), plan.groups, strict=True)
    )
    assert plan.after <= plan.before / 3
    assert "filters of" in str(plan) and f"params: {plan.before:,} -> {plan.after:,}" in str(plan)


# ---- every method


@pytest.mark.parametrize("kind", FilterPruning.__subclasses__())
def test_within_a_number_of_parameters_on_the_meta_device(kind):
    with torch.device("meta"):
        net = ResNet18(width=0.25).build(COLOR)
    method = kind().within(net, 100_000)
    assert isinstance(method, Method) and method.budget == "params=100000"
    assert 90_000 < method.plan(net).after <= 100_000


# ---- magnitude


def test_magnitude_against_numpy():
    """A net of one group that two layers make: the norms add up, and the largest stay."""
    torch.manual_seed(0)
    net = trained("resnet20-conv")
    group = find_groups(net)[0]
    makers = [m.layer for m in group.side("out") if "bn" not in m.layer]
    assert makers == ["conv1", "stage1.block1.conv2", "stage1.block2.conv2", "stage1.block3.conv2"]
    weights = [net.get_submodule(layer).weight.detach().numpy().astype(float) for layer in makers]
    wanted = np.sqrt(sum((W.reshape(len(W), -1) ** 2).sum(1) for W in weights))
    np.testing.assert_allclose(norms(net, group), wanted, rtol=1e-6)
    method = Magnitude(budget="params=2x")
    keep = np.sort(np.argsort(-wanted, kind="stable")[: method.plan(net).kept[group.name]])
    assert largest(norms(net, group), len(keep)).tolist() == keep.tolist()
    before = net.fc.weight.clone()
    small = method.prepare(net)
    np.testing.assert_array_equal(small.conv1.weight.detach(), torch.tensor(weights[0])[keep])
    assert small.fc.weight.shape[0] == before.shape[0] == 7


# ---- admm-filters and scores: twins


def hidden_net() -> tuple[nn.Sequential, tuple, list, list]:
    """A net of one hidden layer, its data, and its parameters as arrays."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = torch.randn(16, 6, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    W, b = ([getattr(net[i], key).detach().numpy().copy() for i in (0, 2)] for key in ("weight", "bias"))
    return net, data, W, b


def loss_of(data):
    x, y = data
    return lambda W, b: F.mse_loss(F.linear(torch.tanh(F.linear(x, W[0], b[0])), W[1], b[1]), y)


def backward_of(net, optimizer, data):
    def backward():
        optimizer.zero_grad()
        loss = F.mse_loss(net(data[0]), data[1])
        loss.backward()
        return loss.detach()

    return backward


@pytest.mark.parametrize("every", [1, 2])
def test_admm_agrees_with_the_twin(every):
    net, data, W, b = hidden_net()
    method = ADMMFilters(budget="params=2x", rho=0.3, rho_growth=1.5, rho_max=0.8, every=every)
    kept = method.plan(net).kept["0"]
    optimizer = torch.optim.SGD(method.groups(method.prepare(net)), lr=0.1)
    state, twin = method.init(net), ADMMFiltersTwin(loss_of(data), W, b, kept, 0.3, 1.5, 0.8, every, lr=0.1)
    for t in range(7):
        method.step(net, optimizer, state, backward_of(net, optimizer, data), t)
        twin.step()
        for i, k in ((0, 0), (2, 1)):
            np.testing.assert_allclose(net[i].weight.detach(), twin.W[k], atol=1e-12)
            np.testing.assert_allclose(net[i].bias.detach(), twin.b[k], atol=1e-12)
        for ours, theirs in ((state["Z.0.weight"], twin.Z[:, :-1]), (state["Z.0.bias"], twin.Z[:, -1]),
                             (state["Y.0.weight"], twin.Y[:, :-1]), (state["Y.0.bias"], twin.Y[:, -1])):  # fmt: skip
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
    apart = np.linalg.norm(twin.filters() - twin.Z) / np.linalg.norm(twin.filters())
    assert method.watch(net, state)["primal"] == pytest.approx(apart) and float(
        state["rho"]
    ) == pytest.approx(twin.rho)
    keep = np.sort(np.argsort(-np.linalg.norm(twin.filters(), axis=1), kind="stable")[:kept])
    np.testing.assert_allclose(method.finish(net, state)[0].weight.detach(), twin.W[0][keep], atol=1e-12)


def test_the_pull_of_admm_makes_the_removal_cheap():
    """On a quadratic loss the filters that go are zero in the end, and what goes is the least."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).double()
    goal = {n: p.detach().clone() for n, p in net.named_parameters()}
    method = ADMMFilters(budget="params=2x", rho=2.0, rho_growth=1.0, rho_max=2.0, every=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    state = method.init(net)

    def backward():
        optimizer.zero_grad()
        loss = sum(0.5 * (p - goal[n]).square().sum() for n, p in net.named_parameters())
        loss.backward()
        return loss.detach()

    for t in range(300):
        method.step(net, optimizer, state, backward, t)
    assert method.watch(net, state)["primal"] < 1e-6
    F_ = torch.cat([goal["0.weight"], goal["0.bias"][:, None]], 1)
    keep = largest(F_.norm(dim=1), method.plan(net).kept["0"])
    small = method.finish(net, state)
    assert torch.allclose(small[0].weight, goal["0.weight"][keep], atol=1e-5)


def test_admm_in_a_users_own_loop():
    net, (x, y) = small_net(), small_batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attached = ADMMFilters(budget="params=2x", rho=0.1, every=1).attach(net, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert attached.steps == 3 and int(attached.state["updates"]) == 3
    assert count_params(attached.finish()) <= count_params(small_net()) / 2
    with refuses("does not hold the weight of layer"):
        ADMMFilters().attach(small_net(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))


@pytest.mark.parametrize("method", [Scores(), SVDPrune()])
def test_what_changes_shapes_on_the_way_cannot_be_attached(method):
    net = small_net()
    with refuses(f"{method.name} cannot be attached", "use train"):
        method.attach(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_scores_agree_with_the_twin_and_the_weights_stand_still():
    net, data, W, b = hidden_net()
    method = Scores(budget="params=2x", steps=6, rate=5.0, momentum=0.5)
    kept = method.plan(net).kept["0"]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    state, twin = method.init(net), ScoresTwin(loss_of(data), W, b, kept, rate=5.0, momentum=0.5)
    first = largest(state["score.0"], kept).tolist()
    for t in range(6):
        loss = method.step(net, optimizer, state, backward_of(net, optimizer, data), t)
        assert loss.item() == pytest.approx(twin.step())
        np.testing.assert_allclose(state["score.0"], twin.s, atol=1e-12)
        np.testing.assert_array_equal(net[0].weight.detach(), W[0])
        np.testing.assert_array_equal(net[2].weight.detach(), W[1])
    on = largest(state["score.0"], kept)
    assert on.tolist() != first, "the scores have changed the choice"
    assert float(loss) < 0.99 * float(loss_of(data)(*masks(W, b, first))), "for the better"
    method.step(net, optimizer, state, backward_of(net, optimizer, data), 6)
    assert net[0].out_features == kept and state["removed"] == 1
    assert np.abs(net[0].weight.detach().numpy() - W[0][on]).max() > 0, "now the weights move"
    assert method.finish(net, state) is net


def masks(W, b, on):
    second = np.zeros_like(W[1])
    second[:, on] = W[1][:, on]
    return [torch.tensor(W[0]), torch.tensor(second)], [torch.tensor(v) for v in b]


@every_net
def test_while_scores_train_the_net_is_the_one_that_they_leave(name):
    net = trained(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    method, x = Scores(budget="params=3x", input_shape=(3, 32, 32)), pixels()
    state, seen = method.init(net), []

    def backward():
        net.zero_grad()
        seen.append(net(x).detach())
        F.cross_entropy(net(x), torch.tensor([0, 1, 2, 3])).backward()
        return torch.tensor(0.0)

    small = method.finish(copy.deepcopy(net), state)
    scores = {key: value.clone() for key, value in state.items() if key.startswith("score.")}
    method.step(net, torch.optim.SGD(net.parameters(), lr=0.1), state, backward, 0)
    assert (seen[0] - small(x).detach()).abs().max() <= 1e-5 * seen[0].abs().max()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and not narrowed(
        net
    )
    moved = [key for key, value in scores.items() if not torch.equal(value, state[key])]
    assert moved == list(scores), "also the scores of filters that are off"
    off = [(state[k] != scores[k]).double().mean() for k in scores]
    assert min(off) > 0.6, off


# ---- through the loop, the judge, and other stages


def test_a_run_of_a_pruned_net_is_judged_against_the_architecture(mnist, tmp_path):
    dense = train(tiny_run(mnist, epochs=1), tmp_path / "dense")
    run = tiny_run(mnist, method=Magnitude(budget="params=2x"), start=str(dense), epochs=1)
    folder = train(run, tmp_path / "small")
    assert narrowed(load_model(folder, "last")) == narrowed(load_model(folder))
    layout = json.loads((folder / "layout.json").read_text())
    assert layout["widths"]["conv2"]["of"] == [5, 2, 1] and not layout["layers"]
    row = evaluate_folder(folder, n=8, steps=1, latency_runs=2)
    whole = evaluate_folder(dense, n=8, steps=1, latency_runs=2)
    assert row["params_dense"] == whole["params_dense"] == count_params(LeNet5(width=0.1).build(GRAY))
    assert row["macs_dense"] == whole["macs_dense"] > row["macs"]
    assert row["params_deployed"] == row["params_stored"] <= row["params_dense"] / 2
    assert row["form_gap"] <= 1e-5


def test_a_pruned_net_may_be_factored_in_the_next_stage(mnist, tmp_path):
    first = tiny_run(mnist, method=Magnitude(budget="params=2x"), epochs=1)
    folder = train(tiny_run(mnist, method=SVD(keep=0.5), start=first, epochs=1), tmp_path / "run")
    net = load_model(folder)
    assert factored_layers(net) and "conv2" in narrowed(net)
    with refuses("another architecture"):
        train(tiny_run(mnist, model=LeNet5(width=0.2), start=str(folder), epochs=1), tmp_path / "other")


def test_a_module_of_the_users_own(mnist, tmp_path):
    own = nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)
    )
    run = tiny_run(mnist, model=Given(), method=Magnitude(budget="params=2x"))
    for until in (1, None):
        folder = train(run, tmp_path / "run", model=own, resume=True, until=until)
    small = load_model(folder, model=own)
    assert small[0].out_channels == 2 and own[0].out_channels == 6
    row = evaluate_folder(folder, n=8, steps=1, latency_runs=2, model=own)
    assert row["params_dense"] == count_params(own) and row["params_deployed"] == count_params(small)


@pytest.mark.parametrize("method", ["magnitude", "admm-filters", "scores", "svd-prune"])
def test_a_trained_net_is_compressed_in_one_call(method, mnist, tmp_path):
    dense = train(tiny_run(mnist, epochs=2), tmp_path / "dense")
    few = {
        "admm-filters": ("method.every=1",),
        "scores": ("method.steps=2",),
        "svd-prune": ("method.steps=2",),
    }
    overrides = few.get(method, ())
    plan = str(planned(compress_run(dense, method, overrides, budget="params=2x")))
    assert "conv2" in plan
    compress(dense, method, overrides, budget="params=2x", epochs=2, out=tmp_path / "small")
    small, whole = (
        sum(p.numel() for p in deploy(load_model(tmp_path / n)).parameters()) for n in ("small", "dense")
    )
    assert small <= whole / 2
    with refuses("condition=1: only cstar"):
        compress_run(dense, method, condition=1.0)
