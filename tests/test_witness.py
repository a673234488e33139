"""The witness of an attack: what it takes down, and what it finds when it looks again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from ironrank.attacks import PGD, Square
from ironrank.judge.witness import CALLS, ROWS, Witness

EPS, STEP = 0.1, 1e-3


class Net(nn.Module):
    """A smooth net in float64 whose behaviour can be changed from outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.mode = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "detached":
            x = torch.where(x > 0.5, x, x.detach())
        logits = self.net(x)
        return logits + logits.detach().sign() if self.mode == "raised" else logits


def witnessed(during: str, after: str, attack: PGD | Square) -> tuple[Counter, Witness]:
    net, x = Net(), torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    y = net(x).argmax(1)
    witness, net.mode = Witness(net, torch.Generator().manual_seed(1)), during
    watched = attack(witness, x, y, generator=torch.Generator().manual_seed(3))
    plain = attack(net, x, y, generator=torch.Generator().manual_seed(3))
    assert torch.equal(watched, plain)  # who watches changes nothing
    net.mode = after
    return Counter(witness.found(attack.norm, (STEP,))), witness


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_nothing_is_found_at_an_honest_net(norm: str) -> None:
    found, witness = witnessed("", "", PGD(norm=norm, eps=EPS, steps=10, loss="margin"))
    assert witness.count == {True: 10, False: 2}  # at x and at the end no gradient is needed
    assert found == {"answers": 2 * CALLS * ROWS, "gradients": CALLS * ROWS, "slopes": CALLS * ROWS,
                     "other_answers": 0, "other_gradients": 0, "other_slopes": 0}  # fmt: skip


def test_gradients_that_are_there_only_afterwards() -> None:
    found, _ = witnessed("detached", "", PGD(eps=EPS, steps=10))
    assert (
        found["other_gradients"] == found["gradients"] > 0 == found["other_answers"] == found["other_slopes"]
    )


def test_gradients_that_are_not_slopes() -> None:
    found, _ = witnessed("detached", "detached", PGD(eps=EPS, steps=10))
    assert (
        found["other_slopes"]
        > 0.5 * found["slopes"]
        > 0
        == found["other_gradients"]
        == found["other_answers"]
    )


@pytest.mark.parametrize("attack", [PGD(eps=EPS, steps=10), Square(eps=EPS, queries=10)])
def test_other_answers(attack: PGD | Square) -> None:
    found, _ = witnessed("raised", "", attack)
    assert found["other_answers"] > 0.5 * found["answers"] > 0


def test_every_call_has_the_same_chance() -> None:
    kept: Counter = Counter()
    for seed in range(300):
        witness = Witness(nn.Identity(), torch.Generator().manual_seed(seed))
        for number in range(6):
            witness(torch.full((1, 2), number / 10))
        kept.update(round(10 * float(call.x[0, 0])) for call in witness.kept[False])
    assert sum(kept.values()) == 300 * CALLS
    assert all(70 < kept[number] < 130 for number in range(6)), kept  # 100 each, deviation 8
