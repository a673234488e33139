"""Several processes that see different images decide alike, and go on with the same numbers.

Run as a program, this file is one of two processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from cases import tiny_run
from ironrank.attacks import FGSM
from ironrank.errors import IronrankError
from ironrank.models import Given
from ironrank.objectives import Madry
from ironrank.training import Guard, loop, train
from ironrank.training.looking import Look
from ironrank.training.processes import join


def test_processes_that_see_different_images_decide_alike(mnist, tmp_path):
    """The first sees a collapse that the second does not; the second is late when both go back."""
    change = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, str(tmp_path / "meeting"), mnist, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=change, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [entry["objective"] for entry in first] == ["madry, PGD-2 Linf"] * 5, (
        "one epoch again, four, no patience"
    )
    assert first == second


@pytest.mark.parametrize("device, backend", [("cpu", "gloo"), ("cuda", "nccl")])
def test_each_process_takes_a_card_of_its_own(device, backend, monkeypatch):
    """Where to train decides what the processes talk by, not whether the machine has cards."""
    joined, cards = [], []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **kw: joined.append((name, kw)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", cards.append)
    for variable, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    join(device)
    on_card = {"device_id": torch.device("cuda:1")} if device == "cuda" else {}
    assert (joined, cards) == ([(backend, on_card)], [1] if on_card else [])


def test_processes_that_would_share_a_card_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    for device, said in {
        "cuda:0": "take cuda, each process gets a card",
        "cuda": "which has 2 cards",
    }.items():
        with pytest.raises(IronrankError, match=said):
            join(device)


def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    change = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    code = (
        "import sys, torch.distributed as dist; from ironrank.training.processes import everywhere;"
        "rank = int(sys.argv[2]);"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=rank, world_size=2);"
        "print(everywhere(True, 'cpu'), everywhere(rank == 0, 'cpu')); dist.destroy_process_group()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "meeting")]
    processes = [
        subprocess.Popen([*command, str(rank)], env=change, stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    assert [process.communicate(timeout=120)[0].split() for process in processes] == [["True", "False"]] * 2


class Told:
    """What this process is told to have seen: the ranks disagree about the collapse, and about every score."""

    def __init__(self, rank: int) -> None:
        self.looks = iter([Look(0.9, 0.1 if rank == 0 else 0.8)])
        self.scores = iter([0.1, 0.5, 0.4, 0.3] if rank == 0 else [0.5, 0.4, 0.3, 0.6])

    def look(self, *_):
        return next(self.looks, Look(0.5, 0.5))

    def robust(self, *_, **__):
        return next(self.scores)


def main(meeting: str, mnist: str, out: str, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    told, entries, (epoch, take_up) = Told(rank), [], (loop.Job.epoch, loop.Job.take_up)
    loop.look, loop.robust_accuracy = told.look, told.robust

    def late(job):
        time.sleep(rank)
        take_up(job)

    def watched(job, watcher):
        epoch(job, watcher)
        statistics = [b.flatten().tolist() for b in job.model.buffers()]
        entries.append(
            {"objective": job.objective.describe(), "lines": job.progress.lines, "buffers": statistics}
        )

    loop.Job.take_up, loop.Job.epoch = late, watched
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))
    run = tiny_run(mnist, model=Given(), objective=Madry(attack=FGSM(eps=0.05)), epochs=9, batch_size=16,
                   guard=Guard(patience=2))  # fmt: skip
    train(run, Path(out) / "run", model=net)
    (Path(out) / f"{rank}.json").write_text(json.dumps(entries))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
