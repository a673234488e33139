"""Objectives: known losses, and an adversary that stays hidden."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ironrank.attacks import FGSM, PGD
from ironrank.errors import IronrankError
from ironrank.objectives import OBJECTIVES, Clean, Madry

ATTACK = PGD(eps=0.1, steps=3)
CASES = {"clean": Clean, "madry": lambda **kw: Madry(attack=ATTACK, **kw)}
each = pytest.mark.parametrize("case", CASES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand((10, 1, 4, 4), generator=generator), torch.randint(3, (10,), generator=generator)


def seeded():
    return torch.Generator().manual_seed(2)


def test_every_objective_has_a_case():
    assert CASES.keys() == OBJECTIVES.keys()


@each
def test_loss_is_a_scalar_with_gradients_of_all_weights(case):
    net, (x, y) = network(), batch()
    loss = CASES[case]()(net, x, y)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.training


@each
def test_label_smoothing_mixes_in_the_uniform_target(case):
    net, (x, y) = network().eval(), batch()
    plain, smooth = (CASES[case](label_smoothing=s)(net, x, y, generator=seeded()) for s in (0.0, 0.3))
    point = x if case == "clean" else ATTACK(net, x, y, generator=seeded())
    uniform = -F.log_softmax(net(point), 1).mean()
    torch.testing.assert_close(smooth, 0.7 * plain + 0.3 * uniform)
    for wrong in (1.0, -0.1):
        with pytest.raises(IronrankError, match="label_smoothing"):
            CASES[case](label_smoothing=wrong)


def test_clean_is_cross_entropy_and_draws_nothing():
    net, (x, y) = network().eval(), batch()
    state = torch.get_rng_state()
    torch.testing.assert_close(Clean()(net, x, y), F.cross_entropy(net(x), y))
    assert torch.equal(torch.get_rng_state(), state)


def test_madry_is_the_loss_at_the_attacked_pixels_in_the_mode_of_the_model():
    net, twin, (x, y) = network(), network(), batch()
    loss = Madry(attack=ATTACK)(net, x, y, generator=seeded())
    attacked = ATTACK(twin, x, y, generator=seeded())
    torch.testing.assert_close(loss, F.cross_entropy(twin(attacked), y))
    # one update of the statistics each, by the attacked batch alone
    assert net[2].num_batches_tracked == 1
    torch.testing.assert_close(net[2].running_mean, twin[2].running_mean)


def test_madry_is_not_below_clean():
    net, (x, y) = network().eval(), batch()
    assert Madry(attack=ATTACK)(net, x, y) > Clean()(net, x, y) + 0.01


def test_equal_generators_give_equal_losses():
    net, (x, y) = network().eval(), batch()
    objective = Madry(attack=FGSM(eps=0.1, start=1))
    first = objective(net, x, y, generator=seeded())
    assert torch.equal(first, objective(net, x, y, generator=seeded()))
    assert not torch.equal(first, objective(net, x, y, generator=torch.Generator().manual_seed(3)))


def test_madry_trains_under_autocast():
    net, (x, y) = network(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Madry(attack=ATTACK)(net, x, y)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_default_adversary_suits_training():
    attack = Madry().attack
    assert (attack.norm, attack.eps, attack.keep) == ("Linf", 8 / 255, "last")
    with pytest.raises(IronrankError, match="Attack is needed"):
        Madry(attack="pgd")
