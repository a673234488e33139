"""Orthogonality baselines: twins, known answers, which layers, and the user's own loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import Fit, small_batch, small_net
from expect import refuses
from ironrank.linalg import dominant, orthonormality_error, power_step, spread, tangent
from ironrank.methods import Cayley, CondLR, Projected, SoftOrthogonal, Spectral
from ironrank.methods.cayley import cayley
from ironrank.methods.fullrank import as_weight, tall
from ironrank.optim import SGD
from twins_ortho import PenalisedTwin, StiefelTwin, exact_cayley, penalty


def problem():
    """A float64 net with a tall, a wide and a nearly square weight, its data, and its loss as a function."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)

    def loss(W, b):
        h = torch.tanh(F.linear(torch.tanh(F.linear(x, W[0], b[0])), W[1], b[1]))
        return F.mse_loss(F.linear(h, W[2], b[2]), y)

    return net, x, y, loss


def values(net, key):
    return [getattr(net[k], key).detach().numpy().copy() for k in (0, 2, 4)]


def compare(method, twin_of, momentum=0.0, lr=0.1, tolerance=1e-10):
    """Three steps of a method and of its twin from the same start."""
    net, x, y, loss = problem()
    twin = twin_of(loss, values(net, "weight"), values(net, "bias"))
    optimizer = SGD(lr=lr, momentum=momentum).build(method.groups(method.prepare(net)))
    state = method.init(net)

    def backward():
        optimizer.zero_grad()
        value = F.mse_loss(net(x), y) + method.penalty(net, state)
        value.backward()
        return value.detach()

    for t in range(3):
        method.step(net, optimizer, state, backward, t)
        twin.step()
    for key, theirs in (("weight", twin.W), ("bias", twin.bias)):
        for a, b in zip(values(net, key), theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize(("gain", "momentum"), [(1.0, 0.9), (30.0, 0.3)])
@pytest.mark.parametrize("curve", ["cayley", "qr", "polar"])
def test_three_steps_on_the_manifold_agree_with_the_twin(curve, gain, momentum, scale):
    how = {"momentum": momentum, "gain": gain, "scale": scale}
    method = Cayley(**how) if curve == "cayley" else Projected(retraction=curve, **how)
    compare(method, lambda *net: StiefelTwin(*net, curve, lr=0.1, **how))


@pytest.mark.parametrize(
    "method",
    [SoftOrthogonal(kind=kind, weight=0.3, rounds=2) for kind in ("so", "srip")]
    + [Spectral(kind=kind, weight=0.3, rounds=2) for kind in ("cond", "norm", "spread")],
    ids=lambda method: method.kind,
)
def test_three_penalised_steps_agree_with_the_twin(method):
    compare(method, lambda *net: PenalisedTwin(*net, method.kind, 0.3, 0.1, 2), tolerance=1e-7)


# ---- the manifold


@pytest.fixture
def point():
    torch.manual_seed(1)
    X = torch.linalg.qr(torch.randn(12, 4, dtype=torch.float64))[0]
    return X, tangent(X, torch.randn(12, 4, dtype=torch.float64))


def skew(X, M):
    P = M - 0.5 * X @ (X.T @ M)
    return P @ X.T - X @ P.T


def test_many_iterations_end_at_the_cayley_transform(point):
    X, M = point
    assert torch.allclose(skew(X, M) @ X, M, atol=1e-12)
    exact = exact_cayley(X.numpy(), skew(X, M).numpy(), 0.05)
    errors = [np.abs(cayley(X, M, 0.05, n).numpy() - exact).max() for n in (1, 2, 4, 30)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-13
    assert orthonormality_error(cayley(X, M, 0.05, 30)) < 1e-13


def test_a_long_step_is_cut_where_the_iteration_would_not_contract(point):
    X, M = point
    most = 1 / torch.linalg.norm(skew(X, M)).item()
    torch.testing.assert_close(cayley(X, M, 1e6, 3), cayley(X, M, most, 3))
    exact = exact_cayley(X.numpy(), skew(X, M).numpy(), most)
    np.testing.assert_allclose(cayley(X, M, 1e6, 60).numpy(), exact, atol=1e-13)


@pytest.mark.parametrize("method", [Cayley(), Projected(), Projected(retraction="polar")], ids=str)
def test_a_small_step_is_the_straight_one(method, point):
    X, M = point
    gaps = [(method.moved(X, M, h, 0) - X - h * M).norm().item() for h in (1e-3, 1e-4)]
    assert gaps[1] < 0.011 * gaps[0], "of second order"


def test_wide_weights_have_orthonormal_rows_and_tall_ones_columns():
    fit = Fit(Cayley(scale=2.0), SGD(lr=0.1), torch.float64)
    for _ in range(3):
        fit.step()
    wide, tall_ = (fit.model[k].weight.flatten(1).detach() / 2 for k in (3, 0))
    assert wide.shape == (10, 64) and tall_.shape == (4, 9)
    torch.testing.assert_close(wide @ wide.T, torch.eye(10, dtype=torch.float64))
    torch.testing.assert_close(tall_ @ tall_.T, torch.eye(4, dtype=torch.float64))
    kernel = torch.randn(20, 2, 3)  # taller than wide
    assert tall(kernel).shape == (20, 6) and torch.equal(as_weight(tall(kernel), kernel), kernel)
    square = torch.randn(3, 3)
    assert torch.equal(as_weight(tall(square), square), square)


def test_drift_between_two_repairs():
    fit = Fit(Cayley(every=3, gain=5.0), SGD(lr=0.1), torch.float64)
    errors = []
    for _ in range(6):
        fit.step()
        errors.append(fit.method.watch(fit.model, fit.state)["orthonormality"])
    assert max(errors[2], errors[5]) < 1e-12 < min(errors[0], errors[1], errors[3], errors[4])
    fit.step()
    assert fit.method.watch(fit.method.finish(fit.model, fit.state), {})["orthonormality"] < 1e-12


def test_weight_decay_and_momentum_of_the_optimizer_leave_the_manifold_alone():
    plain, heavy = (
        Fit(Projected(), SGD(lr=0.1, momentum=m, weight_decay=d)) for m, d in ((0.0, 0.0), (0.9, 0.1))
    )
    plain.step(), heavy.step()
    assert all(torch.equal(plain.model[k].weight, heavy.model[k].weight) for k in (0, 3, 5))


def test_averaged_weights_are_brought_back_at_the_end():
    method, net = Projected(), small_net()
    method.init(net)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.8).add_(0.05 * torch.randn_like(p))
    assert method.watch(net, {})["orthonormality"] > 0.1
    assert method.watch(method.finish(net, {}), {})["orthonormality"] < 1e-5


# ---- which layers


def names(method, net):
    return [name for name, _ in method.layers(net)]


def test_first_last_and_patterns():
    net = small_net()
    assert names(Cayley(), net) == ["0", "3", "5"]
    assert names(Cayley(first="free"), net) == ["3", "5"]
    assert names(Spectral(last="free", exclude=("0",)), net) == ["3"]


def test_layers_that_cannot_be_taken():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    )
    net[2].weight = net[1].weight  # shared: counts once
    net[3].weight.requires_grad_(False)
    assert names(Cayley(), net) == ["1", "4"]
    nn.utils.parametrizations.weight_norm(net[4])
    assert names(Cayley(), net) == ["1"]


