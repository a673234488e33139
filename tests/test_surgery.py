"""Surgery: any module in place, and a reason for every layer that stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cases import LAYERS, small_batch, small_net
from ironrank.data import DataSpec
from ironrank.errors import IronrankError
from ironrank.layers import Factored, FactoredConv2d, FactoredLinear
from ironrank.models import MODELS
from ironrank.surgery import deploy, factored_layers, factorize, plan, weighted_layers

BUILT = [name for name in MODELS if name != "given"]  # the user's own module has no builder
SPEC = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Residual(nn.Module):
    """A block with two paths, a list, a dictionary and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2)]
        )
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 5)})

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return torch.cat([head(x.mean((2, 3))) for head in self.heads.values()], 1)


def same(a, b, tolerance=1e-4):
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()))


def reasons(model, **options) -> dict[str, str]:
    return {row.name: row.reason for row in plan(model, **options).rows}


# ---- the function stays


@torch.no_grad()
@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("name", BUILT)
def test_every_model_keeps_its_function_at_full_rank_and_when_deployed(name, core):
    torch.manual_seed(0)
    net = MODELS[name](width=0.125).build(SPEC).eval()
    x = torch.rand(2, 3, 32, 32)
    before, layers = net(x), len(weighted_layers(net))
    assert factorize(net, core=core) is net
    assert len(factored_layers(net)) == layers and same(net(x), before)
    plain = deploy(net)
    assert same(plain(x), before) and not factored_layers(plain) and factored_layers(net)


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.3, 0.6, 1.0])
def test_a_residual_net_is_changed_in_place_and_deployed_as_a_copy(keep):
    torch.manual_seed(0)
    net, x = Residual(), torch.randn(2, 2, 5, 5)
    before = net(x)
    factorize(net, keep)
    assert [name for name, _ in factored_layers(net)] == [
        "stem",
        "blocks.0.0",
        "blocks.1.0",
        "heads.a",
        "heads.b",
    ]
    assert same(net(x), before) == (keep == 1.0)
    plain = deploy(net)
    assert same(plain(x), net(x), 1e-5) and type(plain) is Residual
    for p in plain.parameters():
        p.zero_()
    assert not same(plain(x), net(x)), "the copy shares nothing"


def test_deploy_takes_the_smaller_form_of_each_layer():
    plain = deploy(factorize(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), ranks={"0": 3, "1": 4}))
    assert [type(child) for child in plain] == [nn.Sequential, nn.Linear]
    assert isinstance(deploy(FactoredLinear(8, 8, 2)), nn.Sequential)


# DEFECT surgery.py, deploy: a factored layer that stands in two places is replaced in the first only.
def test_deploy_replaces_a_shared_layer_everywhere():
    layer = FactoredLinear(6, 6, 2)
    plain = deploy(nn.Sequential(layer, nn.ReLU(), layer))
    assert not [m for m in plain.modules() if isinstance(m, Factored)]
    assert plain[0] is plain[2]


@pytest.mark.parametrize("name", LAYERS)
def test_each_dense_layer_is_found_with_the_right_full_rank(name):
    case = LAYERS[name]
    dense = case.make_dense()
    (row,) = plan(nn.Sequential(dense), form=case.form).rows
    n, c, size = *dense.weight.shape[:2], dense.weight[0, 0].numel()
    full = {"channel": min(n, c * size), "tucker2": (min(n, c * size), min(c, n * size))}
    if case.form == "spatial":
        full["spatial"] = min(n * dense.kernel_size[1], c * dense.kernel_size[0])
    assert (row.full_rank, row.rank, row.reason, row.kind) == (full[case.form],) * 2 + (
        "",
        type(dense).__name__,
    )
    model = factorize(nn.Sequential(dense), form=case.form)
    assert type(model[0]) is case.kind and model[0].form == row.form == case.form


# ---- which layers, at which rank


