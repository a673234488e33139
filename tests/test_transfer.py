"""The transfer attack: known answers where source and target differ in a known way."""

import torch
from torch import nn

from ironrank.attacks import PGD, LowRankPGD
from ironrank.data import Images
from ironrank.judge import transferred, withstood

SHADES = torch.tensor([30, 110, 145, 225], dtype=torch.uint8)  # dark, darkish, brightish, bright


def images(n=40):
    y = torch.arange(n) % 4
    return Images(SHADES[y].reshape(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous(), (y >= 2).long())


def threshold(sign=1.0, noise=0.0):
    """Class 1 if the mean is above one half; with sign -1 its gradients point the other way."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(sign * torch.tensor([[-1.0], [1.0]]).expand(2, 16) / 16)
        net[1].bias.copy_(sign * torch.tensor([0.5, -0.5]) + noise)
    return net


ATTACK = PGD(eps=0.1, steps=5)  # turns the middle shades round, which are 0.07 from one half


def test_from_a_net_to_itself_it_is_the_white_box_attack():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    for attack in (ATTACK, LowRankPGD(eps=0.3, rank=1, steps=3)):
        assert torch.equal(transferred(net, net, images(), attack, 3), withstood(net, images(), attack, 3))


def test_examples_of_an_equal_net_turn_the_near_images_round():
    survivors = transferred(threshold(noise=7.0), threshold(), images(), ATTACK, 0)
    assert survivors.tolist() == [True, False, False, True] * 10


def test_examples_of_an_opposite_net_do_no_harm():
    assert transferred(threshold(-1.0), threshold(), images(), ATTACK, 0).all()
    assert not transferred(threshold(), threshold(-1.0), images(), ATTACK, 0).any(), "wrong from the start"


def test_examples_follow_the_source_alone():
    class Watched(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.asked = net, []

        def forward(self, x):
            self.asked.append(x.requires_grad)
            return self.net(x)

    source, target = Watched(threshold()), Watched(threshold())
    transferred(source, target, images(4), ATTACK, 0)
    assert sum(source.asked) == ATTACK.steps and target.asked == [False, False]


def test_both_nets_are_left_as_they_were():
    nets = [nn.Sequential(nn.BatchNorm2d(1), threshold(), nn.Dropout(0.5)).train() for _ in range(2)]
    before = [{key: value.clone() for key, value in net.state_dict().items()} for net in nets]
    transferred(*nets, images(8), ATTACK, 0)
    for net, state in zip(nets, before, strict=True):
        assert all(module.training for module in net.modules())
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
