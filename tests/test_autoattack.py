"""AutoAttack: ours is the package's, image by image; few classes, resuming, shards, flags, and no trace."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch
from torch import nn

from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.judge.adapter import fit
from ironrank.judge.autoattack import SURVIVED, WRONG, autoattack
from weights import mnist_images, mnist_net

room = sys.modules[autoattack.__module__]  # the room's door gives the function this name
pyautoattack = pytest.importorskip("pyautoattack")


def problem(classes=10, n=24, side=6, seed=0):
    """A small net and images of which it gets most right, and which it loses at different radii."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * (side // 2) ** 2, classes),
    )  # fmt: skip
    images = Images(
        torch.randint(256, (n, 1, side, side), dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    )
    with torch.no_grad():
        y = net.eval()(images.pixels(torch.arange(n))).argmax(1)
    y[n // 8] = (y[n // 8] + 1) % classes
    return net.train(), Images(images.x, y)


@pytest.fixture
def quick(monkeypatch):
    """The package with few steps, in both places: AutoAttack as published takes 100 of each kind and 5,000 queries."""

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for part in (self.apgd, self.apgd_targeted):
                part.n_iter = 8
            self.fab.n_iter, self.square.n_queries = 4, 20

    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
    return Quick


def by_itself(kind, net, images, norm, eps, seed, **settings):
    """What the package says when nobody helps it: pixels and whether each image survives."""
    x = images.pixels(torch.arange(len(images)))
    net = net.eval()
    with torch.random.fork_rng():
        attack = kind(net, norm=norm, eps=eps, seed=seed, version="standard", **settings)
        points, _ = attack.run_standard_evaluation(x, images.y, batch_size=len(x))
    with torch.no_grad():
        return points, net(points).argmax(1) == images.y


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.02), ("L2", 0.08)])
def test_it_equals_the_package_by_itself(quick, norm, eps):
    net, images = problem()
    points, survived = by_itself(quick, net, images, norm, eps, seed=5)
    ours = autoattack(net, images, norm, eps, seed=5)
    assert torch.equal(ours.survivors, survived) and 0 < survived.sum() < 23
    assert torch.equal(ours.adversarial, points)
    assert ours.broken_by[3] == WRONG and (ours.broken_by >= 0).any()
    assert ours.after()["clean"] == 23 / 24 and ours.after()["square"] == survived.double().mean().item()
    assert ours.attacks == ("apgd-ce", "apgd-t", "fab-t", "square") and ours.package.startswith(
        "pyautoattack 0."
    )