@pytest.mark.parametrize("method", [Cayley(exclude=("*",)), SoftOrthogonal(exclude=("*",))], ids=str)
def test_no_layer_to_take_is_refused(method):
    with refuses(method.name, "no layer to take", "exclude less"):
        method.prepare(small_net())
    with refuses("no layer to take"):
        method.prepare(CondLR(keep=0.5).prepare(small_net()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Cayley(scale=0), "cayley.scale"),
        (lambda: Cayley(first="dense"), "cayley.first"),
        (lambda: Projected(retraction="svd"), "projected.retraction"),
        (lambda: SoftOrthogonal(kind="dso"), "soft-orthogonal.kind"),
        (lambda: Spectral(weight=-1), "spectral.weight"),
    ],
)
def test_settings_are_checked_at_the_door(wrong, words):
    with refuses(words):
        wrong()


# ---- penalties


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
@pytest.mark.parametrize("kind", ["so", "srip", "cond", "norm", "spread"])
def test_the_value_of_every_penalty(kind, shape):
    torch.manual_seed(2)
    net = nn.Linear(*shape[::-1]).double()
    method = (SoftOrthogonal if kind in ("so", "srip") else Spectral)(kind=kind, weight=0.5)
    net = nn.Sequential(net)
    found = method.penalty(net, method.init(net)).item()
    assert found == pytest.approx(0.5 * penalty(net[0].weight.detach().numpy(), kind), rel=1e-9)
    if kind == "spread":
        assert found == pytest.approx(0.5 * spread(net[0].weight).item())


