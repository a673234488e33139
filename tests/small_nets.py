"""A small net for the data inside the package: undefended, or trained against an adversary. It trains in seconds."""

from __future__ import annotations

import torch
from torch import nn

from ironrank.attacks import PGD
from ironrank.data import FashionSmall, Images
from ironrank.judge.ensemble import Level

TINY = Level(images=96, probe=64, block=16, steps=8, queries=30, draws=20, targets=2, curve=(0.5, 2.0))


def small_net(eps: float = 0.0, epochs: int = 4) -> nn.Sequential:
    """Two layers on halved images; with eps, trained on what PGD makes of them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer, train = torch.optim.Adam(net.parameters(), 3e-3), FashionSmall().load("train").first(4000)
    attack = PGD(eps=eps, steps=3, keep="last")
    for _ in range(epochs):
        for batch in torch.randperm(len(train)).split(100):
            x, y = train.pixels(batch), train.y[batch]
            loss = nn.functional.cross_entropy(net(attack(net, x, y) if eps else x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def some_images(n: int = 96) -> Images:
    """Test images of all classes."""
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    return FashionSmall().load("test").take(order[:n])