def test_layers_are_chosen_by_type_and_by_pattern():
    def chosen(**options):
        return list(plan(Residual(), 0.5, **options).ranks)

    everything = ["stem", "blocks.0.0", "blocks.1.0", "heads.a", "heads.b"]
    assert chosen() == everything
    assert chosen(include=[nn.Linear]) == ["heads.a", "heads.b"]
    assert chosen(include=["blocks.*"]) == ["blocks.0.0", "blocks.1.0"]
    assert chosen(include=["blocks.*", nn.Linear], exclude=["*.b"]) == ["blocks.0.0", "blocks.1.0", "heads.a"]
    assert chosen(exclude=(p for p in ["stem", nn.Linear])) == ["blocks.0.0", "blocks.1.0"]
    assert chosen(include=[]) == []
    assert reasons(Residual(), include=["stem"], exclude=["stem"])["stem"] == "excluded"
    assert reasons(Residual(), include=["stem"])["heads.a"] == "not included"


def test_ranks_come_from_keep_patterns_and_multiples():
    net = small_net()  # full ranks 4, 10 and 3
    assert plan(net, 0.5).ranks == {"0": 2, "3": 5, "5": 2}
    assert plan(net, 0.5, round_to=4).ranks == {"0": 4, "3": 8, "5": 3}
    assert plan(net, 0.5, ranks={"3": 7}).ranks == {"0": 2, "3": 7, "5": 2}
    assert plan(net, 0.5, ranks={"*": 2, "3": 6}).ranks == {"0": 2, "3": 6, "5": 2}, "the last match wins"
    assert plan(net, 0.01).ranks == {"0": 1, "3": 1, "5": 1}
    model = factorize(net, 0.5, ranks={"3": 7}, core=False)
    assert {name: layer.rank for name, layer in factored_layers(model)} == {"0": 2, "3": 7, "5": 2}
    assert all(layer.S is None for _, layer in factored_layers(model))


def test_a_dry_run_prints_the_plan_and_changes_nothing(capsys):
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    assert factorize(net, 0.5, exclude=["5"], dry_run=True) is net
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["layer", "kind", "shape", "form", "rank", "of", "note"]
    assert lines[1] == ["0", "Conv2d", "4x1x3x3", "channel", "2", "4"]
    assert lines[3] == ["5", "Linear", "3x10", "-", "-", "3", "excluded"]
    assert not factored_layers(net) and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    factorize(net, 0.5)
    assert capsys.readouterr().out == ""


def test_mistakes_name_what_is_there():
    net = Residual()
    wrong = {
        r"no layer matches 'heads.c': did you mean 'heads.[ab]'\? allowed: blocks.0.0, .*stem": {
            "ranks": {"heads.c": 1}
        },
        r"no layer matches 'sten': did you mean 'stem'": {"exclude": ["sten"]},
        r"no layer matches 'block.\*'": {"include": ["block.*"]},
        r"keep=0: allowed is above 0": {"keep": 0},
        r"keep=1.5: allowed is above 0 and at most 1": {"keep": 1.5},
        r"round_to=0: allowed is at least 1": {"round_to": 0},
        r"rank 9 for layer 'heads.a': allowed is 1 to 3": {"ranks": {"heads.*": 9}},
        r"rank 0 for layer 'stem': allowed is 1 to 4": {"ranks": {"stem": 0}},
    }
    for words, options in wrong.items():
        with pytest.raises(IronrankError, match=words) as caught:
            factorize(net, **options)
        assert "\n" not in str(caught.value)
    assert not factored_layers(net), "nothing was changed"


def test_factored_layers_are_left_alone():
    net = factorize(small_net(), 0.5, include=["3"])
    layer = net[3]
    assert list(plan(net, 0.2).ranks) == ["0", "5"]
    assert factorize(net, 0.2)[3] is layer and layer.rank == 5


# ---- why a layer stays