@pytest.mark.parametrize("kind", ["so", "srip", "cond", "norm", "spread"])
def test_a_penalty_alone_reaches_what_it_asks_for(kind):
    method = (SoftOrthogonal if kind in ("so", "srip") else Spectral)(kind=kind, weight=1.0, rounds=3)
    net = small_net(torch.float64)
    optimizer, state = SGD(lr=0.01, momentum=0.0).build(method.groups(net)), method.init(net)
    before = {name: torch.linalg.svdvals(X.detach()) for name, X in method.weights(net)}

    def backward():
        optimizer.zero_grad()
        value = method.penalty(net, state)
        value.backward()
        return value.detach()

    course = [method.step(net, optimizer, state, backward, t).item() for t in range(300)]
    after = {name: torch.linalg.svdvals(X.detach()) for name, X in method.weights(net)}
    assert course[-1] < 0.2 * course[0]
    for name in before:
        old, new = before[name], after[name]
        if kind in ("so", "srip"):
            assert (new - 1).abs().max() < 0.5 * (old - 1).abs().max()
        else:
            assert new[0] / new[-1] < old[0] / old[-1] if kind != "norm" else new[0] < 0.8 * old[0]


def test_a_lost_singular_value_gives_a_finite_gradient():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])))
    value = Spectral(weight=1.0).penalty(net, {})
    value.backward()
    assert value.item() == pytest.approx(0.5 * 12 * np.log(10), rel=1e-4)
    assert torch.isfinite(net[0].weight.grad).all()


def test_power_iteration_finds_both_ends_of_the_spectrum():
    X = torch.diag(torch.tensor([1.2, 1.0, 0.1], dtype=torch.float64))
    v = torch.full((3,), 3**-0.5, dtype=torch.float64)
    assert power_step(X, v, 0.0, 60).abs().argmax() == dominant(X).abs().argmax() == 0
    assert power_step(X, v, 1.0, 60).abs().argmax() == dominant(X, 1.0).abs().argmax() == 2
    assert torch.equal(power_step(torch.eye(3).double(), v, 1.0, 3), v), "where A is zero"


# ---- a user's own loop


@pytest.mark.parametrize("method", [Cayley(), Projected()], ids=lambda method: method.name)
def test_attached_it_takes_the_same_steps(method):
    ours = Fit(method, SGD(lr=0.1, momentum=0.5))
    theirs = Fit(method, SGD(lr=0.1, momentum=0.5), begun=False)
    with method.attach(theirs.model, theirs.built) as attached:
        for _ in range(3):
            ours.step()
            theirs.backward()
            theirs.built.step()
    assert attached.steps == 3
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_attach_refuses_an_optimizer_without_the_weights():
    net = small_net()
    with refuses("attach", "does not hold the weight of layer '3'"):
        Cayley().attach(net, torch.optim.SGD([*net[0].parameters(), net[3].bias], lr=0.1))


def test_attach_of_a_penalty_says_what_to_write():
    net, (x, y) = small_net(), small_batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = SoftOrthogonal(kind="srip")
    with refuses("soft-orthogonal", "add method.penalty(model, state) to your loss"):
        method.attach(net, optimizer)
    state = method.init(net)
    method.follow(net, state)
    assert (F.cross_entropy(net(x), y) + method.penalty(net, state)).requires_grad
