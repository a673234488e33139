"""Certified nets: none moves further than its bound, float32 is within its own, and no certified sample is broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.attacks import FMN
from ironrank.certificates import certify
from ironrank.certificates.walk import Walk
from ironrank.data import MNIST, FashionSmall, Images
from ironrank.data.base import DataSpec
from ironrank.files import read_tensors
from ironrank.models import PreActResNet18, ResNet20, WideResNet
from ironrank.models.blocks import BasicBlock
from ironrank.surgery import deploy, factorize


def settled(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The net with running statistics of its own inputs, and batch norms that are not the identity."""
    net.train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
        for _ in range(3):
            net(torch.rand(16, *shape))
    return net.eval()


# ---- nets: no pair of images is further apart than the bound says, and float32 is not further off


class Own(nn.Module):
    """A module of someone's own: functions, a residual branch, strides, groups, padding, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.side = nn.Conv2d(8, 4, 1, bias=False)
        self.fc = nn.Linear(12 * 4, 10)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn(self.conv1(2 * x - 1)), 0.1)
        x = x + self.scale * self.conv2(F.gelu(x))
        x = torch.cat([F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(self.side(x), 2)], dim=1)
        return self.fc(x.view(x.size(0), -1))


SPEC = DataSpec((3, 8, 8), 10, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
NETS = {
    "own": (Own, (3, 8, 8)),
    "resnet20-pad": (lambda: ResNet20(width=0.2).build(SPEC), (3, 8, 8)),
    "resnet20-conv": (lambda: ResNet20(width=0.2, shortcut="conv", slope=0.1).build(SPEC), (3, 8, 8)),
    "preact": (lambda: PreActResNet18(width=0.06, last_norm=True).build(SPEC), (3, 8, 8)),
    "wrn": (lambda: WideResNet(depth=10, widen=1, width=0.5).build(SPEC), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_nets_move_less_than_their_bound_and_float32_is_within_its_own(name: str) -> None:
    make, shape = NETS[name]
    torch.manual_seed(0)
    net = settled(make(), shape)
    walk, x = Walk(net), torch.rand(4, *shape)
    with torch.no_grad():
        start = walk(x.double())
        executed = net(x).double()
        torch.testing.assert_close(start.x, copy.deepcopy(net).double()(x.double()))
        assert ((executed - start.x).norm(dim=1) <= start.error).all()
    double, point = copy.deepcopy(net).double(), x[0].double()
    jacobian = torch.autograd.functional.jacobian(lambda p: double(p.unsqueeze(0))[0], point).flatten(1)
    steepest = torch.linalg.matrix_norm(jacobian, 2).item()
    assert 0 < steepest <= walk.lipschitz
    for row in walk.rows():
        assert row["lipschitz"] > 0, row


def test_batch_norm_folds_into_the_layer_before_it() -> None:
    torch.manual_seed(0)
    net = settled(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)),
        (2, 4, 4),
    )
    walk = Walk(net)
    walk(torch.rand(1, 2, 4, 4).double())
    folded = nn.utils.fusion.fuse_conv_bn_eval(net[0], net[1])
    units = torch.eye(32).view(32, 2, 4, 4).double()
    exact = torch.linalg.matrix_norm(
        F.conv2d(units, folded.weight.detach().double(), padding=1).flatten(1), 2
    ).item()
    conv, norm = walk.rows()[:2]
    assert exact * (1 - 1e-6) <= norm["lipschitz"] <= exact * 1.001 < conv["bound"] * norm["bound"]
    assert norm["method"] == "diagonal, folded"


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2"])
def test_thin_layers_have_the_norm_of_the_layer_that_they_stand_for(form: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    thin = factorize(net, ranks={"0": 3, "2": 5}, exclude=["4"], form=form)
    walks = [Walk(deploy(thin, dense=dense).eval()) for dense in (None, True)]
    for walk in walks:
        walk(torch.rand(2, 4, 6, 6).double())
    assert len(walks[0].rows()) > len(walks[1].rows())
    assert walks[0].lipschitz == pytest.approx(walks[1].lipschitz, rel=2e-3)


# ---- no certified sample is broken


def halves(n: int, seed: int) -> Images:
    """Which half of an image is brighter, under noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randint(0, 100, (n, 1, 8, 8), generator=generator)
    x[y == 0, :, :4] += 150
    x[y == 1, :, 4:] += 150
    return Images(x.to(torch.uint8), y)


