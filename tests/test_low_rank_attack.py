"""Low-rank PGD: its twin, its rank, and the models on which its best answer is known."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expect import refuses
from ironrank.attacks import PGD, LowRankPGD, stronger
from twins_ortho import LowRankPGDTwin

EPS = {"Linf": 0.1, "L2": 0.5}
norms = pytest.mark.parametrize("norm", EPS)


def network(channels=2):
    torch.manual_seed(3)
    layers = [nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 5 * 6, 3)]
    return nn.Sequential(*layers).double()


def batch(n=5, channels=2):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand((n, channels, 7, 8), generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def ranks(change):
    s = torch.linalg.svdvals(change)
    return (s > 1e-9 * s[..., :1]).sum(-1)


def inner(x):
    """Pixels from which no change of the sizes here reaches the box."""
    return 0.4 + 0.2 * x


@norms
@pytest.mark.parametrize("rank", [1, 3])
def test_three_steps_agree_with_the_twin(norm, rank):
    net, (x, y) = network(), batch()
    attack = LowRankPGD(
        norm=norm, eps=EPS[norm], rank=rank, steps=3, step_size=0.3, random_start=False, keep="last"
    )
    ours = attack(net, x, y)
    for k in range(len(x)):

        def gradient(point, k=k):
            pixels = torch.tensor(point[None], requires_grad=True)
            F.cross_entropy(net(pixels), y[k : k + 1]).backward()
            return pixels.grad[0].numpy()

        theirs = LowRankPGDTwin(gradient, norm, EPS[norm], rank, 0.3).run(x[k].numpy(), 3)
        np.testing.assert_allclose(ours[k].numpy(), theirs, atol=1e-9)


@norms
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("start", [True, False])
def test_every_channel_has_at_most_this_rank(norm, rank, start):
    net, (x, y) = network(), batch()
    attack = LowRankPGD(norm=norm, eps=0.5 * EPS[norm], rank=rank, steps=4, random_start=start, keep="last")
    change = attack(net, inner(x), y) - inner(x)
    assert (ranks(change) <= rank).all() and (ranks(change) == rank).any()


@norms
def test_at_full_rank_it_is_pgd(norm):
    net, (x, y) = network(), batch()
    how = {"norm": norm, "eps": EPS[norm], "steps": 4, "restarts": 2}
    low, plain = (
        kind(net, x, y, generator=torch.Generator().manual_seed(1))
        for kind in (LowRankPGD(rank=7, **how), PGD(**how))
    )
    assert torch.equal(low, plain)
    more = LowRankPGD(rank=70, **how)(net, x, y, generator=torch.Generator().manual_seed(1))
    assert torch.equal(more, low), "a rank above the full one is the full one"


def linear(weight):
    """A net of two classes whose margin has this gradient (c, h, w)."""
    return lambda x: torch.stack((torch.zeros(len(x), dtype=x.dtype), (x * weight).flatten(1).sum(1)), 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_optimum_on_a_linear_model_in_l2(rank):
    """The best change of rank r is the truncated gradient, brought to length eps (Eckart, Young)."""
    torch.manual_seed(0)
    weight, x = torch.randn(2, 7, 8, dtype=torch.float64), torch.full((1, 2, 7, 8), 0.5, dtype=torch.float64)
    s = torch.linalg.svdvals(weight)[:, :rank]
    attack = LowRankPGD(norm="L2", eps=0.3, rank=rank, steps=4, step_size=0.3, random_start=False)
    change = attack(linear(weight), x, torch.tensor([0])) - x
    assert ranks(change).max() == rank
    assert (change * weight).sum().item() == pytest.approx(0.3 * s.norm().item(), rel=1e-9)


@pytest.mark.parametrize("start", [True, False])
def test_optimum_on_a_linear_model_in_linf_where_rank_one_has_it(start):
    torch.manual_seed(0)
    u, v = torch.randn(7, 1, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    x = torch.full((1, 1, 7, 8), 0.5, dtype=torch.float64)
    attack = LowRankPGD(eps=0.1, rank=1, steps=5, step_size=0.2, random_start=start)
    change = attack(linear(u @ v), x, torch.tensor([0])) - x
    torch.testing.assert_close(change[0, 0], 0.1 * (u @ v).sign(), rtol=0, atol=1e-9)


@norms
def test_more_rank_finds_more(norm):
    net, (x, y) = network(), batch(40)
    losses = []
    for rank in (1, 2, 7):
        point = LowRankPGD(norm=norm, eps=EPS[norm], rank=rank, steps=10, random_start=False)(
            net, inner(x), y
        )
        losses.append(F.cross_entropy(net(point), y).item())
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.01


def test_a_gradient_that_is_not_a_number_spoils_its_own_sample_only():
    net, (x, y) = network(), batch()
    attack = LowRankPGD(eps=0.1, rank=1, steps=2, random_start=False)
    wanted = attack(net, x, y)

    def broken(pixels):
        poison = torch.where(torch.arange(len(pixels)) == 1, torch.nan, 1.0)
        return net(pixels) * poison[:, None]

    got = attack(broken, x, y)
    others = torch.arange(len(x)) != 1
    torch.testing.assert_close(got[others], wanted[others], rtol=0, atol=1e-12)
    assert torch.equal(got[1], x[1])


def test_pixels_without_rows_and_columns_are_refused():
    with refuses("low-rank-pgd", "(b, ..., h, w)", "use pgd"):
        LowRankPGD()(lambda x: x, torch.rand(2, 3), torch.tensor([0, 1]))


def test_videos_have_frames():
    x, y = torch.rand(2, 3, 4, 5, 6).double(), torch.tensor([0, 1])
    change = LowRankPGD(eps=0.05, rank=1, steps=2, keep="last")(lambda x: x.flatten(1)[:, :2], inner(x), y)
    assert (ranks(change - inner(x)) == 1).all()


def test_the_next_stronger_attack_keeps_the_rank():
    assert stronger(LowRankPGD(rank=3, steps=5)) == LowRankPGD(rank=3, steps=10)


def test_describe():
    assert LowRankPGD(norm="L2", rank=3, steps=7, restarts=2).describe() == "PGD-7 x2 L2 rank 3"
