"""Attacks without a gradient: the squares of the square attack, the draws of noise, and what they find."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironrank.attacks import PGD, Noise, Square
from ironrank.attacks.square import HALVED, _Draw, bump, inside, moved_mass, share, window
from weights import mnist_net, pixels_and_classes

EPS = {"Linf": 0.1, "L2": 0.8}
norms = pytest.mark.parametrize("norm", EPS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weight):
    return lambda x: x.flatten(1) @ weight.T


def recording(model, points):
    def recorded(x):
        points.append(x.detach().clone())
        return model(x)

    return recorded


# ---- square


@norms
def test_square_comes_near_the_optimum_of_a_linear_model(norm):
    torch.manual_seed(0)
    weight = torch.randn(2, 2 * 4 * 4)
    x = torch.full((5, 2, 4, 4), 0.5)
    y = torch.zeros(5, dtype=torch.int64)
    weight[0] += 10  # never fooled, so that no sample stops
    rise, eps = weight[1] - weight[0], EPS[norm]
    best = eps * (rise.abs().sum() if norm == "Linf" else rise.norm())
    point = Square(norm=norm, eps=eps, queries=500)(linear(weight), x, y, generator=seeded())
    gain = (point - x).flatten(1) @ rise
    assert (gain <= best * (1 + 1e-5)).all()
    assert (gain > (0.98 if norm == "Linf" else 0.45) * best).all()


@norms
def test_a_try_changes_one_window_of_the_best_image_so_far(norm):
    points, x = [], torch.full((1, 3, 9, 9), 0.5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(243, 3))
    net[1].bias.data[0] = 50  # not to be fooled
    attack = Square(norm=norm, eps=EPS[norm], queries=60, p=0.2)
    attack(recording(net, points), x, torch.tensor([0]), generator=seeded())
    assert len(points) == 2 + 60  # at x, at the start, and each try
    margins = [float((net(point)[0, 1:].max() - net(point)[0, 0]).detach()) for point in points]
    best, accepted = 1, 0
    for k in range(60):
        high, wide = window(share(0.2, k / 60), x, smallest=1 if norm == "Linf" else 3)
        changed = (points[2 + k] - points[best]).abs().amax((0, 1)) > 1e-6
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        if norm == "Linf" and len(rows):
            assert rows.max() - rows.min() < high and columns.max() - columns.min() < wide
        if norm == "L2":
            assert changed.sum() <= 2 * high * wide
        if margins[2 + k] > margins[best]:
            best, accepted = 2 + k, accepted + 1
    assert accepted > 5
    for point in points[1:]:
        assert (point - x).abs().max() <= 0.5
        if norm == "Linf":
            torch.testing.assert_close((point - x).abs(), torch.full_like(x, 0.1))


def test_the_window_shrinks_as_published():
    sides = [
        window(share(0.8, k / 10_000), torch.zeros(1, 1, 28, 28))[0]
        for k in (0, 11, 51, 201, 501, 1001, 8001)
    ]
    assert sides == [25, 18, 13, 9, 6, 4, 1]
    assert share(0.8, 1.0) == 0.8 / 2 ** len(HALVED)
    assert window(0.01, torch.zeros(1, 1, 28, 28), smallest=3) == (3, 3)
    assert window(0.8, torch.zeros(1, 3, 4, 32)) == (4, 26)


def test_windows_reach_every_pixel():
    draw, x = _Draw(torch.zeros(4000, 1, 5, 6), seeded()), torch.zeros(4000, 1, 5, 6)
    seen = inside(draw.place(2, 3), 2, 3, x)
    assert (seen.sum((1, 2, 3)) == 6).all()
    share_of = seen.double().mean((0, 1))
    by_row, by_column = torch.tensor([1, 2, 2, 2, 1]) / 4, torch.tensor([1, 2, 3, 3, 2, 1]) / 4
    torch.testing.assert_close(share_of, (by_row[:, None] * by_column).double(), atol=0.05, rtol=0)


def test_the_pattern_is_a_hill_beside_a_valley():
    pattern = bump(5, 5, torch.zeros(1, dtype=torch.float64))
    assert pattern.norm().item() == pytest.approx(1)
    assert (pattern[:2] > 0).all() and (pattern[2:] < 0).all()
    # middle of the valley, rows 2 to 4: 1 + 1/4 + 1/9; a step beside it: 1/4 + 1/9; two beside: 1/9
    ratios = pattern[3] / pattern[3, 2]
    whole = 1 + 1 / 4 + 1 / 9
    assert ratios.tolist() == pytest.approx(
        [1 / 9 / whole, (1 / 4 + 1 / 9) / whole, 1, (1 / 4 + 1 / 9) / whole, 1 / 9 / whole]
    )


def test_what_two_windows_hold_moves_into_the_first():
    torch.manual_seed(0)
    change = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    change = 0.6 * change / change.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    first, second = torch.tensor([[0, 0], [1, 2], [5, 5]]), torch.tensor([[4, 4], [2, 3], [0, 1]])
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1).expand(3, 2, 1, 1)
    after = moved_mass(change, 1.0, bump(3, 3, change), sign, first, second)
    for k in range(3):
        (a, b), (c, d) = first[k], second[k]
        one, two = torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)
        one[a : a + 3, b : b + 3], two[c : c + 3, d : d + 3] = True, True
        assert torch.equal(after[k][:, ~(one | two)], change[k][:, ~(one | two)])
        assert (after[k][:, two & ~one] == 0).all()
        for channel in range(2):
            held = change[k, channel][one | two].square().sum()
            pattern = (
                sign[k, channel].item() * bump(3, 3, change).flatten()
                + change[k, channel][one] / change[k, channel][one].norm()
            )
            expected = pattern / pattern.norm() * (held + (1 - 0.36) / 2).sqrt()
            torch.testing.assert_close(after[k, channel][one], expected)
    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_square_takes_samples_that_are_no_images():
    torch.manual_seed(0)
    weight = torch.randn(2, 20)
    x, y = torch.full((4, 20), 0.5), torch.zeros(4, dtype=torch.int64)
    weight[0] += 5
    for norm in EPS:
        point = Square(norm=norm, eps=EPS[norm], queries=300)(linear(weight), x, y, generator=seeded())
        margin = lambda x: linear(weight)(x) @ torch.tensor([-1.0, 1.0])  # noqa: E731
        assert (margin(point) > margin(x) + 1).all() and point.shape == x.shape


# ---- noise


@norms
def test_noise_is_in_the_ball_and_half_of_it_on_its_surface(norm):
    points, x = [], torch.full((1, 1, 6, 6), 0.5)
    sure = lambda x: torch.stack((x.sum((1, 2, 3)) * 0 + 9, x.sum((1, 2, 3)) * 0), 1)  # noqa: E731
    Noise(norm=norm, eps=0.2, draws=200)(recording(sure, points), x, torch.tensor([0]), generator=seeded())
    changes = (torch.cat(points[1:]) - x).flatten(1)
    assert len(changes) == 200
    size = changes.norm(p=torch.inf if norm == "Linf" else 2, dim=1)
    assert size.max() <= 0.2 + 1e-6 and (size > 0.2 - 1e-6).sum() >= 100
    surface, within = changes[1::2], changes[::2]
    if norm == "Linf":
        torch.testing.assert_close(surface.abs(), torch.full_like(surface, 0.2))
        assert within.abs().mean().item() == pytest.approx(0.1, abs=0.01)
    else:
        assert ((within.norm(dim=1) / 0.2) ** 36).mean().item() == pytest.approx(0.5, abs=0.1)
    assert changes.mean().abs() < 0.01


def test_noise_keeps_the_worst_of_all_draws_whatever_the_number_of_neighbours():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 3)).double()
    x = torch.rand(7, 8, dtype=torch.float64)
    y = net(x).argmax(1)
    attack, points = Noise(eps=0.01, draws=130), []  # too small to fool
    whole = attack(recording(net, points), x, y, generator=seeded())
    tried = torch.cat([batch.view(-1, 7, 8) for batch in points])
    losses = torch.stack([nn.functional.cross_entropy(net(point), y, reduction="none") for point in tried])
    assert tried.shape == (131, 7, 8)
    torch.testing.assert_close(whole, tried[losses.argmax(0), torch.arange(7)])
    for k in range(7):
        torch.testing.assert_close(attack(net, x[k : k + 1], y[k : k + 1], generator=seeded())[0], whole[k])


def test_noise_breaks_what_is_on_the_brink_and_stops_there():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return torch.stack((x[:, 0], torch.full_like(x[:, 0], 0.5)), 1)

    x, y = torch.tensor([[0.51], [0.9]]), torch.tensor([0, 0])
    point = Noise(eps=0.1, draws=1000)(model, x, y, generator=seeded())
    assert model(point).argmax(1).tolist() == [1, 0]
    assert sum(sizes[:-1]) < 1700, "the first sample leaves early"


@pytest.mark.shared
def test_attacks_without_a_gradient_are_weaker_than_pgd_on_an_honest_net():
    net, (x, y) = mnist_net(), pixels_and_classes(50)
    left = {}
    for attack in (
        Noise(eps=0.33, draws=100),
        Square(eps=0.33, queries=150),
        PGD(eps=0.33, steps=30, stop=True),
    ):
        left[attack.name] = int((net(attack(net, x, y, generator=seeded())).argmax(1) == y).sum())
    assert left["pgd"] < left["square"] <= left["noise"]
