"""Cells side by side: finished ones are kept, stages are shared, what a dead process had taken is free again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from cases import tiny_run
from expect import refuses
from ironrank.comparison import grid
from ironrank.comparison.grid import shared, side_by_side, stage_name, take, taken, work
from ironrank.files import read_json
from ironrank.methods import SVD
from ironrank.training import train


def judge(folder, run):
    return {"method": run.method.name, "trained": (folder / "last.safetensors").is_file()}


def held_elsewhere(folder, seconds=60):
    """A process that has taken a folder, and keeps it until it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from ironrank.comparison.grid import taken\n"
        f"with taken(Path({str(folder)!r})) as mine:\n    print(mine, flush=True); time.sleep({seconds})"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    return holder


def end(holder):
    holder.kill()
    holder.wait()
    holder.stdout.close()


def test_cells_are_trained_judged_and_kept(mnist, tmp_path):
    dense = tiny_run(mnist, epochs=1)
    cells = [("a", dense), ("b", replace(dense, method=SVD(keep=0.5), start=dense)),
             ("c", replace(dense, method=SVD(keep=0.25), start=dense))]  # fmt: skip
    said = []
    work(tmp_path, cells, judge, said.append)
    assert said == ["a done", "b done", "c done"]
    assert read_json(tmp_path / "b" / "judged.json") == {"method": "svd", "trained": True}
    assert [path.name for path in (tmp_path / "stages").iterdir()] == [stage_name(dense)]  # trained once
    before = (tmp_path / "a" / "last.safetensors").stat().st_mtime_ns
    work(tmp_path, cells, lambda folder, run: pytest.fail("judged twice"), said.append)
    assert (tmp_path / "a" / "last.safetensors").stat().st_mtime_ns == before and len(said) == 3
    with taken(tmp_path / "a") as mine:
        assert mine, "nothing is held any more"


def test_a_finished_cell_of_other_settings_is_refused(mnist, tmp_path):
    dense = tiny_run(mnist, epochs=0)
    low = replace(dense, method=SVD(keep=0.5), start=dense)
    work(tmp_path, [("cell", low)], judge)
    work(tmp_path.rename(tmp_path.parent / "moved"), [("cell", low)], judge)
    changes = {
        "method": replace(low, method=SVD(keep=0.25)),
        "start": replace(low, start=replace(dense, seed=5)),
    }
    for name, run in changes.items():
        with refuses("cell was trained with other settings", f"(it differs in {name})", "delete it"):
            work(tmp_path.parent / "moved", [("cell", run)], judge)


def test_a_cell_that_was_cut_off_goes_on(mnist, tmp_path):
    run = tiny_run(mnist, epochs=2)
    train(run, tmp_path / "cell", until=1)
    work(tmp_path, [("cell", run)], judge)
    lines = (tmp_path / "cell" / "metrics.jsonl").read_text().count('"epoch"')
    assert lines == 2 and (tmp_path / "cell" / "judged.json").is_file()


def test_a_cell_is_known_by_its_settings_before_it_is_judged(mnist, tmp_path):
    run = tiny_run(mnist, epochs=0)
    train(run, tmp_path / "cell")
    with refuses("cell was trained with other settings", "(it differs in seed)"):
        work(tmp_path, [("cell", replace(run, seed=3))], judge)
    assert not (tmp_path / "cell" / "judged.json").exists()


