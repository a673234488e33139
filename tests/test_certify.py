"""Certificates: known radii and constants of layers, refusals by name, and no certified sample
broken."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ironrank.certificates import certify
from ironrank.certificates.layers import MODULES, SLOPES
from ironrank.certificates.pooling import adaptive_average_pool, average_pool, max_pool
from ironrank.certificates.walk import Walk
from ironrank.data import Images
from ironrank.errors import IronrankError


def grey(values: list[int], y: list[int], side: int = 2) -> Images:
    x = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()
    return Images(x, torch.tensor(y))


def noise(shape: tuple[int, ...], n: int = 8, classes: int = 10, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    return Images(x, torch.randint(0, classes, (n,), generator=generator))


# ---- known answers


def plane() -> nn.Module:
    """Logits +-(sum - 2) of 2 x 2 pixels: the plane is at distance ``|sum - 2| / 2``."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        net[1].bias.copy_(torch.tensor([2.0, -2.0]))
    return net


def test_the_radius_of_a_linear_net_is_the_distance_to_its_plane() -> None:
    found = certify(plane(), grey([255, 204, 0, 255], [1, 1, 0, 0]), radii=(0.5, 0.7, 1.1))
    assert found["radius"] == pytest.approx([1.0, 0.6, 1.0, 0.0], abs=1e-4)
    assert all(r <= exact + 1e-7 for r, exact in zip(found["radius"], (1.0, 0.6, 1.0, 0.0), strict=True))
    assert found["certified"] == [0.75, 0.5, 0.0]
    assert found["clean"] == 0.75
    assert found["verdict"] == "certified"
    assert found["lipschitz"]["body"] == 1.0
    assert found["lipschitz"]["global"] == pytest.approx(math.sqrt(8), rel=1e-3)
    assert [
        low < share < high or share in (0, 1)
        for (low, high), share in zip(found["interval"], found["certified"], strict=True)
    ]


def test_pairs_of_classes_are_never_worse_than_the_global_constant() -> None:
    torch.manual_seed(0)
    net, images = (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5)),
        noise((1, 4, 4), 30, 5),
    )
    better = certify(net, images)
    plain = certify(
        nn.Sequential(net, nn.ReLU6(), nn.Identity()), images
    )  # logits beyond the last layer: no rows
    assert plain["lipschitz"]["body"] is None
    spread = [a - b for a, b in zip(better["radius"], plain["radius"], strict=True)]
    assert min(spread) > -1e-6


def test_normalization_counts_in_pixel_units() -> None:
    class Standardize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 0.5) / 0.25

    net = nn.Sequential(Standardize(), plane())
    with torch.no_grad():
        net[1][1].bias.zero_()
    assert certify(net, grey([255], [1]))["radius"] == pytest.approx([1.0], abs=1e-4)


@pytest.mark.parametrize(("k", "stride", "expected"), [(2, 2, 1.0), (3, 1, 3.0), (3, 2, 2.0), (2, 3, 1.0)])
def test_max_pooling_counts_the_windows_of_a_pixel(k: int, stride: int, expected: float) -> None:
    x = torch.zeros(1, 1, 12, 12)
    x[0, 0, 6, 6] = 1.0  # in `expected^2` windows
    assert F.max_pool2d(x, k, stride).norm().item() == pytest.approx(expected)
    assert max_pool((1, 1, 12, 12), k, stride).gain == pytest.approx(expected)


def test_average_pooling_is_exact() -> None:
    assert average_pool((1, 3, 8, 8), 2).gain == pytest.approx(1 / 2, rel=1e-5)
    assert adaptive_average_pool((1, 3, 5, 5), 1).gain == pytest.approx(1 / 5, rel=1e-5)
    for options in (
        {"stride": 1},
        {"stride": 2, "padding": 1},
        {"padding": 1, "count_include_pad": False, "ceil_mode": True},
    ):
        units = torch.eye(49, dtype=torch.float64).view(49, 1, 7, 7)
        norm = torch.linalg.matrix_norm(F.avg_pool2d(units, 3, **options).flatten(1), 2).item()
        assert norm <= average_pool((1, 1, 7, 7), 3, **options).gain <= norm * 1.001


