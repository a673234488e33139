"""Averaged weights: the mean against a slow twin, what is judged and saved, and constraints that hold there."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cases import METHOD_CASES, Fit, holds_band, tiny_run
from ironrank.artifact import load_model
from ironrank.data import mix, split
from ironrank.errors import IronrankError
from ironrank.judge.accuracy import accuracy, robust_accuracy
from ironrank.linalg import truncated_svd
from ironrank.methods import UV, CondLR, Dense
from ironrank.optim import SGD
from ironrank.surgery import factored_layers
from ironrank.training import train
from ironrank.training.average import Average, decay_at
from ironrank.training.checkpoint import load_checkpoint


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def last_line(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


# ---- the mean


def test_the_mean_agrees_with_its_twin():
    """Numpy in float64, over what the weights and statistics were after each step."""
    net = normed().double()
    average, optimizer = Average(net, 0.8), torch.optim.SGD(net.parameters(), lr=0.5)
    twin = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    for t in range(60):
        optimizer.zero_grad()
        net(torch.randn(8, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        average.update(net, t)
        d = min(0.8, (1 + t) / (10 + t))
        for key, value in net.state_dict().items():
            twin[key] = d * twin[key] + (1 - d) * value.numpy()
    counter = twin.pop("1.num_batches_tracked")
    assert counter != 60 and average.tensors.pop("1.num_batches_tracked") == 60, "a counter is copied"
    assert average.tensors.keys() == twin.keys()
    for key, value in average.tensors.items():
        np.testing.assert_allclose(value, twin[key], rtol=1e-10)
        assert (value - net.state_dict()[key]).abs().max() > 1e-4, "the mean is not the latest"


def test_the_decay_grows_to_its_limit():
    decays = [decay_at(0.99, t) for t in range(2000)]
    assert decays[0] == 0.1 and decays[-1] == 0.99
    assert all(a <= b for a, b in itertools.pairwise(decays))


def test_the_initial_weights_are_soon_forgotten():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    average = Average(net, 0.9995)
    nn.init.zeros_(net.weight)
    for t in range(20):
        average.update(net, t)
    assert average.tensors["weight"].item() < 1e-6


def test_the_mean_of_a_layer_whose_rank_changes_is_that_of_its_weight():
    net = CondLR(keep=0.5).prepare(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).double())
    average, before = Average(net, 0.75), net[0].matrix().detach().clone()
    with torch.no_grad():
        net[1].S.add_(1.0)
    usv = truncated_svd(torch.randn(8, 8, dtype=torch.float64), 2)
    net[0].set_factors(usv)
    average.update(net, 10**6)
    mean = 0.75 * before + 0.25 * usv.dense()
    torch.testing.assert_close(average.tensors["0.weight"], mean)
    assert "0.U" not in average.tensors and average.tensors["1.S"].shape == net[1].S.shape
    assert (average.tensors["1.S"] - net[1].S).abs().min() > 0.5
    judged = average.model(net, Dense())[0]
    torch.testing.assert_close(judged.matrix(), truncated_svd(mean, 2).dense())
    again = Average(net, 0.75, dict(average.tensors))
    for each in (average, again):
        each.update(net, 10**6)
    assert average.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(value, again.tensors[key]) for key, value in average.tensors.items())


def test_the_mean_of_two_factors_whose_rank_changes_starts_anew():
    net = UV(keep=0.5).prepare(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    average = Average(net, 0.9)
    net[0].set_factors(type(net[0].factors())(torch.ones(8, 2), torch.ones(8, 2)))
    average.update(net, 1000)
    assert torch.equal(average.tensors["0.U"], torch.ones(8, 2)) and average.model(net, Dense())[0].rank == 2


def test_the_model_stays_as_it_is():
    net = CondLR(keep=0.5).prepare(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    average = Average(net, 0.9)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    mean = {key: value.clone() for key, value in average.tensors.items()}
    judged = average.model(net, CondLR())
    with torch.no_grad():
        for parameter in judged.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(torch.equal(value, mean[key]) for key, value in average.tensors.items())


@pytest.mark.parametrize("wrong", [1.0, -0.1])
def test_the_decay_is_bounded(wrong, mnist):
    with pytest.raises(IronrankError, match=r"run\.average"):
        tiny_run(mnist, average=wrong)


# ---- factors


@pytest.mark.parametrize("tau", [0.0, 0.1, 2.0])
def test_the_average_of_condlr_is_inside_its_constraint_set(tau):
    fit = Fit(CondLR(keep=0.5, tau=tau), SGD(lr=0.2, momentum=0.9), torch.float64)
    average = Average(fit.model, 0.95)
    for t in range(40):
        fit.step()
        average.update(fit.model, t)
    bases = [value for key, value in average.tensors.items() if key.endswith((".U", ".V"))]
    short = max((1 - basis.norm(dim=0).min()).item() for basis in bases)
    assert short > 1e-4, "the bases have moved: the plain mean of them is not orthonormal"
    holds_band(average.model(fit.model, fit.method), fit.method)


def test_the_mean_of_factors_is_near_the_mean_of_weights():
    """To first order; what is left is small against what averaging does."""
    fit = Fit(CondLR(keep=0.5, tau=1000.0), SGD(lr=0.05, momentum=0.0), torch.float64)
    average, means = Average(fit.model, 0.9), {}
    for t in range(60):
        fit.step()
        average.update(fit.model, t)
        for name, layer in factored_layers(fit.model):
            W, d = layer.matrix().detach(), decay_at(0.9, t)
            means[name] = W if name not in means else d * means[name] + (1 - d) * W
    judged = dict(factored_layers(average.model(fit.model, fit.method)))
    for name, layer in factored_layers(fit.model):
        left = (judged[name].matrix() - means[name]).norm() / (layer.matrix() - means[name]).norm()
        assert left < 0.05, f"{name}: {left:.3f}"


def test_going_back_to_orthonormal_bases_changes_no_output():
    """With a band wide enough to clamp nothing, the judged model is the plain product of the means."""
    fit = Fit(CondLR(keep=0.5, tau=1e6), SGD(lr=0.2, momentum=0.9), torch.float64)
    average = Average(fit.model, 0.95)
    for t in range(20):
        fit.step()
        average.update(fit.model, t)
    for name, layer in factored_layers(average.model(fit.model, fit.method)):
        U, S, V = (average.tensors[f"{name}.{key}"] for key in "USV")
        torch.testing.assert_close(layer.matrix(), U @ S @ V.mT, rtol=1e-9, atol=1e-12)


# ---- runs


@pytest.mark.parametrize("method", METHOD_CASES)
def test_what_is_judged_is_what_is_saved(method, mnist, tmp_path):
    run = tiny_run(mnist, method=METHOD_CASES[method].low, average=0.7, epochs=3)
    folder = train(run, tmp_path / "run")
    _, held_out = split(run.data.load("train"), 0.25)
    model, line = load_model(folder, "last"), last_line(folder)
    METHOD_CASES[method].holds(model, run.method)
    METHOD_CASES[method].holds(load_model(folder, "best"), run.method)
    latest = load_checkpoint(folder / "checkpoint.safetensors").model
    saved = load_file(folder / "last.safetensors")
    if method in ("dense", "svd", "uv", "condlr"):  # their `finish` leaves what was judged
        assert accuracy(model, held_out) == line["val_clean"]
        assert robust_accuracy(model, held_out, run.validate, mix(run.seed, "validate")) == line["val_robust"]
        assert not any(torch.equal(saved[key], latest[key]) for key in saved if key.endswith("weight"))


def test_the_saved_weights_of_a_dense_run_are_the_mean(mnist, tmp_path):
    folder = train(tiny_run(mnist, average=0.7), tmp_path / "run")
    checkpoint, last = (
        load_checkpoint(folder / "checkpoint.safetensors"),
        load_file(folder / "last.safetensors"),
    )
    assert checkpoint.average.keys() == last.keys() == checkpoint.model.keys()
    assert all(torch.equal(checkpoint.average[key], last[key]) for key in last)
    plain = train(tiny_run(mnist), tmp_path / "plain")
    assert load_checkpoint(plain / "checkpoint.safetensors").average == {}
    trained = load_file(plain / "last.safetensors")
    assert all(torch.equal(checkpoint.model[key], trained[key]) for key in trained), (
        "training itself is the same"
    )


@pytest.mark.parametrize("method", ["dense", "condlr"])
def test_a_resumed_average_goes_on_to_the_bit(method, mnist, tmp_path):
    run = tiny_run(mnist, method=METHOD_CASES[method].low, average=0.9, epochs=3)
    straight = train(run, tmp_path / "straight")
    stopped = train(run, tmp_path / "stopped", until=1)
    train(run, stopped, resume=True, until=2)
    train(run, stopped, resume=True)
    for file in ("last.safetensors", "model.safetensors"):
        a, b = load_file(straight / file), load_file(stopped / file)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_best_weights_are_the_averaged_ones_of_that_epoch(mnist, tmp_path, monkeypatch):
    scores = iter([0.2, 0.9, 0.1])
    monkeypatch.setattr("ironrank.training.loop.robust_accuracy", lambda *_, **__: next(scores))
    run = tiny_run(mnist, average=0.9, epochs=3)
    folder = train(run, tmp_path / "run")
    scores = iter([0.2, 0.9])
    second = train(dataclasses.replace(run), tmp_path / "second", until=2)
    mean = load_checkpoint(second / "checkpoint.safetensors").average
    best = load_file(folder / "model.safetensors")
    assert all(torch.equal(best[key], mean[key]) for key in best)
