"""Cells side by side: finished ones are kept, stages are shared, what a dead process had taken is free again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from cases import tiny_run
from expect import refuses
from ironrank.comparison import grid
from ironrank.comparison.grid import release, shared, side_by_side, stage_name, take, taken, work
from ironrank.files import read_json
from ironrank.methods import SVD
from ironrank.training import train


def judge(folder, run):
    return {"method": run.method.name, "trained": (folder / "last.safetensors").is_file()}


def mark(folder, by):
    made = folder.with_name(folder.name + ".taken")
    made.mkdir(parents=True)
    (made / "by").write_text(by)
    return made


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    done.wait()
    return done.pid


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
    assert not list(tmp_path.rglob("*.taken"))


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


def test_what_others_hold_is_left_to_them(mnist, tmp_path):
    run = tiny_run(mnist, epochs=1)
    mark(tmp_path / "cell", "another-machine 1")
    assert take(tmp_path / "cell", run, judge) and not (tmp_path / "cell").exists()
    mark(tmp_path / "stages" / stage_name(run), f"{socket.gethostname()} {os.getpid()}")
    later = replace(run, method=SVD(keep=0.5), start=run)
    assert shared(later, tmp_path / "stages") is None
    assert not take(tmp_path / "later", later, judge) and not (tmp_path / "later.taken").exists()


def test_a_cell_waits_for_its_stage(mnist, tmp_path, monkeypatch):
    run = tiny_run(mnist, epochs=1)
    held = mark(tmp_path / "stages" / stage_name(run), "another-machine 1")

    def other(seconds):
        train(run, tmp_path / "stages" / stage_name(run))
        (held / "by").unlink()
        held.rmdir()

    monkeypatch.setattr(grid.time, "sleep", other)
    work(tmp_path, [("later", replace(run, method=SVD(keep=0.5), start=run))], judge)
    assert (tmp_path / "later" / "judged.json").is_file()


def test_what_a_dead_process_had_taken_is_free(tmp_path):
    mark(tmp_path / "cell", f"{socket.gethostname()} {dead_process()}")
    with taken(tmp_path / "cell") as mine:
        assert mine
        with taken(tmp_path / "cell") as twice:
            assert not twice
    assert not list(tmp_path.iterdir())


def test_release_frees_what_was_left_behind_and_nothing_else(tmp_path):
    mark(tmp_path / "stages" / "dead", f"{socket.gethostname()} {dead_process()}")
    (tmp_path / "old.taken").mkdir()  # of earlier versions: no name in it
    living = mark(tmp_path / "living", f"{socket.gethostname()} {os.getpid()}")
    far = mark(tmp_path / "far", "another-machine 1")
    release(tmp_path)
    assert sorted(tmp_path.rglob("*.taken")) == sorted([living, far])


def test_an_interrupted_cell_is_free_again(mnist, tmp_path):
    def interrupted(folder, run):
        raise KeyboardInterrupt

    run = tiny_run(mnist, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, [("cell", run)], interrupted)
    assert not (tmp_path / "cell.taken").exists() and not (tmp_path / "cell" / "judged.json").exists()
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