def test_tied_layers_stay():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[3].bias = net[2].bias
    found = reasons(net)
    assert all(found[name].startswith("tied") for name in "123")
    twice = nn.Linear(4, 4)
    assert all(
        reason.startswith("tied") for reason in reasons(nn.Sequential(twice, nn.ReLU(), twice)).values()
    )
    factorize(net, 0.5)
    assert net[1].weight is net[0].weight


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.free, self.read = nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        return self.helper(self.free(x)) + self.inner[1](x)

    def helper(self, x):
        return F.linear(x, self.read.weight) + F.linear(x, self.inner[0].weight)


def test_layers_whose_weight_is_read_stay():
    found = reasons(Reader())
    assert found["read"] == "Reader reads its weight instead of calling it"
    assert found["free"] == "" and found["inner.0"] != ""
    assert reasons(nn.Sequential(Reader()))["0.read"] != ""
    net, x = factorize(Reader()), torch.randn(2, 4)
    assert isinstance(net.free, FactoredLinear) and net(x).shape == (2, 4)


@torch.no_grad()
@pytest.mark.parametrize("make", [
    lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0),
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
    lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8)),
])  # fmt: skip
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transformers_of_torch_still_run(make, training):
    torch.manual_seed(0)
    net, x = make().train(training), torch.randn(3, 5, 8)
    found = reasons(net)
    assert all(found[name] for name in found if "self_attn" in name or "linear" in name)
    torch.manual_seed(1)
    before = net(x)
    factorize(net)
    torch.manual_seed(1)  # dropout
    assert same(net(x), before)


@torch.no_grad()
def test_attention_and_decoders_still_run():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    before = attention(x, x, x)[0]
    assert reasons(attention)["out_proj"] != ""
    assert same(factorize(attention)(x, x, x)[0], before)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    before = decoder(x, x)
    assert same(factorize(decoder)(x, x), before) and factored_layers(decoder)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


def test_sub_classes_parametrized_grouped_and_hooked_layers_stay():
    class Doubled(nn.Module):
        def forward(self, w):
            return 2 * w

    net = nn.ModuleDict({
        "own": OwnLinear(4, 4), "parametrized": nn.Linear(4, 4), "normed": nn.Linear(4, 4),
        "grouped": nn.Conv2d(4, 4, 3, groups=2), "transposed": nn.ConvTranspose2d(4, 4, 3),
        "before": nn.Linear(4, 4), "after": nn.Linear(4, 4), "free": nn.Linear(4, 4),
    })  # fmt: skip
    parametrize.register_parametrization(net["parametrized"], "weight", Doubled())
    nn.utils.parametrizations.weight_norm(net["normed"])
    net["before"].register_forward_pre_hook(lambda *_: None)
    net["after"].register_forward_hook(lambda *_: None)
    found = reasons(net)
    assert "transposed" not in found
    assert found.pop("free") == ""
    assert "OwnLinear is a sub-class" in found["own"]
    assert found["grouped"].startswith("grouped convolution (groups=2)")
    assert found["before"] == found["after"] == "it carries hooks"
    assert all(found.values()), found
    factorize(net, 0.5)
    assert [name for name, _ in factored_layers(net)] == ["free"]


def test_layers_that_share_their_numbers_without_sharing_a_parameter_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight.data = net[0].weight.data
    found = reasons(net)
    assert found["0"].startswith("tied") and found["1"].startswith("tied") and found["2"] == ""


def test_weights_that_are_not_real_numbers_stay():
    net = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 4))
    assert reasons(net) == {"0": "its weight is complex64, which is not decomposed", "1": ""}