def test_a_training_that_stopped_while_writing_its_weights_goes_on(mnist, tmp_path):
    run = tiny_run(mnist, epochs=2)
    train(run, tmp_path / "whole")
    train(run, tmp_path / "cell", until=1)
    (tmp_path / "cell" / "last.safetensors").write_bytes(
        (tmp_path / "whole" / "last.safetensors").read_bytes()
    )
    work(tmp_path, [("cell", run)], judge)
    assert (tmp_path / "cell" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_what_others_hold_is_left_to_them_until_they_end(mnist, tmp_path):
    run = tiny_run(mnist, epochs=1)
    later, stage = replace(run, method=SVD(keep=0.5), start=run), tmp_path / "stages" / stage_name(run)
    cell, inner = held_elsewhere(tmp_path / "cell"), held_elsewhere(stage)
    assert take(tmp_path / "cell", run, judge) and not (tmp_path / "cell" / "run.json").exists()
    assert shared(later, tmp_path / "stages") is None
    assert not take(tmp_path / "later", later, judge)
    end(cell), end(inner)  # killed: no chance to tidy up
    assert take(tmp_path / "cell", run, judge) and take(tmp_path / "later", later, judge)
    assert all((tmp_path / name / "judged.json").is_file() for name in ("cell", "later"))


def test_a_cell_waits_for_its_stage_and_says_so(mnist, tmp_path, monkeypatch):
    run, said = tiny_run(mnist, epochs=1), []
    stage = tmp_path / "stages" / stage_name(run)
    held, naps = held_elsewhere(stage), []

    def other(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            train(run, stage)
            end(held)

    monkeypatch.setattr(grid.time, "sleep", other)
    work(tmp_path, [("later", replace(run, method=SVD(keep=0.5), start=run))], judge, said.append)
    assert (tmp_path / "later" / "judged.json").is_file()
    assert said == ["waiting for stages that other processes are training", "later done"]


def test_a_folder_is_taken_once(tmp_path):
    with taken(tmp_path / "cell") as mine:
        assert mine
        with taken(tmp_path / "cell") as twice:
            assert not twice
    with taken(tmp_path / "cell") as again:
        assert again


def test_an_interrupted_cell_is_free_again(mnist, tmp_path):
    def interrupted(folder, run):
        raise KeyboardInterrupt

    run = tiny_run(mnist, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, [("cell", run)], interrupted)
    assert not (tmp_path / "cell" / "judged.json").exists()
    work(tmp_path, [("cell", run)], judge)
    assert (tmp_path / "cell" / "judged.json").is_file()


def test_processes_have_one_thread_and_failures_show(tmp_path):
    program = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] != '1')"
    side_by_side([sys.executable, "-c", program], 2)
    with refuses("2 of 2 processes", "same command"):
        side_by_side([sys.executable, "-c", "raise SystemExit(3)"], 2)


def test_an_interrupt_stops_all_processes(tmp_path):
    program = (
        "import signal, sys; from ironrank.comparison import grid; grid.PATIENCE = 0.1\n"
        "signal.alarm(120); signal.signal(signal.SIGUSR1, signal.default_int_handler)\n"
        f'child = "import time, pathlib; pathlib.Path({str(tmp_path / "on")!r}).touch(); time.sleep(60)"\n'
        "try:\n    grid.side_by_side([sys.executable, '-c', child], 1)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    while not (tmp_path / "on").exists() and parent.poll() is None:
        time.sleep(0.05)
    parent.send_signal(signal.SIGUSR1)
    assert parent.wait(150) == 130


def test_a_folder_that_cannot_be_written_is_one_line(mnist, tmp_path):
    (tmp_path / "file").write_text("")
    with refuses("cannot write", "choose another folder"):
        take(tmp_path / "file" / "cell", tiny_run(mnist), judge)


def test_a_cell_that_finds_no_memory_fails_alone(mnist, tmp_path):
    def hungry(folder, run):
        if folder.name == "large":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return judge(folder, run)

    run, failed = tiny_run(mnist, epochs=0), {}
    cells = [("large", run), ("small", run)]
    work(tmp_path, cells, hungry, fail=lambda folder, error: failed.update({folder.name: str(error)}))
    assert failed == {"large": "out of memory: CUDA out of memory. Tried to allocate 9 GiB."}
    assert (tmp_path / "small" / "judged.json").is_file()
    with refuses("out of memory: CUDA out of memory"):
        work(tmp_path, cells, hungry)
