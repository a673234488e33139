"""Minimum norm: the distance to the boundary where it is known, and the curve that follows from it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironrank.attacks import FMN, PGD
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.judge import curve_of, minimum_norm, robust_accuracy
from ironrank.judge.accuracy import correct
from weights import mnist_images, mnist_net

norms = pytest.mark.parametrize("norm", ["Linf", "L2"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(classes=4, n=20):
    """A linear model, and images in the middle of the box whose distance to the boundary has a formula."""
    torch.manual_seed(0)
    weight, bias = (
        torch.randn(classes, 30, dtype=torch.float64),
        0.2 * torch.randn(classes, dtype=torch.float64),
    )
    model = lambda x: x @ weight.T + bias  # noqa: E731
    x = 0.4 + 0.2 * torch.rand(n, 30, dtype=torch.float64)
    y = model(x).argmax(1)
    return model, weight, x, y


def true_distance(model, weight, x, y, norm):
    logits = model(x)
    lead = logits.gather(1, y[:, None]) - logits
    slope = (weight[y][:, None] - weight[None]).norm(p=1 if norm == "Linf" else 2, dim=2)
    return (lead / slope).nan_to_num(nan=torch.inf).amin(1)


@norms
def test_distance_to_the_boundary_of_a_linear_model(norm):
    model, weight, x, y = problem()
    true = true_distance(model, weight, x, y, norm)
    found = FMN(norm=norm, steps=200, halvings=8).distances(model, x, y)
    assert (found >= true * (1 - 1e-9)).all(), "it is an upper bound"
    assert (found <= true * 1.02).all()
    few = FMN(norm=norm, steps=30).distances(model, x, y)
    assert (few >= true * (1 - 1e-9)).all() and (few <= 1.25 * true).all()


@norms
def test_every_distance_belongs_to_a_point_that_fools(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)).double()
    x = torch.rand(40, 20, dtype=torch.float64)
    y = net(x).argmax(1)
    attack = FMN(norm=norm, steps=60)
    found = attack.distances(net, x, y)
    assert found.isfinite().all() and (found > 0).all()
    for eps in found.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist():
        point = FMN(norm=norm, steps=60, eps=eps)(net, x, y)
        fooled = net(point).argmax(1) != y
        change = (point - x).norm(p=torch.inf if norm == "Linf" else 2, dim=1)
        assert change.max() <= eps * (1 + 1e-9)
        assert fooled[found < eps * 0.999].float().mean() > 0.9, "what is nearer than eps is found within eps"
        assert not (fooled & (found > 1.1 * eps)).any()


def test_wrong_already_is_distance_zero_and_unreachable_is_infinity():
    model = lambda x: torch.stack((x.sum(1), x.sum(1) * 0 + 2.5), 1)  # noqa: E731
    x, y = torch.tensor([[0.5, 0.5], [0.1, 0.1], [1.0, 1.0]]), torch.tensor([0, 1, 0])
    found = FMN(norm="Linf", steps=40).distances(model, x, y)
    assert found[0] == 0, "1 < 2.5: class 1 is named"
    assert found[1] == torch.inf, "the sum of two pixels is at most 2"
    assert FMN(steps=5).distances(model, x[:0], y[:0]).shape == (0,)


def test_a_sample_does_not_depend_on_its_neighbours():
    model, _, x, y = problem()
    whole = FMN(steps=20).distances(model, x, y)
    alone = torch.cat([FMN(steps=20).distances(model, x[k : k + 1], y[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(whole[:4], alone, rtol=0, atol=1e-12)


def test_bisection_brings_it_nearer_and_stays_right():
    model, weight, x, y = problem()
    true = true_distance(model, weight, x, y, "L2")
    rough, fine = (FMN(norm="L2", steps=15, halvings=n).distances(model, x, y) for n in (0, 10))
    assert (fine <= rough).all() and (fine < rough).any() and (fine >= true * (1 - 1e-9)).all()


def test_classes_are_needed():
    with pytest.raises(IronrankError, match="true classes"):
        FMN().maximise(lambda x: x, torch.rand(2, 3), lambda logits, _: logits.sum(1))


# ---- curve


def grey(n=30):
    """Class 1 is bright, class 0 dark, and the grey of each image is its distance."""
    y = torch.arange(n) % 2
    level = torch.where(y == 1, 140, 115) + torch.where(y == 1, 1, -1) * 3 * torch.arange(n)
    return Images(level.to(torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous(), y)


def threshold():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-0.25] * 4, [0.25] * 4]))
        net[1].bias.copy_(torch.tensor([0.5, -0.5]))
    return net


def test_one_run_gives_the_curve_that_an_attack_at_each_eps_gives():
    images, net = grey(), threshold()
    distances = minimum_norm(net, images, FMN(steps=50, halvings=8))
    level = images.x[:, 0, 0, 0].double() / 255
    torch.testing.assert_close(distances.double(), (level - 0.5).abs(), rtol=0.02, atol=1e-6)
    radii = [0.0, 0.1, 0.2, 0.3, 0.5]
    curve = curve_of(distances, correct(net, images), radii)
    assert curve == [1.0] + [robust_accuracy(net, images, PGD(eps=eps), seed=0) for eps in radii[1:]]
    assert curve == sorted(curve, reverse=True) and curve[-1] == 0


def test_the_curve_wants_one_distance_for_each_image():
    for distances, right in ((torch.ones(2), torch.ones(3)), (torch.ones(0), torch.ones(0))):
        with pytest.raises(IronrankError, match="one of each"):
            curve_of(distances, right.bool(), [0.1])


@pytest.mark.shared
def test_on_a_trained_net_the_curve_is_not_above_pgd():
    net, images = mnist_net(), mnist_images(30)
    curve = curve_of(minimum_norm(net, images, FMN(steps=40)), correct(net, images), [0.2, 0.33, 0.4])
    assert curve[0] > 0.9 and curve[2] == 0
    pgd = robust_accuracy(net, images, PGD(eps=0.33, steps=30, stop=True), seed=0)
    assert curve[1] <= pgd + 0.05