class Listed(nn.Module):
    """A forward that reaches its layers past the modules that torch knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.free = (nn.Linear(4, 4) for _ in range(4))
        self.order, self.last = [(self.a, "relu"), (self.b, "none")], self.c.forward

    def forward(self, x):
        for layer, _ in self.order:
            x = layer(x)
        return self.free(self.last(x))


def test_layers_that_are_held_in_plain_attributes_stay():
    found = reasons(nn.Sequential(Listed()))
    assert found.pop("0.free") == ""
    assert {name: reason.split()[0] for name, reason in found.items()} == {
        "0.a": "0.order",
        "0.b": "0.order",
        "0.c": "0.last",
    }
    net, x = Listed(), torch.randn(2, 4)
    factorize(net, 0.25)(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# DEFECT surgery.py, _untouchable: backward hooks are not looked at, so they are dropped silently.
def test_layers_with_backward_hooks_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].register_full_backward_hook(lambda *_: None)
    net[1].register_full_backward_pre_hook(lambda *_: None)
    assert set(reasons(net).values()) == {"it carries hooks"}


# DEFECT surgery.py, plan: a lazy layer has no shape yet; torch's RuntimeError reaches the user. Mend: a reason to stay.
def test_lazy_layers_stay_or_are_refused_in_one_line():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    try:
        assert reasons(net)["0"] != ""
    except IronrankError as error:
        assert "\n" not in str(error)
    with pytest.raises(IronrankError, match="layer '0' is lazy; call the model once first"):
        plan(net, budget="params=2x")


# DEFECT surgery.py, apply_plan: a frozen layer becomes trainable. Mend: hand requires_grad on, weight's and bias's.
def test_frozen_layers_stay_frozen():
    net = small_net()
    net[0].requires_grad_(False)
    net[5].bias.requires_grad_(False)
    factorize(net, 0.5)
    assert not any(p.requires_grad for p in net[0].parameters())
    assert net[5].U.requires_grad and not net[5].bias.requires_grad


# DEFECT surgery.py, factorize: of a bare layer it does nothing and says nothing; a module cannot replace itself.
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.Conv2d(3, 8, 3)])
def test_a_bare_layer_is_factorized_or_refused(make):
    try:
        assert factored_layers(factorize(make(), 0.5))
    except IronrankError as error:
        assert "\n" not in str(error)


# DEFECT layers, from_linear and from_conv: draw a fresh layer (and take the SVD of that) only to overwrite it: surgery
# costs twice the time and moves torch's random numbers. Mend: `like` on the meta device, then to_empty.
def test_surgery_draws_no_random_numbers():
    net = small_net()
    before = torch.get_rng_state()
    factorize(net, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


# DEFECT surgery.py, apply_plan: weights that are not finite end in torch's LinAlgError; the layer should be named.
def test_weights_that_are_not_finite_are_refused_by_name():
    net = small_net()
    net[3].weight.data[0, 0] = float("nan")
    with pytest.raises(IronrankError, match="'3'"):
        factorize(net, 0.5)


# ---- other people's models


def check_foreign(net: nn.Module, x: torch.Tensor) -> None:
    net.eval()
    with torch.no_grad():
        before = net(x)
        factorize(net)
        assert len(factored_layers(net)) > 5
        assert same(net(x), before, 1e-3)
        assert same(deploy(net)(x), before, 1e-3)


def test_models_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    check_foreign(models.mobilenet_v2(num_classes=5, width_mult=0.25), torch.rand(1, 3, 64, 64))
    check_foreign(models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5), torch.rand(1, 3, 32, 32))


@pytest.mark.slow
def test_a_large_model_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    check_foreign(models.resnet18(num_classes=5), torch.rand(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_models_of_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    check_foreign(timm.create_model(name, num_classes=5), torch.rand(1, 3, 160, 160))


def test_convolutions_of_three_kinds_in_one_net():
    net = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(2), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(21, 2))
    x, expected = torch.randn(2, 1, 3, 3, 3), ["FactoredConv3d", "FactoredConv1d", "FactoredLinear"]
    before = net(x)
    factorize(net)
    assert [type(layer).__name__ for _, layer in factored_layers(net)] == expected
    assert same(net(x).detach(), before.detach()) and not isinstance(net[0], FactoredConv2d)


def test_a_step_trains_what_surgery_made():
    net, (x, y) = factorize(small_net(), 0.5), small_batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
