"""A hash that nets share only where they answer the same."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ironrank.judge import autoattack
from ironrank.judge.fingerprint import fingerprint
from small_nets import some_images


class Holds(nn.Module):
    """A net with something beside its weights."""

    def __init__(self, what):
        super().__init__()
        self.line, self.what = nn.Linear(4, 2), what
        torch.manual_seed(0)
        nn.init.normal_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, x):
        return self.line(x)


class Unsaved(Holds):
    def __init__(self, what):
        super().__init__(None)
        self.register_buffer("temperature", torch.tensor(what), persistent=False)


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def times(factor):
    return lambda x: factor * x


def hooked(factor):
    net = Holds(None)
    net.line.register_forward_hook(lambda *args: factor * args[-1])
    return net


def patched(sign):
    net = Holds(None)
    net.forward = (lambda x: -net.line(x)) if sign < 0 else (lambda x: net.line(x))
    return net


def guarded(sign):
    class Guarded(Holds):
        @torch.no_grad()
        def forward(self, x):
            return self.line(x) if sign > 0 else -self.line(x)

    return Guarded(None)


PAIRS = {
    "a number": (Holds(1.0), Holds(-1.0)),
    "a function of torch": (Holds(F.relu), Holds(F.gelu)),
    "a function with its values": (Holds(times(1)), Holds(times(2))),
    "a partial": (Holds(functools.partial(F.leaky_relu, negative_slope=0.1)), Holds(functools.partial(F.leaky_relu))),
    "a list": (Holds([0, {"slope": 0.1}]), Holds([0, {"slope": 0.2}])),
    "bytes": (Holds(b"one"), Holds(b"two")),
    "numpy": (Holds(np.arange(3)), Holds(np.arange(3) + 1)),
    "a tensor": (Holds(torch.zeros(2)), Holds(torch.ones(2))),
    "a module in a list": (Holds([nn.LeakyReLU(0.1)]), Holds([nn.LeakyReLU(0.2)])),
    "an object": (Holds(Slots(1)), Holds(Slots(2))),
    "a buffer that is not saved": (Unsaved(1.0), Unsaved(2.0)),
    "a hook": (hooked(1), hooked(2)),
    "a method of one net": (patched(1), patched(-1)),
    "a method behind a decorator": (guarded(1), guarded(-1)),
    "other shapes of the same numbers": (Holds(torch.zeros(2, 3)), Holds(torch.zeros(3, 2))),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_nets_that_answer_otherwise_have_another_hash(pair):
    one, other = PAIRS[pair]
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one) == fingerprint(copy.deepcopy(one)), (
        "the same net has the same"
    )


def test_weights_and_order_count_and_modes_do_not():
    one, other = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    other.load_state_dict(one.state_dict())
    assert fingerprint(one.train()) == fingerprint(other.eval())
    with torch.no_grad():
        other[0].bias[0] += 1e-3
    assert fingerprint(one, other) != fingerprint(other, one) != fingerprint(one)


def test_objects_that_hold_each_other_end():
    one, other = Slots(None), Slots(None)
    one.value, other.value = other, one
    assert fingerprint(Holds(one)) == fingerprint(Holds(other))


def test_autoattack_keeps_no_answer_of_a_net_whose_settings_changed(tmp_path):
    class Signed(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x):
            return self.sign * (x.flatten(1)[:, :10] - 0.5)

    images = some_images(8)
    kept = [autoattack(Signed(sign), images, eps=1e-6, folder=tmp_path).after() for sign in (1.0, -1.0)]
    assert kept[1] == autoattack(Signed(-1.0), images, eps=1e-6).after() != kept[0]
