"""Optimizers do what their settings say; schedules have the values of their formulas."""

import math

import pytest
import torch

from ironrank.errors import IronrankError
from ironrank.optim import OPTIMIZERS, SCHEDULES, SGD, AdamW, Constant, Cosine, OneCycle, Steps, set_lr

SHARES = [k / 97 for k in range(97)]


def parameter(grad=2.0):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), grad)
    return weight


def test_families():
    assert set(OPTIMIZERS) == {"sgd", "adamw", "muon"}
    assert set(SCHEDULES) == {"constant", "steps", "cosine", "one-cycle"}


def test_sgd_step_with_momentum_and_decay():
    weight = parameter()
    optimizer = SGD(lr=0.1, momentum=0.5, weight_decay=0.5).build([{"params": [weight]}])
    optimizer.step()  # g = 2 + 0.5
    torch.testing.assert_close(weight.data, torch.full((3,), 0.75))
    optimizer.step()  # g = 2 + 0.375, buffer = 1.25 + 2.375
    torch.testing.assert_close(weight.data, torch.full((3,), 0.75 - 0.3625))


def test_adamw_first_step_is_the_learning_rate_after_the_decay():
    weight = parameter(grad=1e-3)
    AdamW(lr=0.01, weight_decay=0.5, eps=0.0).build([{"params": [weight]}]).step()
    torch.testing.assert_close(weight.data, torch.full((3,), (1 - 0.005) - 0.01))


def test_adamw_passes_all_its_numbers_on():
    group = AdamW(beta1=0.8, beta2=0.95, eps=1e-6).build([{"params": [parameter()]}]).param_groups[0]
    assert (group["betas"], group["eps"], group["lr"], group["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.001, 0)


@pytest.mark.parametrize("settings", [SGD(lr=0.2, weight_decay=0.1), AdamW(lr=0.2, weight_decay=0.1)])
def test_what_a_group_names_itself_wins(settings):
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.05, "weight_decay": 0.0}]
    first, second = settings.build(groups).param_groups
    assert (first["lr"], first["weight_decay"]) == (0.2, 0.1)
    assert (second["lr"], second["weight_decay"]) == (0.05, 0.0)


def test_set_lr_scales_the_first_rates_not_the_last():
    optimizer = SGD(lr=0.2).build([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.1}])
    for factor in (0.5, 0.25):
        set_lr(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.025]


def test_initial_rate_survives_the_state_dict():
    optimizer = SGD(lr=0.2).build([{"params": [parameter()]}])
    set_lr(optimizer, 0.5)
    fresh = SGD(lr=0.2).build([{"params": [parameter()]}])
    fresh.load_state_dict(optimizer.state_dict())
    assert (fresh.param_groups[0]["lr"], fresh.param_groups[0]["initial_lr"]) == (0.1, 0.2)


@pytest.mark.parametrize("schedule", [s() for s in SCHEDULES.values()] + [OneCycle(shape="linear")])
def test_factors_stay_between_zero_and_one(schedule):
    assert all(0 <= schedule.factor(p) <= 1 for p in SHARES)


def test_constant():
    assert {Constant().factor(p) for p in SHARES} == {1.0}


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 53])
def test_steps_fall_exactly_at_the_published_epochs(steps_per_epoch):
    total, schedule = 120 * steps_per_epoch, Steps()
    factor = [schedule.factor(t / total) for t in range(total)]
    falls = [t / steps_per_epoch for t in range(1, total) if factor[t] < factor[t - 1]]
    assert falls == [70, 100]
    assert (factor[0], factor[-1]) == (1, pytest.approx(0.09))


def test_steps_without_milestones_is_constant():
    assert Steps(milestones=()).factor(0.99) == 1


def test_cosine_follows_its_formula():
    schedule = Cosine(warmup=0.1, final=0.2)
    assert schedule.factor(0.05) == pytest.approx(0.5)
    assert schedule.factor(0.1) == 1
    share = (0.7 - 0.1) / 0.9
    assert schedule.factor(0.7) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * share)) / 2)
    assert schedule.factor(1 - 1e-9) == pytest.approx(0.2)
    assert Cosine().factor(0) == 1


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_one_cycle_goes_up_and_down(shape):
    schedule = OneCycle(peak=0.4, initial=0.1, final=0.01, shape=shape)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(0.2) == pytest.approx(0.55)  # half way, in both shapes
    assert schedule.factor(0.4) == 1
    assert schedule.factor(0.7) == pytest.approx(0.505)
    assert schedule.factor(1 - 1e-9) == pytest.approx(0.01)
    factor = [schedule.factor(p) for p in SHARES]
    assert factor == sorted(factor[:39]) + sorted(factor[39:], reverse=True)


def test_one_cycle_agrees_with_torch():
    total, weight = 50, parameter()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    twin = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total + 1,
        pct_start=0.3 + 1e-12,
        cycle_momentum=False,
        final_div_factor=1e9,
    )
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        twin.step()
    # torch puts its peak one step early: at 0.3 * 51 - 1 = 14.3 of 50
    ours = OneCycle(peak=14.3 / 50)
    assert [ours.factor(t / total) for t in range(total)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: SGD(lr=0), "sgd.lr"),
        (lambda: SGD(momentum=1.0), "sgd.momentum"),
        (lambda: SGD(momentum=0, nesterov=True), "momentum above 0"),
        (lambda: AdamW(beta2=1.0), "adamw.beta2"),
        (lambda: Steps(milestones=(0.5, 1.2)), "between 0 and 1"),
        (lambda: Steps(gamma=0), "steps.gamma"),
        (lambda: Cosine(warmup=1), "cosine.warmup"),
        (lambda: OneCycle(peak=0), "one-cycle.peak"),
    ],
)
def test_settings_are_checked_at_the_door(wrong, words):
    with pytest.raises(IronrankError, match=words):
        wrong()
