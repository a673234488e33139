"""The spectral attack: its directions are singular vectors, its first steps stay in their span; universal changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironrank.attacks import PGD, Noise, SpectralAttack, Universal, universal
from ironrank.attacks.spectral import leading, products, within
from ironrank.data import Images
from ironrank.errors import IronrankError
from weights import mnist_images, mnist_net, pixels_and_classes

norms = pytest.mark.parametrize("norm", ["Linf", "L2"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(classes=5, d=12):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(d, 20), nn.Tanh(), nn.Linear(20, classes)).double()


def jacobians(model, x):
    """Those of the centred logits, one sample and one class after the other."""
    J = torch.stack([torch.autograd.functional.jacobian(lambda p: model(p[None])[0], sample) for sample in x])
    return J - J.mean(1, keepdim=True)


# ---- directions


@pytest.mark.parametrize("mean", [False, True])
def test_products_are_those_with_the_jacobian(mean):
    model, x = net(), torch.rand(4, 12, dtype=torch.float64)
    J = jacobians(model, x)
    J = J.mean(0, keepdim=True) if mean else J
    V, U = torch.randn(len(J), 12, 3, dtype=torch.float64), torch.randn(len(J), 5, 3, dtype=torch.float64)
    forward, backward, classes = products(model, x, mean)
    torch.testing.assert_close(forward(V), J @ V)
    torch.testing.assert_close(backward(U), J.mT @ U)
    assert classes == 5


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("count", "rounds"), [(4, 1), (9, 1), (2, 60)])
def test_leading_directions_are_the_right_singular_vectors(mean, count, rounds):
    model, x = net(), torch.rand(4, 12, dtype=torch.float64)
    J = jacobians(model, x)
    J = J.mean(0, keepdim=True) if mean else J
    V = leading(model, x, count, rounds, seeded(), mean=mean)
    _, S, right = torch.linalg.svd(J, full_matrices=False)
    k = min(count, 4)  # five centred logits span four directions
    assert V.shape == (len(J), 12, k)
    torch.testing.assert_close(V.mT @ V, torch.eye(k, dtype=torch.float64).expand(len(J), k, k))
    torch.testing.assert_close((J @ V).norm(dim=1), S[:, :k], rtol=1e-4, atol=1e-8)
    cosines = (V.mT @ right.mT[:, :, :k]).diagonal(dim1=1, dim2=2).abs()
    assert (cosines > 0.999).all()


def test_the_part_within_a_span():
    torch.manual_seed(0)
    span = torch.linalg.qr(torch.randn(3, 12, 2, dtype=torch.float64)).Q
    gradient = 1e-30 * torch.randn(3, 1, 3, 4, dtype=torch.float64)
    for norm, order in (("L2", 2), ("Linf", torch.inf)):
        part = within(gradient, span, norm)
        torch.testing.assert_close(part.flatten(1).norm(p=order, dim=1), torch.ones(3, dtype=torch.float64))
        flat = part.flatten(1)[:, :, None]
        torch.testing.assert_close(span @ (span.mT @ flat), flat)
    outside = torch.linalg.qr(torch.cat([span, torch.randn(3, 12, 1, dtype=torch.float64)], 2)).Q[:, :, 2:]
    tiny = within(outside.reshape(3, 1, 3, 4), span, "L2")
    assert tiny.isfinite().all()


# ---- the attack


@norms
def test_where_two_directions_decide_the_search_stays_among_them(norm):
    """Only two of forty directions move the logits: candidates and the first half of the steps move nothing else."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 2, dtype=torch.float64)).Q
    head, points = torch.randn(2, 4, dtype=torch.float64), []

    def model(x):
        points.append(x.detach())
        return torch.tanh((x - 0.5) @ basis) @ head

    x = torch.full((3, 40), 0.5, dtype=torch.float64)
    attack = SpectralAttack(norm="L2", eps=0.3, directions=2, steps=6, stop=False)
    attack(model, x, torch.tensor([0, 1, 2]), generator=seeded())
    tried = torch.cat([point - x for point in points if point.shape == x.shape])
    outside = tried - tried @ basis @ basis.T
    assert len(tried) > 3 * (2 + 4 + 6) and tried.norm(dim=1).max() > 0.29
    assert outside.norm(dim=1).max() < 1e-9
    point = SpectralAttack(norm=norm, eps=0.3, directions=2)(
        model, x, torch.tensor([0, 1, 2]), generator=seeded()
    )
    assert (model(point).argmax(1) != torch.tensor([0, 1, 2])).all()