def test_nets_that_work_in_channels_last(quick):
    """The package takes gradients apart with ``view``; images of three channels then come back in another order."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(54, 10)).eval()
    images = Images(torch.randint(256, (12, 3, 6, 6), dtype=torch.uint8), torch.zeros(12, dtype=torch.int64))
    with torch.no_grad():
        images = Images(images.x, net(images.pixels(torch.arange(12))).argmax(1))
    plain = autoattack(net, images, eps=0.15)
    permuted = (
        images.x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    )  # as CIFAR is read from its files
    strided = autoattack(net.to(memory_format=torch.channels_last), Images(permuted, images.y), eps=0.15)
    assert torch.equal(strided.survivors, plain.survivors) and 0 < plain.survivors.sum() < 12


@pytest.mark.shared
@pytest.mark.slow
def test_it_equals_the_package_on_a_trained_net_with_its_own_settings():
    net, images = mnist_net(), mnist_images(16)
    points, survived = by_itself(pyautoattack.AutoAttack, net, images, "Linf", 0.32, seed=1)
    ours = autoattack(net, images, "Linf", 0.32, seed=1)
    assert torch.equal(ours.survivors, survived) and torch.equal(ours.adversarial, points)


@pytest.mark.shared
def test_it_equals_the_package_on_a_trained_net(quick):
    net, images = mnist_net(), mnist_images(30)
    points, survived = by_itself(quick, net, images, "Linf", 0.31, seed=1)
    ours = autoattack(net, images, "Linf", 0.31, seed=1)
    assert torch.equal(ours.survivors, survived) and torch.equal(ours.adversarial, points)
    assert 0 < ours.survivors.sum() < 30


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_fewer_than_ten_classes(quick, classes, version):
    net, images = problem(classes)
    eps = 0.2 if classes == 7 else 0.03
    ours = autoattack(net, images, eps=eps, version=version)
    assert 0 < ours.survivors.sum() < 23 and ours.flags == ()
    change = (ours.adversarial - images.pixels(torch.arange(24))).abs().flatten(1).amax(1)
    assert change.max() <= eps + 1e-6 and (change[ours.survivors] == 0).all()
    with torch.no_grad():
        assert torch.equal(net.eval()(ours.adversarial).argmax(1) == images.y, ours.survivors)
    if classes < 10 and version == "standard":
        with pytest.raises(IndexError):
            by_itself(quick, net, images, "Linf", 1e-6, seed=0)


def test_what_runs_where_dlr_does_not_exist_is_the_margin():
    attack = pyautoattack.AutoAttack(lambda x: x, eps=0.1, seed=0)
    fit(attack, 2)
    logits, y = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    attack.apgd_targeted.y_target = torch.tensor([1])
    assert attack.apgd_targeted.dlr_loss_targeted(logits, y).item() == -2
    assert attack.apgd.dlr_loss(logits, y).item() == -2
    assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == 1
    with pytest.raises(IronrankError, match="at least 2"):
        fit(attack, 1)


# ---- batches, files, shards


def test_batches_are_kept_and_found_again(quick, tmp_path, monkeypatch):
    net, images = problem()
    whole = autoattack(net, images, eps=0.02, batch_size=10)
    steps = []

    def stop_after_one(done, total):
        steps.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autoattack(net, images, eps=0.02, batch_size=10, folder=tmp_path, told=stop_after_one)
    assert steps == [(1, 3)] and len(list(tmp_path.iterdir())) == 1
    judged = []
    honest = room._judged
    monkeypatch.setattr(room, "_judged", lambda *args: judged.append(len(args[2])) or honest(*args))
    again = autoattack(net, images, eps=0.02, batch_size=10, folder=tmp_path)
    assert judged == [10, 4], "the first batch is not judged again"
    for key in ("indices", "broken_by", "adversarial"):
        assert torch.equal(getattr(again, key), getattr(whole, key))
    assert again.flags == whole.flags and again.log.count("running") == whole.log.count("running")
    autoattack(net, images, eps=0.02, batch_size=10, folder=tmp_path)
    assert judged == [10, 4]


def test_another_question_is_not_answered_from_the_folder(quick, tmp_path):
    net, images = problem()
    asked = {"eps": 0.02, "seed": 0, "batch_size": 24, "folder": tmp_path}
    autoattack(net, images, **asked)
    for change in ({"eps": 0.021}, {"seed": 1}, {"version": "rand"}):
        autoattack(net, images, **(asked | change))
    with torch.no_grad():
        net[4].bias[0] += 0.1
    autoattack(net, images, **asked)
    autoattack(net, Images(255 - images.x, images.y), **asked)
    assert len(list(tmp_path.iterdir())) == 6


def test_shards_together_are_the_whole(quick, tmp_path):
    net, images = problem()
    parts = [autoattack(net, images, eps=0.02, batch_size=5, shard=(i, 2), folder=tmp_path) for i in range(2)]
    assert [part.indices.tolist()[:6] for part in parts] == [[0, 1, 2, 3, 4, 10], [5, 6, 7, 8, 9, 15]]
    whole = autoattack(net, images, eps=0.02, batch_size=5, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5 and whole.indices.tolist() == list(range(24))
    for part in parts:
        assert torch.equal(whole.broken_by[part.indices], part.broken_by)
    empty = autoattack(net, images, eps=0.02, batch_size=24, shard=(1, 2))
    assert len(empty.survivors) == 0 and empty.flags == ()


# ---- flags and traces


class Rough(nn.Module):
    """Wraps a net in one of the ways that make a judgement worthless."""

    def __init__(self, net, kind):
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x):
        logits = self.net(x)
        if self.kind == "randomness":
            return logits + 0.3 * torch.randn_like(logits)
        if self.kind == "softmax output":
            return logits.softmax(1)
        if self.kind == "zero gradients":
            return (
                logits + 0 * x.sum()
                if self.kind is None
                else logits.detach() + 0 * x.flatten(1).sum(1, keepdim=True)
            )
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            torch.autograd.grad(self.net(here).sum(), here)
        return logits


@pytest.mark.parametrize("flag", ["randomness", "softmax output", "zero gradients", "gradients at inference"])
def test_flags_by_name_and_none_left_over_for_the_next_model(quick, flag):
    net, images = problem()
    assert flag in autoattack(Rough(net, flag), images, eps=0.02).flags
    assert autoattack(net, images, eps=0.02).flags == ()


def test_square_that_beats_the_others_is_a_flag():
    found = [(torch.arange(4), torch.tensor([0, 3, SURVIVED, WRONG]), torch.zeros(4, 1, 1, 1), "")]
    images = Images(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    result = room._together(found, room.VERSIONS["standard"], "", images)
    assert result.flags == ("square beats white-box",)
    assert result.after() == {"clean": 0.75, "apgd-ce": 0.5, "apgd-t": 0.5, "fab-t": 0.5, "square": 0.25}


def test_no_trace(quick, capfd):
    net, images = problem()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    before, trace = torch.get_rng_state(), lambda *_: None
    logger, old = logging.getLogger("auto-attack"), sys.gettrace()
    level = logger.level
    sys.settrace(trace)
    try:
        autoattack(net, images, eps=0.02)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(old)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (logger.level, logger.handlers, logger.propagate) == (level, [], True)
    assert capfd.readouterr() == ("", "")


def test_an_installed_autoattack_will_do(quick, monkeypatch):
    """The other package has other argument names and prints what this one logs."""

    class Other(quick):
        def __init__(self, model, *, norm, eps, seed, version, device):
            super().__init__(model, norm=norm, eps=eps, seed=seed, version=version, device=device)

        def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False):
            print("Warning: it seems to be a randomized defense!")
            points, classes = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs)
            return (points, classes) if return_labels else points

    other = types.ModuleType("autoattack")
    other.AutoAttack = Other
    monkeypatch.setitem(sys.modules, "autoattack", other)
    monkeypatch.setitem(sys.modules, "autoattack.checks", pyautoattack.autoattack.checks)
    net, images = problem()
    found = autoattack(net, images, eps=0.02, package="autoattack")
    assert torch.equal(found.broken_by, autoattack(net, images, eps=0.02).broken_by)
    assert found.flags == ("randomness",) and found.package == "autoattack"


@pytest.mark.parametrize("settings, words", [
    ({"norm": "L1"}, "allowed is Linf, L2"),
    ({"eps": 0}, "allowed is above 0"),
    ({"version": "custom"}, "allowed is standard, plus, rand"),
    ({"shard": (2, 2)}, "0 <= i < n"),
    ({"package": "nowhere"}, r"pip install 'ironrank\[audit\]'"),
])  # fmt: skip
def test_what_it_cannot_do_is_said_in_one_line(settings, words):
    net, images = problem(n=2)
    with pytest.raises(IronrankError, match=words) as error:
        autoattack(net, images, **settings)
    assert "\n" not in str(error.value)


def test_l2_wants_images_of_five_pixels():
    net, images = problem(n=2, side=4)
    with pytest.raises(IronrankError, match="4 x 4"):
        autoattack(net, images, "L2", 0.5)