@pytest.mark.parametrize("name", SLOPES)
def test_no_activation_is_steeper_than_its_slope(name: str) -> None:
    function = {"leakyrelu": F.leaky_relu, "clamp": lambda x: x.clamp(-1, 1), "abs": torch.abs}.get(name)
    function = function or getattr(F, name)
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    slope = (function(x).diff() / x.diff()).abs().max().item()
    assert slope <= SLOPES[name]() * (1 + 1e-6)
    assert SLOPES[name]() <= slope * 1.01


# ---- what is refused, by name


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x.flatten(1)))


def batched_norm() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), plane())


def relu(x: Tensor) -> Tensor:
    """Not what its name says."""
    return 9 * x


fx.wrap("relu")

REFUSED = {
    "a name that is taken": (lambda: Calls(lambda x: relu(x)), "functions of torch"),
    "unknown layer": (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(4)), "'1' .LayerNorm."),
    "unknown function": (lambda: Calls(lambda x: x.softmax(1)), "softmax"),
    "joined by a product": (lambda: Calls(lambda x: x * x), "'mul'"),
    "hidden argument": (lambda: Calls(lambda x: torch.add(x, x.relu(), alpha=9)), "'add'"),
    "broadcast": (lambda: Calls(lambda x: x + x.mean(1, keepdim=True)), "broadcast"),
    "samples mixed": (lambda: Calls(lambda x: x - x.mean(0)), "samples|batch dimension"),
    "transposed": (lambda: Calls(lambda x: x.transpose(0, 1)), "batch dimension"),
    "in place": (lambda: Calls(lambda x: F.relu_(x) + x), "in place"),
    "data": (lambda: Calls(lambda x: 9 * x.data), "getattr"),
    "branches on data": (lambda: Calls(lambda x: x if x.sum() > 0 else -x), "cannot be traced"),
    "random": (lambda: Calls(lambda x: x + torch.randn(4)), "random"),
    "rounded": (lambda: Calls(lambda x: x.round()), "round"),
    "no statistics": (batched_norm, "running statistics"),
    "not logits": (lambda: nn.Conv2d(1, 2, 1), "logits"),
    "dropout on": (lambda: Calls(lambda x: F.dropout(x, 0.5)), "dropout"),
    "steep softplus": (lambda: nn.Sequential(plane(), nn.Softplus(threshold=1)), "softplus"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_refused_by_name(name: str) -> None:
    torch.manual_seed(0)
    make, word = REFUSED[name]
    with pytest.raises(IronrankError, match=word):
        certify(
            make(), noise((1, 2, 2), 2, 2)
        )  # two images and two probes of each: as many as numbers in one


def test_hooks_and_lower_precision_are_refused() -> None:
    net = plane()
    handle = net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(IronrankError, match="hooks"):
        certify(net, grey([255], [1]))
    handle.remove()
    assert certify(net, grey([255], [1]))["radius"][0] > 0.99
    with torch.autocast("cpu"), pytest.raises(IronrankError, match="precision"):
        certify(net, grey([251], [1]))


def test_a_layer_whose_class_is_unknown_is_named_even_if_it_derives_from_one() -> None:
    class Steeper(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 5 * super().forward(x)

    found = Walk(nn.Sequential(plane(), Steeper()))
    with torch.no_grad():
        found(torch.rand(2, 1, 2, 2).double())
    assert found.lipschitz == pytest.approx(5 * math.sqrt(8), rel=1e-3)  # looked into, not taken for a ReLU
    assert Steeper not in MODULES


@pytest.mark.parametrize("radii", [(), (0.0,), (-1.0,), (math.nan,)])
def test_radii_are_checked(radii: tuple[float, ...]) -> None:
    with pytest.raises(IronrankError, match="radii"):
        certify(plane(), grey([255], [1]), radii)


# ---- rounding


def test_a_margin_within_the_rounding_of_float32_certifies_nothing() -> None:
    net = plane()
    with torch.no_grad():
        net[1].bias += 1e8  # logits are multiples of 8 now: what differs below is lost
    found = certify(net, grey([255, 0], [1, 0]))
    assert found["radius"] == [0.0, 0.0]
    assert found["verdict"] == "vacuous"
    assert found["rounding"]["logits"] > 4


def test_the_model_is_left_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    certify(net, noise((1, 2, 2), 3, 2))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
