"""Nets that ask for a bound that is too small: each is refused by name, or gets one that its own moves do not pass.

Their forwards do what a graph does not show, what torch does silently, or what float32 does at its limits.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as modules

from ironrank.certificates import certify, spectral_norm
from ironrank.certificates.layers import MODULES
from ironrank.certificates.walk import Walk
from ironrank.data import Images
from ironrank.errors import IronrankError

SIDE = 4  # images are 1 x 4 x 4


class Net(nn.Module):
    """A function of 16 numbers that a linear layer makes of the pixels."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(SIDE**2, SIDE**2)
        self.layers = nn.ModuleList(layers)
        self.register_buffer("limits", torch.full((SIDE**2, 3), -9.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.fc(x.flatten(1)))


def after(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


@fx.wrap
def relu(x: Tensor) -> Tensor:
    return 50 * x


@fx.wrap
def hidden(arguments: dict[str, Tensor]) -> Tensor:
    return 50 * arguments["x"]


def changed(value: Tensor, other: Tensor) -> Tensor:
    """A value after 50 times another name of the same memory was taken in place."""
    other.mul_(50.0)
    return value


LIBRARY = torch.library.Library("ironrank_test", "DEF")  # lives as long as its operator
LIBRARY.define("relu(Tensor x) -> Tensor")
LIBRARY.impl("relu", lambda x: 50 * x, "CompositeExplicitAutograd")


def added(value: Tensor, other: Tensor) -> Tensor:
    """The same by ``+=``."""
    value += 50 * value.relu()
    return value + other


class StaysOn(nn.Sequential):
    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self[2].training = True
        return self


REFUSED = {
    "in place on a view": (lambda: Net(lambda net, h: changed(h, h.view(-1, 2, 8))), "in place"),
    "in place on a slice": (lambda: Net(lambda net, h: changed(h, h[:, :2])), "in place"),
    "in place behind dropout": (lambda: Net(lambda net, h: changed(h, F.dropout(h, 0.5, False))), "in place"),
    "in place on a view of a view": (lambda: Net(lambda net, h: changed(h, h.view(-1, 2, 8)[:, 1])), "in place"),
    "another name after +=": (lambda: Net(lambda net, h: added(h, h)), "in place"),
    "a view after +=": (lambda: Net(lambda net, h: added(h, h.view(-1, 16))), "in place"),
    "in place on the image": (lambda: Image(), "in place"),
    "the old form of add": (lambda: Net(lambda net, h: torch.add(h, 50, h)), "more arguments"),
    "of the same name": (lambda: Net(lambda net, h: relu(h)), "'relu'.*functions of torch"),
    "an operator of the same name": (lambda: Net(lambda net, h: torch.ops.ironrank_test.relu(h)), "functions of torch"),
    "a value in a dictionary": (lambda: Net(lambda net, h: h + hidden({"x": h})), "'hidden'"),
    "a view of bits": (lambda: Net(lambda net, h: h.view(torch.int32).float()), "'view'"),
    "pooling without a batch": (lambda: nn.Sequential(nn.Flatten(1, 2), nn.MaxPool2d(3, 1), nn.Flatten()), "samples x"),
    "pooling of a matrix": (lambda: after(nn.MaxPool1d(3, 1)), "samples x channels x 1"),
    "clamp that repeats": (lambda: Net(lambda net, h: h.mean(1, True).clamp(net.limits[0])), "'clamp'"),
    "CELU that grows": (lambda: after(nn.CELU(-1.0)), "celu"),
    "a slope that is none": (lambda: after(nn.LeakyReLU(math.nan)), "leakyrelu"),
    "a weight that is none": (lambda: after(nn.PReLU(init=math.nan)), "'1.weight' is not finite"),
    "half precision": (lambda: after(nn.Linear(16, 4)).half(), "float16"),
    "double precision": (lambda: after(nn.Linear(16, 4)).double(), "float64"),
    "dropout that stays on": (lambda: StaysOn(nn.Flatten(), nn.Linear(16, 4), nn.Dropout(0.5)), "dropout"),
    "scripted": (lambda: after(torch.jit.script(nn.Linear(16, 4))), "no layer"),
    "parametrized": (lambda: after(nn.utils.parametrizations.weight_norm(nn.Linear(16, 4))), "ParametrizedLinear"),
    "a weight vector": (lambda: Net(lambda net, h: F.linear(h, net.fc.bias).unsqueeze(1)), "linear layer"),
}  # fmt: skip


class Image(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return changed(x, x.view(-1, 1, SIDE, SIDE)).flatten(1)


@pytest.mark.filterwarnings("ignore:This overload of add:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_does_not_show_is_refused(name: str) -> None:
    torch.manual_seed(0)
    make, word = REFUSED[name]
    with pytest.raises(IronrankError, match=word):
        walk = Walk(make().eval())
        walk(torch.rand(3, 1, SIDE, SIDE).double())


# ---- traced as a user calls it


class Default(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor, features: Tensor | None = None, scale: float = 7.0) -> Tensor:
        x = self.fc(x.flatten(1)) * scale
        return 50 * x if features is None else x


class Called(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        return 50 * super().__call__(x)


def replaced() -> nn.Module:
    net = after(nn.Linear(16, 4))
    old = net.forward
    net.forward = lambda x: 50 * old(x)  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("make", [Default, lambda: Called(nn.Flatten(), nn.Linear(16, 4)), replaced])
def test_defaults_and_changed_forwards_count(make) -> None:
    torch.manual_seed(0)
    net = make().eval()
    walk = Walk(net)
    walk(torch.rand(2, 1, SIDE, SIDE).double())
    with torch.no_grad():
        columns = net(torch.eye(16).view(16, 1, SIDE, SIDE)) - net(torch.zeros(1, 1, SIDE, SIDE))
    assert torch.linalg.matrix_norm(columns.double(), 2).item() * (1 - 1e-6) <= walk.lipschitz
    assert walk.rows()[0]["name"] in ("fc", "1")  # as the net itself names it


def test_hooks_on_all_modules_are_refused() -> None:
    handle = modules.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        with pytest.raises(IronrankError, match="hooks on all modules"):
            Walk(after(nn.Linear(16, 4)))
    finally:
        handle.remove()


class Shortcut(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        size = x.size(1)
        size //= 2
        out = super().forward(x)
        out += x
        out *= 2
        return out[:, :size]


def test_in_place_on_memory_that_nobody_reads_again_is_allowed() -> None:
    torch.manual_seed(0)
    net = after(
        Shortcut(16, 16),
        nn.Linear(8, 4),
        nn.Dropout(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.1, inplace=True),
    ).eval()
    walk = Walk(net)
    for _ in range(2):  # also on a second walk
        walk(torch.rand(2, 1, SIDE, SIDE).double())
    assert math.isfinite(walk.lipschitz)


# ---- what the net computes on other images, alone, and in its own float32


def white(n: int = 1) -> Images:
    return Images(torch.full((n, 1, 2, 2), 255, dtype=torch.uint8), torch.ones(n, dtype=torch.int64))


class Autocast(nn.Module):
    """Exact at a white image in any precision, so that only other images tell that it computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x.flatten(1)).float()


class BatchSize(Autocast):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) * x.size(0)


class Hidden(Autocast):
    """In bfloat16, and off by less than float32 may be."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e5


class Differs(Autocast):
    """The same as its trace, at white images and near them."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy) or x.amin() > 0.5:
            return self.fc(x.flatten(1))
        return -self.fc(x.flatten(1))


class Barely(Autocast):
    """Random by less than the rounding of float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) + 1e-9 * torch.rand(2)


@pytest.mark.parametrize(
    ("make", "word"),
    [(Autocast, "other logits"), (Hidden, "bfloat16"), (BatchSize, "other logits"),
     (Differs, "other logits"), (Barely, "random")],
)  # fmt: skip
def test_what_shows_only_on_other_images_or_alone_is_found(make, word: str) -> None:
    with pytest.raises(IronrankError, match=word):
        certify(make(), white())


def test_constants_are_those_that_float32_computes() -> None:
    """0.3 + 1e8 - 1e8 is 0 in float32: a layer is off that float64 has on."""

    class Cancels(Autocast):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) * (1 + ((self.shift + 1e8) - 1e8))

    assert certify(Cancels(), white())["lipschitz"]["global"] == pytest.approx(math.sqrt(8), rel=1e-3)


def test_no_radius_reaches_to_where_float32_overflows() -> None:
    """Logits -+(sum - 9) by way of 2e38 times the pixels: those of twice the image are infinite."""
    net = after(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(4) * 2e38)
        net[2].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]) / 2e38)
        net[2].bias.copy_(torch.tensor([9.0, -9.0]))
        assert not torch.isfinite(net(torch.full((1, 1, 2, 2), 2.0))).all()
    images = Images(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    assert certify(net, images)["radius"][0] <= 0.7  # one pixel at 1.7
    with torch.no_grad():
        net[1].weight /= 1e10
        net[2].weight *= 1e10
    assert certify(net, images)["radius"][0] == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize(
    "layer",
    [nn.Hardtanh(-0.3, 0.7), nn.ConstantPad1d(1, 0.1), nn.ELU(1e6), nn.CELU(1e6), nn.LeakyReLU(7.3), nn.GELU("tanh"),
     nn.SiLU(), nn.Mish(), nn.Softplus(5.0), nn.SELU(), nn.Hardswish(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid()],
    ids=lambda layer: repr(layer),
)  # fmt: skip
def test_layers_in_float32_are_within_their_own_rounding(layer: nn.Module) -> None:
    x = torch.randn(1, 999, generator=torch.Generator().manual_seed(0))
    x[:, ::2] = -x[:, ::2].abs()
    for scale in (1e-8, 1e-4, 0.1, 1.0, 10.0, 80.0, 1e4, 1e30):
        for y in (scale * x, scale * x[:, :1].repeat(1, 999), scale * x[:, 1:2].repeat(1, 999)):
            off = (layer(y).double() - layer(y.double())).norm().item()
            local = MODULES[type(layer)](layer, tuple(y.shape))
            assert off <= local.noise * y.double().norm().item() + local.floor


# ---- norms at the limits of float64


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-90, 1e90, 1e150, 1e300])
@pytest.mark.parametrize("n", [20, 260])
def test_norms_of_any_size(scale: float, n: int) -> None:
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = torch.linalg.matrix_norm(A, 2).item() * scale
    assert norm <= spectral_norm(A * scale) * (1 + 1e-12) <= norm * 1.001
    assert spectral_norm(A * scale, known=2 * norm) == pytest.approx(2 * norm, rel=1e-3)
