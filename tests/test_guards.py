"""Guards: the alarm on a net that fools its own attack, the way back to the bit, and falls that are reported."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cases import tiny_run, with_validation
from ironrank.attacks import FGSM, FGSMRS, NFGSM, PGD
from ironrank.config import override
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.methods import CondLR
from ironrank.models import Given
from ironrank.objectives import Clean, Free, Madry, Trades
from ironrank.optim import SGD
from ironrank.settings import encode
from ironrank.training import Guard, train
from ironrank.training.checkpoint import load_checkpoint
from ironrank.training.guards import strengthened
from ironrank.training.looking import Look, look

WEAK = Madry(attack=FGSM(eps=0.1))
STRONG = Madry(attack=PGD(eps=0.1, steps=2, keep="last"))
FINE, COLLAPSED = Look(0.6, 0.5), Look(0.9, 0.1)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events_of(folder):
    return [line for line in lines_of(folder) if "event" in line]


def same_weights(a, b, file="last.safetensors"):
    one, two = load_file(a / file), load_file(b / file)
    assert one.keys() == two.keys()
    return all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def seen(monkeypatch):
    """Looks that the guard is told, one for each; further ones are fine."""
    told, given = [], []

    def fake(model, images, threat, seed):
        given.append((threat, len(images), seed))
        return told.pop(0) if told else FINE

    monkeypatch.setattr("ironrank.training.loop.look", fake)
    fake.told, fake.given = told, given
    return fake


# ---- the alarm


class Bent(torch.nn.Module):
    """Class 0 but for a ring: one full step of FGSM jumps over it, shorter ones land in it."""

    def forward(self, x):
        far = (x.flatten(1)[:, 0] - 0.5).abs()
        return torch.stack([torch.full_like(far, 0.5), 1 - 400 * (far - 0.05).square()], 1)


def gray(n=16):
    return Images(torch.full((n, 1, 1, 1), 128, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def test_the_gap_of_a_net_that_fools_one_step():
    collapsed = look(Bent(), gray(), ("Linf", 0.1), seed=0)
    assert collapsed == Look(1.0, 0.0) and collapsed.gap == 1.0
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
    assert look(linear, gray(), ("Linf", 0.1), seed=0).gap == 0.0


class Wavy(torch.nn.Module):
    """Knows the bars of the test images; a wave of period eps makes it blind to one full step, and only to that."""

    def __init__(self, eps):
        super().__init__()
        self.eps, self.last = eps, torch.nn.Linear(784, 10)
        bars = torch.zeros(10, 28, 28)
        for k in range(10):
            bars[k, 2 + 2 * k : 5 + 2 * k, 3:12] = 20 / 27
        self.last.weight.data.copy_(bars.flatten(1))
        torch.nn.init.zeros_(self.last.bias)

    def forward(self, x):
        return self.last((x + 0.5 * torch.sin(2 * torch.pi * x / self.eps)).flatten(1))


def test_a_net_that_fools_its_attack_is_caught_in_training(mnist, tmp_path):
    """No stand-in: it stays as it is, so the attack grows until it is as strong as that of the guard."""
    run = tiny_run(mnist, model=Given(), objective=WEAK, optimizer=SGD(lr=1e-9, momentum=0.0), epochs=1)
    folder = train(run, tmp_path / "run", model=Wavy(0.1))
    events = events_of(folder)
    assert [event["goes_on_with"] for event in events] == [f"madry, PGD-{k} Linf" for k in (2, 4, 8, 16)]
    assert all(event["guard_single"] - event["guard_multi"] > Guard().gap for event in events)
    train(dataclasses.replace(run, objective=Clean()), tmp_path / "clean", model=Wavy(0.1))
    assert not events_of(tmp_path / "clean")


@pytest.mark.parametrize("objective, on", [
    (Clean(), False), (Madry(attack=FGSM()), True), (Madry(attack=FGSMRS()), True), (Madry(attack=NFGSM()), True),
    (Madry(attack=PGD(steps=9)), True), (Madry(attack=PGD(steps=10)), False), (Trades(attack=FGSMRS()), True),
    (Free(replays=4), True), (Free(replays=16), True), (Free(replays=64), False),
])  # fmt: skip
def test_it_looks_where_the_attack_is_weaker_than_its_own(objective, on):
    assert Guard().looks(objective) == on
    assert not Guard(gap=1.0).looks(objective)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(Clean):
    """An adversary of one step, of which there is no stronger form."""

    name = "one-step"
    threat = ("Linf", 0.1)
    attack_steps = 1


def test_it_does_not_look_where_going_back_would_change_nothing():
    """Training would go back and forth forever."""
    assert not Guard().looks(OneStep())


def test_what_is_looked_at(mnist, tmp_path, seen):
    train(tiny_run(mnist, objective=WEAK, guard=Guard(images=10), epochs=2), tmp_path / "run")
    assert len(seen.given) == 2 and len(set(seen.given)) == 1, "the same images and start in each epoch"
    assert seen.given[0][:2] == (("Linf", 0.1), 10)
    for line in (line for line in lines_of(tmp_path / "run") if "epoch" in line):
        assert (line["guard_single"], line["guard_multi"]) == FINE


@pytest.mark.parametrize("change", [
    {"objective": Clean()}, {"guard": Guard(gap=1)}, {"objective": Madry(attack=PGD(eps=0.1, steps=10))},
])  # fmt: skip
def test_no_look_where_it_is_off(change, mnist, tmp_path, seen):
    folder = train(tiny_run(mnist, **{"objective": WEAK, "epochs": 1} | change), tmp_path / "run")
    assert not seen.given and "guard_single" not in lines_of(folder)[-1]


def test_no_look_without_held_out_images(mnist, tmp_path, seen):
    train(with_validation(tiny_run(mnist, objective=WEAK, epochs=1), 0.0), tmp_path / "run")
    assert not seen.given


# ---- the way back


def test_the_way_back_is_to_the_bit(mnist, tmp_path, seen):
    """After an alarm in epoch 2 all is as if training had gone from epoch 1 with the stronger attack."""
    run = tiny_run(mnist, objective=WEAK, method=CondLR(keep=0.5), average=0.9, epochs=3, log_every=1)
    seen.told += [FINE, COLLAPSED]
    alarmed = train(run, tmp_path / "alarmed")
    first = train(dataclasses.replace(run), tmp_path / "first", until=1)
    harder = dataclasses.replace(run, objective=STRONG)
    assert WEAK.stronger() == STRONG
    (first / "run.json").write_text(json.dumps(encode(harder)))
    train(harder, first, resume=True)
    assert same_weights(alarmed, first) and same_weights(alarmed, first, "model.safetensors")
    strip = [{key: value for key, value in line.items() if key != "seconds"} for line in lines_of(alarmed)]
    twin = [{key: value for key, value in line.items() if key != "seconds"} for line in lines_of(first)]
    assert [line for line in strip if "event" not in line] == twin, "lines of the failed epoch are gone"


def test_the_event_is_a_line_that_says_what_happened(mnist, tmp_path, seen):
    seen.told += [FINE, COLLAPSED]
    folder = train(tiny_run(mnist, objective=WEAK, epochs=3), tmp_path / "run")
    (event,) = events_of(folder)
    assert event == {
        "event": "catastrophic overfitting", "at_epoch": 2, "guard_single": 0.9, "guard_multi": 0.1,
        "back_to_epoch": 1, "goes_on_with": "madry, PGD-2 Linf",
    }  # fmt: skip
    assert [line["epoch"] for line in lines_of(folder) if "epoch" in line] == [1, 2, 3]


def test_an_alarm_in_the_first_epoch_goes_back_to_the_start(mnist, tmp_path, seen):
    seen.told += [COLLAPSED]
    run = tiny_run(mnist, objective=WEAK, epochs=2)
    alarmed = train(run, tmp_path / "alarmed")
    harder = train(dataclasses.replace(run, objective=STRONG), tmp_path / "harder")
    assert same_weights(alarmed, harder)
    assert events_of(alarmed)[0]["back_to_epoch"] == 0


def test_alarms_in_a_row_make_the_attack_stronger_each_time_until_it_is_as_strong_as_the_guards(
    mnist, tmp_path, seen
):
    seen.told += [COLLAPSED] * 10
    folder = train(tiny_run(mnist, objective=WEAK, epochs=1), tmp_path / "run")
    assert [event["goes_on_with"] for event in events_of(folder)] == [
        f"madry, PGD-{steps} Linf" for steps in (2, 4, 8, 16)
    ]
    assert len(seen.told) == 6, "PGD with 16 steps is not looked at any more"
    assert load_checkpoint(folder / "checkpoint.safetensors").progress.stronger == 4


@pytest.mark.parametrize("until", [1, 2])
def test_resume_after_the_switch(until, mnist, tmp_path, seen):
    """Stopped after the epoch that was taken again, and after the one that followed it."""
    run = tiny_run(mnist, objective=WEAK, epochs=3)
    seen.told += [COLLAPSED]
    straight = train(run, tmp_path / "straight")
    seen.told += [COLLAPSED]
    stopped = train(run, tmp_path / "stopped", until=until)
    train(run, stopped, resume=True)
    assert same_weights(straight, stopped) and events_of(straight) == events_of(stopped)
    assert events_of(straight)


def test_a_power_cut_right_after_the_way_back(mnist, tmp_path, seen, monkeypatch):
    run = tiny_run(mnist, objective=WEAK, epochs=3)
    seen.told += [FINE, COLLAPSED]
    straight = train(run, tmp_path / "straight")
    seen.told += [FINE, COLLAPSED]
    plain, copies = type(run.method).step, []

    def dying(self, model, optimizer, state, backward, t):
        folder = tmp_path / "died"
        if t == 5 and "event" in (folder / "metrics.jsonl").read_text():
            copies.append(1)
            raise KeyboardInterrupt
        return plain(self, model, optimizer, state, backward, t)

    monkeypatch.setattr(type(run.method), "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "died")
    assert copies
    monkeypatch.setattr(type(run.method), "step", plain)
    train(run, tmp_path / "died", resume=True)
    assert same_weights(straight, tmp_path / "died")
    assert events_of(straight) == events_of(tmp_path / "died")


def test_a_failed_epoch_is_never_the_best(mnist, tmp_path, seen, monkeypatch):
    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr("ironrank.training.loop.robust_accuracy", lambda *_, **__: next(scores))
    seen.told += [FINE, COLLAPSED]
    folder = train(tiny_run(mnist, objective=WEAK, epochs=3), tmp_path / "run")
    assert [line["val_robust"] for line in lines_of(folder) if "epoch" in line] == [0.1, 0.2, 0.3]
    best, last = load_file(folder / "model.safetensors"), load_file(folder / "last.safetensors")
    assert all(torch.equal(best[key], last[key]) for key in best), "three epochs were judged, not four"


def test_free_goes_on_with_twice_the_replays(mnist, tmp_path, seen):
    """The batches of each epoch stay the same; only the steps on them are doubled."""
    seen.told += [FINE, COLLAPSED]
    run = tiny_run(mnist, objective=Free(eps=0.1, replays=2), epochs=3)
    folder = train(run, tmp_path / "run")
    assert [line["step"] for line in lines_of(folder) if "epoch" in line] == [8, 8 + 16, 8 + 32]
    assert events_of(folder)[0]["goes_on_with"] == "free, 4 replays"


def test_the_alarm_is_shown(mnist, tmp_path, seen):
    seen.told += [COLLAPSED]
    console = Console(width=200, record=True, force_terminal=False)
    train(tiny_run(mnist, objective=WEAK, epochs=1), tmp_path / "run", console=console)
    shown = console.export_text()
    assert "catastrophic overfitting: at epoch 1" in shown and "goes on with madry, PGD-2 Linf" in shown


def test_the_objective_after_alarms():
    assert strengthened(WEAK, 0) == WEAK
    assert strengthened(WEAK, 3).attack.steps == 8
    assert strengthened(Free(replays=2), 2) == Free(replays=8)
    assert strengthened(Free(replays=8), 9) == Free(replays=64), "it ends somewhere"


# ---- robust overfitting


def judged(monkeypatch, robust, clean=0.9):
    scores = iter(robust)
    monkeypatch.setattr("ironrank.training.loop.robust_accuracy", lambda *_, **__: next(scores))
    monkeypatch.setattr("ironrank.training.loop.accuracy", lambda *_, **__: clean)


def test_a_fall_is_reported_once_until_there_is_a_new_best(mnist, tmp_path, monkeypatch):
    robust = [0.5, 0.46, 0.44, 0.40, 0.51, 0.40]
    judged(monkeypatch, robust)
    folder = train(tiny_run(mnist, objective=STRONG, epochs=6, guard=Guard(gap=1)), tmp_path / "run")
    events = events_of(folder)
    assert [(event["event"], event["at_epoch"], event["best_epoch"]) for event in events] == [
        ("robust overfitting", 3, 1),
        ("robust overfitting", 6, 5),
    ]
    assert events[0]["robust_fall"] == pytest.approx(0.06)
    falls = [line["robust_fall"] for line in lines_of(folder) if "epoch" in line]
    assert falls == pytest.approx([0, 0.04, 0.06, 0.1, 0, 0.11])


def test_the_report_survives_a_stop(mnist, tmp_path, monkeypatch):
    run = tiny_run(mnist, objective=STRONG, epochs=4, guard=Guard(gap=1))
    judged(monkeypatch, [0.5, 0.4, 0.4, 0.4])
    folder = train(run, tmp_path / "run", until=2)
    train(run, folder, resume=True)
    assert [event["at_epoch"] for event in events_of(folder)] == [2]


def test_a_fall_says_nothing_where_training_is_clean(mnist, tmp_path, monkeypatch):
    judged(monkeypatch, [0.5, 0.1])
    folder = train(tiny_run(mnist, epochs=2), tmp_path / "run")
    assert not events_of(folder) and "robust_fall" not in lines_of(folder)[-1]


def test_patience_ends_training_and_the_best_is_kept(mnist, tmp_path, monkeypatch):
    robust = [0.3, 0.5, 0.2, 0.2, 0.2, 0.2]
    judged(monkeypatch, robust)
    run = tiny_run(mnist, objective=STRONG, epochs=6, guard=Guard(gap=1, patience=2))
    folder = train(run, tmp_path / "run")
    assert [line["epoch"] for line in lines_of(folder) if "epoch" in line] == [1, 2, 3, 4]
    judged(monkeypatch, robust)
    second = train(run, tmp_path / "second", until=2)
    best, there = (
        load_file(folder / "model.safetensors"),
        load_checkpoint(second / "checkpoint.safetensors").model,
    )
    assert all(torch.equal(best[key], there[key]) for key in best)
    before = (folder / "model.safetensors").read_bytes()
    train(run, folder, resume=True)  # it has ended
    assert len([line for line in lines_of(folder) if "epoch" in line]) == 4
    assert (folder / "model.safetensors").read_bytes() == before


def test_patience_needs_held_out_images(mnist, tmp_path):
    run = with_validation(tiny_run(mnist, epochs=3, guard=Guard(patience=1)), 0.0)
    assert lines_of(train(run, tmp_path / "run"))[-1]["epoch"] == 3


# ---- settings


def test_guards_are_set_from_text(mnist):
    run = override(tiny_run(mnist), [("guard.gap", "0.3"), ("guard.patience", "5"), ("average", "0.9995"),
                                     ("objective", "trades"), ("objective.awp", "0.005"),
                                     ("objective.attack", "n-fgsm"),
                                     ("objective.attack.precision", "bfloat16")])  # fmt: skip
    assert run.guard == Guard(gap=0.3, patience=5) and run.average == 0.9995
    assert run.objective == Trades(attack=NFGSM(precision="bfloat16"), awp=0.005)


@pytest.mark.parametrize(
    "wrong", [{"gap": 0.0}, {"gap": 1.5}, {"images": 0}, {"patience": -1}, {"fall": 0.0}]
)
def test_impossible_guards_are_refused(wrong):
    with pytest.raises(IronrankError, match=f"guard.{next(iter(wrong))}"):
        Guard(**wrong)
