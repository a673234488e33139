"""Losses, early stopping, runs towards classes, and APGD: known answers, and what they reach on a trained net."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ironrank.attacks import APGD, FGSM, PGD
from ironrank.attacks.apgd import checkpoints
from ironrank.attacks.losses import LOSSES, TARGETED, Aim, dlr, spread, targeted_dlr
from ironrank.attacks.passes import Loss
from ironrank.attacks.search import Highest, goals
from ironrank.attacks.threat import steepest
from ironrank.errors import IronrankError
from ironrank.judge import withstood
from small_nets import small_net, some_images
from weights import mnist_net, pixels_and_classes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- losses


def test_dlr_by_hand():
    logits = torch.tensor([[8.0, 5.0, 2.0, 1.0], [5.0, 8.0, 2.0, 1.0]])
    assert dlr(logits, torch.tensor([0, 0])).tolist() == [-3 / 6, 3 / 6]
    aimed = targeted_dlr(logits, torch.tensor([0, 0]), torch.tensor([3, 1]))
    torch.testing.assert_close(aimed, torch.tensor([-7 / 6.5, 3 / 6.5]))


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_finite_and_have_the_right_sign_for_any_number_of_classes(loss, classes):
    torch.manual_seed(0)
    logits = torch.randn(50, classes, dtype=torch.float64, requires_grad=True)
    y = torch.randint(classes, (50,))
    target = (y + 1) % classes
    rising = F.one_hot(target, classes) - F.one_hot(y, classes)
    losses = [Aim(loss, y)(logits, logits)]
    losses.append(Aim(loss, y, target).begun(lambda: logits)(logits, logits))
    for values in losses:
        (gradient,) = torch.autograd.grad(values.sum(), logits, retain_graph=True)
        assert values.shape == (50,) and values.isfinite().all() and gradient.isfinite().all()
    assert ((gradient * rising).sum(1) > 0).all() or loss == "dlr"
    if loss in ("margin", "dlr"):
        assert torch.equal(losses[0] > 0, logits.argmax(1) != y)
        assert torch.equal(
            losses[1] > 0, (logits.gather(1, target[:, None]) > logits.gather(1, y[:, None]))[:, 0]
        )


@pytest.mark.parametrize("loss", ["dlr", "ce-scaled"])
def test_some_losses_do_not_change_with_scale_and_shift(loss):
    torch.manual_seed(0)
    logits, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(5, (20,))
    torch.testing.assert_close(LOSSES[loss](1e4 * logits + 7, y), LOSSES[loss](logits, y))
    aim = Aim(loss, y, (y + 1) % 5)
    one, two = (aim.begun(lambda z=z: z)(z, z) for z in (logits, 1e4 * logits))
    torch.testing.assert_close(one, two)


def test_equal_logits_give_no_infinite_loss():
    logits, y = torch.zeros(1, 5, requires_grad=True), torch.tensor([0])
    for values in (dlr(logits, y), targeted_dlr(logits, y, y + 1), LOSSES["ce-scaled"](logits, y)):
        assert values.isfinite().all()
    assert spread(torch.tensor([[torch.inf, 0.0]])).item() == 1


@pytest.mark.parametrize("kind", [PGD, APGD])
@pytest.mark.parametrize("loss", ["ce-scaled", "margin", "dlr"])
def test_large_logits_leave_cross_entropy_blind_and_no_other_loss(kind, loss):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5))
    x = torch.rand(40, 30)
    y = net(x).argmax(1)
    huge = lambda x: 1e5 * net(x)  # noqa: E731
    fooled = {}
    for model, name in ((net, "plain"), (huge, "huge")):
        point = kind(eps=0.3, steps=20, loss=loss)(model, x, y, generator=seeded())
        fooled[name] = (net(point).argmax(1) != y).sum().item()
    blind = (net(kind(eps=0.3, steps=20)(huge, x, y, generator=seeded())).argmax(1) != y).sum().item()
    assert fooled["huge"] >= fooled["plain"] - 1 > 0
    assert blind < fooled["huge"]


# ---- what searches share


def test_targets_are_the_likeliest_wrong_classes():
    y, logits = torch.tensor([2, 0]), torch.tensor([[1.0, 3.0, 5.0, 2.0], [0.0, 1.0, 1.0, 4.0]])
    found = goals(Loss(lambda x: x, Aim("dlr", y)), logits, targets=9)
    assert torch.stack([goal.aim.target for goal in found], 1).tolist() == [[1, 3, 0], [3, 1, 2]]
    assert len(goals(Loss(lambda x: x, Aim("dlr", y)), logits, targets=2)) == 2


def test_targets_need_classes():
    attack = PGD(targets=1)
    with pytest.raises(IronrankError, match="true classes") as error:
        attack.maximise(lambda x: x, torch.rand(2, 3), lambda logits, _: logits.sum(1))
    assert "\n" not in str(error.value)


def test_who_is_fooled_wins_and_leaves_where_the_search_stops():
    """Cross-entropy falls from 1.08 to 0.70 where the class is lost to a single other one."""
    y, x = torch.tensor([0]), torch.zeros(1, 3)
    before, after = torch.tensor([[0.05, 0.0, 0.0]]), torch.tensor([[5.0, 5.01, 0.0]])
    model, rows = lambda point: point, torch.tensor([0])
    for stop in (True, False):
        highest = Highest(x, Loss(model, Aim("ce", y)), stop)
        for logits in (before, after):
            highest.offer(logits, rows, logits, F.cross_entropy(logits, y, reduction="none"))
        assert torch.equal(highest.point, after if stop else before)
        assert highest.rows.tolist() == ([] if stop else [0])


@pytest.mark.parametrize("attack", [PGD(eps=0.3, steps=20, stop=True), APGD(eps=0.3, steps=20, targets=1)])
def test_a_fooled_sample_is_not_computed_again(attack):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return torch.stack((x.mean(1), 1 - x.mean(1)), 1)

    x = torch.linspace(0.52, 0.95, 12)[:, None].expand(12, 4).contiguous()  # class 0 above 0.5
    point = attack(model, x, torch.zeros(12, dtype=torch.int64), generator=seeded())
    safe = int((x[:, 0] > 0.8).sum())
    assert (model(point).argmax(1) == 0).sum() == safe
    assert sizes[0] == 12 and sizes[-2] == safe and sum(sizes[:-1]) < 0.8 * 12 * 21


def test_stopping_changes_nothing_for_those_that_withstand():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = torch.rand(30, 10, dtype=torch.float64)
    y = net(x).argmax(1)
    for kind in (PGD, APGD):
        one, all_of = (
            kind(eps=0.1, steps=15, stop=stop)(net, x, y, generator=seeded()) for stop in (True, False)
        )
        safe = net(one).argmax(1) == y
        assert 0 < safe.sum() < 30
        torch.testing.assert_close(one[safe], all_of[safe], rtol=0, atol=1e-9)
        assert torch.equal(safe, net(all_of).argmax(1) == y) or kind is PGD


@pytest.mark.parametrize("setting", ["targets", "stop", "restarts"])
def test_the_last_iterate_knows_no_best(setting):
    with pytest.raises(IronrankError, match=f"{setting} needs keep='best'"):
        PGD(keep="last", **{setting: 2 if setting != "stop" else True})


def test_a_gradient_that_is_not_a_number_in_one_pixel_does_not_end_the_search():
    def model(x):  # the root has the gradient infinity times zero at pixel 0
        first = 0 * (x[:, 0] - x[:, 0].detach()).clamp_min(0).sqrt()
        return torch.stack((first + 1 - x[:, 1], x[:, 1]), 1)

    x = torch.tensor([[0.5, 0.4]])
    for attack in (PGD(eps=0.2), APGD(eps=0.2)):
        point = attack(model, x, torch.tensor([0]), generator=seeded())
        assert model(point).argmax(1).item() == 1 and point.isfinite().all()


# ---- APGD


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50, 100, 1000])
def test_checkpoints_are_those_of_the_formula(steps):
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    expected = sorted({math.ceil(round(share * steps, 6)) for share in p[1:] if share <= 1})
    found = checkpoints(steps)
    assert list(found) == expected
    assert list(found.values()) == [b - a for a, b in zip([0, *expected], expected, strict=False)]


def test_apgd_step_by_step_agrees_with_the_algorithm_box():
    """One pixel, a loss that oscillates: the trail of the published algorithm, computed by hand in plain numbers."""
    trail, eps, steps = [], 0.4, 10

    def hill(x):  # cross-entropy of class 0 is highest at 0.55
        trail.append(x[0, 0].item())
        return torch.stack((30 * (x[:, 0] - 0.55).square(), torch.zeros(len(x), dtype=x.dtype)), 1)

    x, y = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([0])
    APGD(eps=eps, steps=steps, stop=False)(hill, x, y, generator=seeded())
    f = lambda p: math.log1p(math.exp(-30 * (p - 0.55) ** 2))  # noqa: E731
    cut = lambda p: min(max(p, 0.5 - eps), 0.5 + eps)  # noqa: E731
    point = before = best = trail[1]
    step, loss, rises, halved, best_then = 2 * eps, f(point), 0, True, f(point)
    expected, looks = [point], checkpoints(steps)
    for k in range(1, steps + 1):
        z = cut(point + step * (1 if point < 0.55 else -1))
        a = 1.0 if k == 1 else 0.75
        before, point = point, cut(point + a * (z - point) + (1 - a) * (point - before))
        expected.append(point)
        rises, loss = rises + (f(point) > loss), f(point)
        best = point if f(point) > f(best) else best
        if k in looks:
            halved = rises < 0.75 * looks[k] or (not halved and f(best) <= best_then)
            step, point = (step / 2, best) if halved else (step, point)
            rises, best_then = 0, f(best)
    assert len(set(expected)) > 6, "the trail moves"
    assert trail[1:] == pytest.approx(expected, abs=1e-12)


def test_apgd_beats_pgd_of_the_same_cost_on_a_bent_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 4))
    x = torch.rand(60, 40)
    y = net(x).argmax(1)
    for norm, eps in (("Linf", 0.05), ("L2", 0.3)):
        losses = [
            F.cross_entropy(
                net(kind(norm=norm, eps=eps, steps=30, stop=False)(net, x, y, generator=seeded())), y
            )
            for kind in (PGD, APGD)
        ]
        fgsm = F.cross_entropy(net(FGSM(norm=norm, eps=eps)(net, x, y)), y)
        assert losses[1] >= 0.99 * losses[0] and losses[1] >= fgsm > F.cross_entropy(net(x), y)


@pytest.mark.shared
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_as_strong_as_that_of_autoattack(loss):
    pyautoattack = pytest.importorskip("pyautoattack")
    net, (x, y) = mnist_net(), pixels_and_classes(40)
    eps = 0.33  # between 0.3, where nearly all withstand, and 0.35, where none does
    ours = net(APGD(eps=eps, loss=loss)(net, x, y, generator=seeded())).argmax(1) == y
    attack = pyautoattack.AutoAttack(net, eps=eps, version="custom", attacks=[f"apgd-{loss}"], seed=0)
    attack.apgd.n_restarts = 1
    with torch.random.fork_rng():
        point, _ = attack.run_standard_evaluation(x, y, batch_size=40)
    theirs = net(point).argmax(1) == y
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 3 and ours.sum() < 36


def test_every_named_loss_has_a_targeted_twin():
    assert {*TARGETED, "ce-scaled"} == {*LOSSES}, "rescaled cross-entropy is cross-entropy of rescaled logits"


def test_rescaled_cross_entropy_is_as_strong_as_cross_entropy_on_an_ordinary_net():
    net, images = small_net(epochs=2), some_images(200)
    left = {loss: withstood(net, images, APGD(eps=0.03, steps=10, loss=loss), 0).sum() for loss in LOSSES}
    assert left["ce-scaled"] <= left["ce"] + 2 < 150
    assert withstood(net, images, FGSM(eps=0.03), 0).sum() > left["ce-scaled"]


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_rescaled_cross_entropy_has_a_gradient_where_one_logit_stands_far_above_the_rest(classes):
    logits, y = torch.zeros(1, classes), torch.tensor([0])
    logits[0, 0] = 1e6
    aim = Aim("ce-scaled", y).begun(lambda: logits)
    here = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(aim(here, here).sum(), here)
    assert (steepest(gradient, "L2")[0, 1:] > 0).all()
