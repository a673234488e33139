"""Randomized smoothing: exact binomial limits, and radii of nets whose smoothed form is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ironrank.certificates.binomial import log_upper_tail, lower_limit
from ironrank.certificates.smoothing import smooth
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.surgery import factorize


def exact_tail(k: int, n: int, p: float) -> float:
    """The reference twin: whole numbers for the coefficients, one term after the other."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 5, 0.3), (5, 5, 0.3), (3, 7, 0.5), (60, 100, 0.45), (990, 1000, 0.97)]
)
def test_the_tail_of_a_binomial(k: int, n: int, p: float) -> None:
    assert math.exp(log_upper_tail(k, n, p)) == pytest.approx(exact_tail(k, n, p), rel=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "alpha"), [(1, 1, 0.05), (9, 10, 0.05), (60, 100, 0.001), (995, 1000, 0.001)]
)
def test_the_lower_limit_solves_its_equation(k: int, n: int, alpha: float) -> None:
    p = lower_limit(k, n, alpha)
    assert alpha * (1 - 1e-4) < exact_tail(k, n, p) <= alpha
    assert exact_tail(k, n, p + 1e-6) > alpha * (1 - 1e-5)


def test_known_limits() -> None:
    assert lower_limit(0, 10, 0.05) == 0.0
    assert lower_limit(10_000, 10_000, 0.001) == pytest.approx(0.001 ** (1 / 10_000), abs=1e-8)
    # the beta quantiles I^-1(0.05; 9, 2) and I^-1(0.025; 5, 6), as printed in tables of the binomial distribution
    assert lower_limit(9, 10, 0.05) == pytest.approx(0.6058, abs=5e-5)
    assert lower_limit(5, 10, 0.025) == pytest.approx(0.1871, abs=5e-5)


def test_limits_grow_with_the_count_and_with_alpha() -> None:
    limits = [lower_limit(k, 50, 0.01) for k in range(51)]
    assert limits == sorted(limits)
    assert all(limit < k / 50 for k, limit in enumerate(limits) if k)
    assert lower_limit(40, 50, 0.001) < lower_limit(40, 50, 0.01)


def test_the_limit_covers_as_often_as_it_says() -> None:
    p, n, alpha = 0.8, 60, 0.1
    draws = torch.rand(4000, n, generator=torch.Generator().manual_seed(0)) < p
    above = sum(lower_limit(int(k), n, alpha) > p for k in draws.sum(1))
    assert above / 4000 <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 4000)


# ---- nets


def plane() -> nn.Module:
    """Class 1 where the sum of four pixels is above 2; smoothing keeps the plane, at distance ``|sum - 2| / 2``."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        net[1].bias.copy_(torch.tensor([2.0, -2.0]))
    return net


def grey(values: list[int], y: list[int]) -> Images:
    x = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Images(x, torch.tensor(y))


def test_the_radius_of_a_linear_net_is_below_its_distance_and_near_it() -> None:
    images = grey([179, 204, 51], [1, 1, 0])  # distances 0.404, 0.6, 0.6
    found = smooth(plane(), images, sigma=0.4, radii=(0.3, 0.5, 0.7), n=4000)
    for radius, distance in zip(found["radius"], (0.404, 0.6, 0.6), strict=True):
        assert 0.85 * distance < radius < distance
    assert found["certified"] == pytest.approx([1.0, 2 / 3, 0.0])
    assert found["abstained"] == 0.0
    assert found["largest"] == pytest.approx(0.4 * 2.925, rel=1e-2)  # Phi^-1(0.001^(1/4000))


def test_what_is_wrong_counts_for_nothing_and_what_is_open_abstains() -> None:
    images = grey([255, 128], [0, 1])  # wrong; almost on the plane
    found = smooth(plane(), images, sigma=0.5, radii=(0.01,))
    assert found["radius"] == [0.0, 0.0]
    assert found["abstained"] == 0.5
    assert found["clean"] == 0.0


def test_images_do_not_depend_on_their_neighbours_and_the_seed_is_all_that_counts() -> None:
    images = grey([150, 160, 170], [1, 1, 1])
    torch.manual_seed(1)
    whole = smooth(plane(), images, sigma=0.5, n=300, seed=7)
    torch.manual_seed(2)
    again = smooth(plane(), images, sigma=0.5, n=300, seed=7)
    first = smooth(plane(), images.first(2), sigma=0.5, n=300, seed=7)
    assert whole["radius"] == again["radius"]
    assert whole["radius"][:2] == first["radius"]
    assert whole["radius"] != smooth(plane(), images, sigma=0.5, n=300, seed=8)["radius"]


def test_factored_nets_and_modes_are_left_alone() -> None:
    net = factorize(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9)), ranks={"1": 2}).train()
    smooth(net, grey([10], [0]), sigma=0.1, n=20)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0.0}, {"sigma": math.inf}, {"n": 0}, {"n0": 0}, {"alpha": 0.0}, {"alpha": 1.0}]
)
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(IronrankError, match="allowed"):
        smooth(plane(), grey([255], [1]), **{"sigma": 0.5, **wrong})