def test_it_finds_the_sensitive_direction_that_noise_misses():
    """One direction of 400 carries everything, and at x the loss is flat to its first order in all others."""
    torch.manual_seed(0)
    v = torch.randn(400)
    v = v / v.norm()
    model = lambda x: torch.stack((torch.ones(len(x)), 12 * ((x - 0.5) @ v)), 1)  # noqa: E731
    x, y = torch.full((4, 400), 0.5), torch.zeros(4, dtype=torch.int64)
    found = SpectralAttack(norm="L2", eps=0.1, directions=1)(model, x, y, generator=seeded())
    missed = Noise(norm="L2", eps=0.1, draws=200)(model, x, y, generator=seeded())
    assert (model(found).argmax(1) == 1).all() and (model(missed).argmax(1) == 0).all()


@pytest.mark.parametrize(
    "model", [lambda x: x.detach(), lambda x: torch.zeros(len(x), 3, requires_grad=True) + 0]
)
def test_a_model_without_a_gradient_is_refused(model):
    with pytest.raises(IronrankError, match="without a gradient"):
        SpectralAttack()(model, torch.rand(2, 3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.shared
def test_on_a_trained_net_it_finds_far_more_than_noise():
    model, (x, y) = mnist_net(), pixels_and_classes(40)
    left = {}
    for attack in (
        SpectralAttack(eps=0.33),
        PGD(eps=0.33, steps=40, restarts=2, stop=True),
        Noise(eps=0.33, draws=50),
    ):
        left[attack.name] = int((model(attack(model, x, y, generator=seeded())).argmax(1) == y).sum())
    assert left["pgd"] <= left["noise"] and left["spectral"] < 0.5 * left["noise"]


# ---- universal


def two_kinds(n=200, seed=0):
    """Noise images whose class is the sign of one direction's part, which a universal change can turn for one class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(60, 196, (n, 1, 4, 4), generator=generator).to(torch.uint8)
    direction = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)
    return Images(x, ((x.flatten(1).float() / 255 - 0.5) @ direction > 0).long()), direction


@norms
def test_a_universal_change_turns_one_class_and_is_found_on_other_images(norm):
    (images, direction), (others, _) = two_kinds(), two_kinds(seed=1)
    model = lambda x: torch.stack((0 * x.sum((1, 2, 3)), (x - 0.5).flatten(1) @ direction), 1)  # noqa: E731
    keep = images.y == 1
    ones = Images(images.x[keep], images.y[keep])
    eps = 0.2 if norm == "Linf" else 0.8
    found = universal(model, ones, others, Universal(norm=norm, eps=eps, step_size=0.5))
    best = -eps * direction / (1 if norm == "Linf" else 4)
    torch.testing.assert_close(found.perturbation.flatten(), best, rtol=1e-3, atol=1e-3)
    assert found.right.all() and found.perturbation.shape == (1, 4, 4)
    assert found.survivors[others.y == 0].all()
    turned = ~found.survivors[others.y == 1]
    assert turned.double().mean() > 0.9, "3.2 is farther than nearly all images are"


def test_a_universal_change_leaves_no_trace_and_is_never_worse_than_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    images, _ = two_kinds(60)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    one, two = (universal(model, images, images, Universal(eps=0.1, steps=12), seed=s) for s in (1, 1))
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(one.perturbation, two.perturbation)
    assert one.survivors.sum() <= one.right.sum() and not (one.survivors & ~one.right).any()
    nothing = universal(model, images, images, Universal(eps=0.0))
    assert (nothing.perturbation == 0).all() and torch.equal(nothing.survivors, nothing.right)


@pytest.mark.shared
def test_on_a_trained_net_a_universal_change_breaks_less_than_an_attack_on_each_image():
    model, images = mnist_net("mnist_cnn16-32_provable_linf0.1"), mnist_images(200)
    half, rest = images.first(100), images.take(torch.arange(100, 200))
    found = universal(model, half, rest, Universal(eps=0.3))
    assert found.perturbation.abs().max() <= 0.3
    assert 0 < found.survivors.sum() < 0.9 * found.right.sum()
