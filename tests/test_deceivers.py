"""Nets built to deceive: broken as far as the net inside, or refused by the name of a test; honest ones pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deceivers import DECEIVERS
from ironrank.data import MNIST
from ironrank.judge.audit import audit
from late_deceivers import LATE
from small_nets import TINY, small_net, some_images

EPS = 0.07
SLACK = 0.03  # of robust accuracy: two images of 64
NAMED = {
    "QuantizedInput": "gradient not zero", "FineQuantizedInput": "gradient not zero",
    "QuantizedInputStraight": "gradient is the slope", "QuantizedActivations": "gradient not zero",
    "SaturatedTanh": "gradient not zero", "OneHot": "answers move with the input", "RandomLayer": "deterministic",
    "DropoutAlways": "deterministic", "SeededNoise": "gradient is the slope", "Detached": "gradient exists",
    "PartlyDetached": "gradient is the slope", "WrongGradient": "gradient is the slope",
    "FlippedByHook": "gradient is the slope", "Sine": "gradient leads uphill", "BatchMean": "independent of the batch",
    "LooksWhoAsks": "same for every caller", "Restores": "input left alone", "LastInput": "answers move with the input",
    "Counter": "same after the attacks", "WrongLater": "slopes hold under attack",
    "LooksAtWeights": "gradients hold under attack", "SureUnderAttack": "answers hold under attack",
    "Shelf": "slopes hold under attack", "Moat": "no jump at the boundary", "Decoy": "no jump at the boundary",
}  # fmt: skip
BROKEN = (
    "HugeLogits",
    "TinyLogits",
    "Softmax",
    "Clipped",
    "TwoFaced",
    "Float64",
)  # as honest as the net inside: no test may fail


@pytest.fixture(scope="module")
def inside() -> nn.Module:
    return small_net()


@pytest.fixture(scope="module")
def undefended(inside: nn.Module) -> float:
    found = audit(inside, some_images(64), eps=EPS, level=TINY)
    assert found["verdict"]["kind"] == "robust", found["verdict"]["text"]
    assert found["robust"]["accuracy"] < found["clean"] - 0.2  # there is something to hide
    return found["robust"]["accuracy"]


@pytest.mark.parametrize("name", DECEIVERS | LATE)
def test_no_deceiver_gains(name: str, inside: nn.Module, undefended: float) -> None:
    found = audit((DECEIVERS | LATE)[name](inside), some_images(64), eps=EPS, level=TINY)
    verdict, robust = found["verdict"], found["robust"]
    assert (robust is None) == (verdict["kind"] == "not proven") == bool(verdict["failed"])
    assert robust is None or robust["accuracy"] <= undefended + SLACK
    if name in NAMED:
        assert NAMED[name] in verdict["failed"], verdict["text"]
        assert verdict["text"].startswith(f"not proven: {verdict['failed'][0]} (")
    if name in BROKEN:
        assert robust is not None, verdict["text"]


def test_an_honest_robust_net_passes() -> None:
    net = small_net(eps=0.1)
    found = audit(net, some_images(), eps=EPS, level=TINY)
    assert found["verdict"]["kind"] == "robust", found["verdict"]["text"]
    assert found["robust"]["accuracy"] > 0.35 and found["flags"] == []


@pytest.mark.shared
def test_a_published_robust_net_passes(shared_data: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    net.load_state_dict(load_file(shared_data.parent / "weights" / "mnist_cnn16-32_pgd_linf0.3.safetensors"))
    found = audit(net, MNIST(folder=str(shared_data)), eps=0.3, level=TINY)
    assert found["verdict"]["kind"] == "robust", found["verdict"]["text"]
    assert 0.75 < found["robust"]["accuracy"] < 1.0
    assert torch.tensor([point["accuracy"] for point in found["curve"]]).diff().le(0.02).all()
