"""Eps that grows over the first steps: what each step sees, what is remembered, and where the recipes use it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cases import tiny_run
from ironrank.attacks import FGSM, FGSMRS, PGD
from ironrank.comparison.question import stages_of
from ironrank.compression import compress_run
from ironrank.config import build_run
from ironrank.objectives import Madry, Memory, Trades
from ironrank.recipes import RECIPES
from ironrank.training import train
from ironrank.training.looking import Look


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Recorder(nn.Module):
    """A linear net that keeps the largest distance of what it sees from 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 3), 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = max(self.seen, float((x.detach() - 0.5).abs().max()))
        return self.layer(x)


def largest(objective: Madry, memory: Memory | None) -> float:
    torch.manual_seed(0)
    net = Recorder()
    objective(net, torch.full((2, 4), 0.5), torch.tensor([0, 1]), memory=memory)
    return net.seen


def test_eps_grows_in_equal_steps_to_its_full_size():
    objective = Madry(attack=FGSM(eps=0.2), ramp=3)
    memory, found = objective.begin(lambda folder: nn.Identity()), []
    for _ in range(6):
        found += [
            largest(objective, memory),
            largest(objective, memory),
        ]  # the same however often it is asked
        objective.advance(memory)
    torch.testing.assert_close(found[::2], [0.05, 0.1, 0.15, 0.2, 0.2, 0.2], atol=1e-6, rtol=0)
    assert found[::2] == found[1::2]
    assert objective.threat == ("Linf", 0.2)


def test_without_a_memory_or_a_ramp_eps_is_full():
    assert largest(Madry(attack=FGSM(eps=0.2), ramp=3), None) > 0.199
    plain = Madry(attack=FGSM(eps=0.2))
    memory = plain.begin(lambda folder: nn.Identity())
    assert not memory.tensors and largest(plain, memory) > 0.199


def test_the_count_is_what_a_checkpoint_holds():
    objective = Trades(attack=FGSMRS(eps=0.2), ramp=3)
    memory = objective.begin(lambda folder: nn.Identity())
    objective.advance(memory)
    resumed = objective.begin(lambda folder: nn.Identity())
    resumed.tensors.update(memory.tensors)
    assert largest(objective, resumed) == largest(objective, memory) < 0.11


def test_the_steps_of_an_attack_shrink_with_its_ball():
    attack = PGD(eps=0.3, steps=3, step_size=0.15).scaled(0.5)
    assert (attack.eps, attack.step_size, attack.steps) == (0.15, 0.075, 3)
    assert PGD(eps=0.3).scaled(0.5).step_size is None and FGSM(eps=0.3).scaled(0.5).eps == 0.15


def test_only_trainings_from_random_weights_ramp():
    # a third of 12 or 6 epochs of 57,000 images, in batches of 128
    scratch = {mode: [1781] for mode in ("dense", "narrow", "condlr")}
    staged = {"svd": [0, 890], "cstar": [0, 0, 890], "cstar+cond": [0, 0, 890]}
    for mode, ramps in (scratch | staged).items():
        run, found = RECIPES["cstar/lenet5-mnist"](mode=mode, epochs=12), []
        while run is not None:
            found.append(run.objective.ramp)
            run = run.start
        assert found == ramps, mode


def test_an_eps_that_somebody_sets_to_grow_grows_once():
    run = build_run("cstar/lenet5-mnist", ["mode=cstar", "objective.ramp=900"])
    assert [stage.objective.ramp for stage in stages_of(run)] == [900, 0, 0]
    assert build_run("cstar/lenet5-mnist", ["mode=dense", "objective.ramp=900"]).objective.ramp == 900


def test_what_is_compressed_has_learned_at_the_full_eps(mnist, tmp_path):
    ramping = Madry(attack=FGSM(eps=0.1), ramp=3)
    dense = train(tiny_run(mnist, objective=ramping, epochs=1), tmp_path / "dense")
    for method in ("svd", "cstar"):
        run = compress_run(dense, method, budget="params=2x")
        assert all(stage.objective == Madry(attack=FGSM(eps=0.1)) for stage in stages_of(run))
    again = compress_run(dense, "cstar", ["objective.ramp=2"], budget="params=2x")
    assert [stage.objective.ramp for stage in stages_of(again)] == [2, 0]
    assert compress_run(dense, "svd", objective=ramping, budget="params=2x").objective == ramping


def test_the_guard_looks_at_the_ball_that_is_trained_in(mnist, tmp_path, monkeypatch):
    seen = []

    def fake(model, images, threat, seed):
        seen.append(threat)
        return Look(0.5, 0.5)

    monkeypatch.setattr("ironrank.training.loop.look", fake)
    run = tiny_run(mnist, objective=Madry(attack=FGSM(eps=0.2), ramp=9), epochs=3)
    folder = train(run, tmp_path / "run")
    steps = [line["step"] for line in lines_of(folder) if "epoch" in line]
    assert steps[0] < 9 < steps[-1], "eps grows beyond the first epoch, and has its full size at the end"
    assert seen == [("Linf", pytest.approx(0.2 * min(1, (step + 1) / 10))) for step in steps]