def trained(kind: str) -> nn.Module:
    torch.manual_seed(0)
    first = {
        "plain": lambda: [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
        "strided": lambda: [nn.Conv2d(1, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.1)],
        "residual": lambda: [nn.Conv2d(1, 4, 2, 2), BasicBlock(4, 4, 1, 0.0)],
    }[kind]()  # fmt: skip
    net, images = nn.Sequential(*first, nn.Flatten(), nn.Linear(64, 2)), halves(64, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=0.02)
    x = images.pixels(torch.arange(64))
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(net(x + 0.1 * torch.randn_like(x)), images.y).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("kind", ["plain", "strided", "residual"])
def test_no_certified_sample_is_broken_at_its_radius(kind: str) -> None:
    net, images = trained(kind), halves(24, seed=1)
    found = certify(net, images, radii=(0.1,))
    assert found["verdict"] == "certified"
    assert found["certified"][0] > 0.5
    radius, x = torch.tensor(found["radius"]), images.pixels(torch.arange(24))
    for seed in range(3):
        for far in (1.0, 0.999):
            assert broken(net, x, images.y, far * radius, seed) == 0
    assert (
        broken(net, x, images.y, 12 * radius, 0) > 12
    )  # the attack is able: at a multiple it does break samples


def images_inside() -> tuple[nn.Module, Images]:
    """A strided net after a short training on the images inside the package, and test images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(392, 10),
    )
    train, optimizer = FashionSmall().load("train"), torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(60):
        optimizer.zero_grad()
        chosen = torch.arange(64 * step, 64 * step + 64) % len(train)
        F.cross_entropy(net(train.pixels(chosen)), train.y[chosen]).backward()
        optimizer.step()
    return net.eval(), FashionSmall().load("test").first(30)


def digits() -> tuple[nn.Module, Images]:
    """A trained net from elsewhere, robust in Linf, and digits."""
    net = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))  # fmt: skip
    net.load_state_dict(read_tensors(SHARED / "weights/mnist_cnn16-32_provable_linf0.1.safetensors")[0])
    return net.eval(), MNIST(folder=str(SHARED / "data/mnist")).load("test").first(30)


SHARED = Path(__file__).parents[2] / "shared"
PICTURES = [images_inside, pytest.param(digits, marks=pytest.mark.shared)]


@pytest.mark.parametrize("make", PICTURES)
def test_no_certified_picture_is_broken_at_its_radius(make: Callable[[], tuple[nn.Module, Images]]) -> None:
    if make is digits and not SHARED.is_dir():
        pytest.skip("no shared folder")
    net, images = make()
    found = certify(net, images, radii=(0.01,))
    assert found["certified"][0] > 0.3
    radius, x = torch.tensor(found["radius"]), images.pixels(torch.arange(len(images)))
    assert broken(net, x, images.y, radius, seed=0) == 0
    near = FMN(norm="L2", steps=40).distances(net, x, images.y)
    assert (near >= radius)[radius > 0].all()
    assert near.isfinite().double().mean() > 0.9  # the search is able


def broken(net: nn.Module, x: Tensor, y: Tensor, eps: Tensor, seed: int, steps: int = 30) -> int:
    """PGD in L2 on the margin, each sample in a ball of its own and outside the box as well; how many it breaks."""
    each, rows = eps.view(-1, 1, 1, 1), torch.arange(len(x))
    delta = each * F.normalize(
        torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).flatten(1)
    ).view_as(x)
    lost = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(steps):
        point = (x + delta).requires_grad_()
        logits = net(point)
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        lost |= (others >= logits[rows, y]) & (delta.flatten(1).norm(dim=1) <= eps)
        (gradient,) = torch.autograd.grad((others - logits[rows, y]).sum(), point)
        delta = delta + 5 / steps * each * F.normalize(gradient.flatten(1)).view_as(x)
        delta = delta * (each / delta.flatten(1).norm(dim=1).view_as(each)).clamp(max=1) * (1 - 1e-7)
    return int((lost & (eps > 0)).sum())
