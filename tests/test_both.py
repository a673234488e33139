"""PGD on two losses: the worst case of each image."""

import torch
from torch import nn

from ironrank.attacks import PGD
from ironrank.judge import withstood
from ironrank.judge.both import BothPGD
from small_nets import small_net, some_images


class Times(nn.Module):
    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x)


def test_large_logits_hide_nothing():
    net, images = small_net(epochs=2), some_images(96)
    left = {
        (factor, kind): withstood(Times(net, factor), images, kind(eps=0.03, steps=10), 0)
        for factor in (1.0, 1e3)
        for kind in (PGD, BothPGD)
    }
    assert left[1e3, PGD].sum() > left[1.0, PGD].sum() + 5, "cross-entropy alone stalls there"
    assert left[1e3, BothPGD].sum() <= left[1.0, BothPGD].sum() + 1
    assert left[1.0, BothPGD].sum() <= left[1.0, PGD].sum()


def test_no_image_withstands_that_one_of_the_losses_breaks():
    net, images = small_net(epochs=2), some_images(96)
    both = withstood(net, images, BothPGD(eps=0.03, steps=10, random_start=False), 0)
    for loss in ("ce", "margin"):
        alone = withstood(net, images, PGD(eps=0.03, steps=10, random_start=False, loss=loss, stop=True), 0)
        assert not (both & ~alone).any()


def test_points_stay_in_ball_and_box():
    net, images = small_net(epochs=1), some_images(16)
    x = images.pixels(torch.arange(16))
    moved = BothPGD(eps=0.1, steps=4)(net, x, images.y)
    assert (moved - x).abs().max() <= 0.1 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
