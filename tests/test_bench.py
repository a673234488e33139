"""Measurements: pairing under a fake clock, memory against hand counts, settings, rendering. No timing."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ironrank.bench import allocator, machine, memory, steps
from ironrank.bench.latency import latency
from ironrank.bench.main import main_train_step, save
from ironrank.bench.paired import PairedTimes, compare
from ironrank.bench.table import as_markdown
from ironrank.bench.train_step import bench_train_step
from ironrank.errors import IronrankError


class FakeClock:
    """A clock that only moves when a variant says how long it took."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds, log=None, name=""):
        def variant():
            self.now += next(seconds) if hasattr(seconds, "__next__") else seconds
            if log is not None:
                log.append(name)

        return variant


def test_compare_times_each_variant_once_per_round():
    clock, log = FakeClock(), []
    variants = {name: clock.spend(cost, log, name) for name, cost in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    times = compare(variants, rounds=6, warmup=2, clock=clock)
    assert times["a"] == (1.0,) * 6 and times["c"] == (4.0,) * 6
    rounds = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 8 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1, "the order is never shuffled"


def test_compare_leaves_out_the_warm_up():
    clock = FakeClock()
    assert compare({"a": clock.spend(iter([100.0, 50.0, 1.0, 2.0]))}, 2, warmup=2, clock=clock)["a"] == (
        1.0,
        2.0,
    )


def test_the_order_follows_the_seed():
    def order(seed):
        log = []
        compare({n: lambda n=n: log.append(n) for n in "abcd"}, 4, seed=seed, clock=FakeClock())
        return log

    assert order(1) == order(1) != order(2)


def test_ratio_is_paired_by_round():
    # the machine slows down tenfold in rounds 3 and 4: the paired ratio does not notice
    times = PairedTimes({"a": (1.0, 1.0, 10.0, 10.0, 1.0), "b": (2.0, 2.0, 20.0, 20.0, 4.0)})
    ratio = times.ratio("a", "b")
    assert (ratio.median, ratio.q1, ratio.q3) == (0.5, 0.5, 0.5)
    assert ratio.best == 0.5
    assert times.ratio("b", "a").median == 2.0


def test_ratio_quartiles_and_best():
    ratio = PairedTimes({"a": (1.0, 2.0, 3.0, 4.0, 5.0), "b": (1.0,) * 5}).ratio("a", "b")
    assert ratio == (3.0, 2.0, 4.0, 1.0)


def test_spread():
    spread = PairedTimes({"a": (0.005, 0.001, 0.003, 0.002, 0.004)}).spread("a")
    assert spread.ms() == pytest.approx({"median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0})


def test_compare_refuses_nothing_and_unknown_names():
    with pytest.raises(IronrankError, match="at least 1"):
        compare({}, 3)
    with pytest.raises(IronrankError, match="did you mean 'dense'"):
        PairedTimes({"dense": (1.0,)})["denes"]


def test_settings_and_plain_environment():
    settings = allocator.settings(3)
    assert settings["OMP_NUM_THREADS"] == settings["MKL_NUM_THREADS"] == "3"
    assert "glibc.malloc.trim_threshold=17179869184" in settings["GLIBC_TUNABLES"].split(":")
    assert "glibc.malloc.mmap_threshold=8589934592" in settings["GLIBC_TUNABLES"].split(":")
    assert allocator.in_force(3, settings) and not allocator.in_force(2, settings)
    assert "GLIBC_TUNABLES" not in allocator.plain({**settings, "PATH": "/bin"})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are for Linux")
def test_relaunch_happens_once():
    calls = []
    run = {"execute": lambda *call: calls.append(call), "libc": "glibc"}
    allocator.relaunch_if_needed(2, environ={"HOME": "/h"}, **run)
    program, arguments, env = calls.pop()
    assert program == sys.executable and arguments[1:] == sys.orig_argv[1:]
    assert env["HOME"] == "/h" and allocator.in_force(2, env)
    assert "in force" in allocator.relaunch_if_needed(2, environ=env, **run)
    assert "default" in allocator.relaunch_if_needed(2, environ={allocator.GUARD: "1"}, **run)
    assert "glibc" in allocator.relaunch_if_needed(2, environ={}, execute=run["execute"], libc="musl")
    assert calls == []


def test_memory_of_a_linear_layer_by_hand():
    layer, x = nn.Linear(3, 2), torch.rand(5, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def backward():
        layer.zero_grad()
        loss = layer(x).sum()
        loss.backward()
        return loss

    backward()
    optimizer.step()
    got = memory.step_memory(layer, optimizer, backward, {"dual": torch.zeros(4)})
    numbers = 3 * 2 + 2  # weight and bias; one float is 4 bytes
    assert got == (4 * numbers, 4 * numbers, 4 * numbers + 16, 4 * 5 * 3)  # kept for backward: x
    assert got.as_dict()["total"] == got.total == 4 * (3 * numbers + 4 + 15)


def test_activations_count_a_shared_storage_once_and_no_weights():
    x = torch.rand(5, 3, requires_grad=True)
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh())
    assert memory.activation_bytes(net, lambda: net(x)) == 4 * (15 + 15)  # x and the output of tanh
    assert memory.activation_bytes(net, lambda: x[:2] * x[3:]) == 4 * 15  # two views of x
    assert memory.activation_bytes(net, lambda: net(x).backward(torch.ones(5, 3))) == 4 * 30
    with torch.no_grad():
        assert memory.activation_bytes(net, lambda: net(x)) == 0


def test_convolution_keeps_only_its_input():
    conv, x = nn.Conv2d(2, 4, 3), torch.rand(3, 2, 8, 8)
    assert memory.activation_bytes(conv, lambda: conv(x)) == 4 * x.numel()


def test_peak_of_a_fresh_process():
    code = "import json; print('noise'); print(json.dumps({'baseline': 5, 'peak': 12}))"
    assert memory.peak_of(["-c", code], threads=1) == 7
    with pytest.raises(IronrankError, match="failed: ValueError: no"):
        memory.peak_of(["-c", "raise ValueError('no')"], threads=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with /proc")
def test_resident_peak_lies_between_the_present_and_what_the_system_says():
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.98 * pages * resource.getpagesize() <= memory.resident_peak() <= 1.02 * largest


def test_latency_by_a_fake_clock():
    clock = FakeClock()

    class Slow(nn.Module):
        costs = iter([9.0, 0.001, 0.002, 0.003, 0.004, 0.005])

        def forward(self, x):
            assert not self.training and torch.get_num_threads() == 1
            clock.now += next(self.costs)
            return x

    model = Slow().train()
    got = latency(model, torch.zeros(1), runs=5, threads=1, warmup=1, clock=clock)
    assert got == pytest.approx({"median": 3.0, "q1": 2.0, "q3": 4.0, "runs": 5, "threads": 1})
    assert model.training


def test_step_notes_the_time_of_backward():
    clock, model = FakeClock(), nn.Linear(1, 1)

    def backward():
        clock.now += 2.0
        return model(torch.ones(1, 1)).sum()

    def update(backward):
        clock.now += 1.0
        return backward()

    step = steps.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), backward, update, clock=clock)
    step()
    step()
    assert step.backward_seconds == [2.0, 2.0] and clock.now == 6.0
    assert step.parameters() == 2 and step.loss == pytest.approx(float(model(torch.ones(1, 1)).detach()))


@pytest.fixture(scope="module")
def result():
    def twin(task):
        return steps.condlr_step(task, "nchw") if task.keep < 0.3 else None

    return bench_train_step(
        ["lenet5"], [50, 80], rounds=1, batch=2, tau=0.1, momentum=0.4, threads=1, extra={"twin": twin}
    )


def test_bench_compares_with_the_better_dense(result):
    half, fifth = result["rows"]
    assert (half["net"], half["nominal"], fifth["keep"]) == ("lenet5", 50, 0.2)
    medians = {name: half["ms"][name]["median"] for name in ("dense nchw", "dense channels_last")}
    assert half["best_dense"] == min(medians, key=medians.get)
    assert half["ratio"]["median"] == pytest.approx(half["ms"]["condlr"]["median"] / min(medians.values()))
    assert half["extra_over_ours"] == {} and set(fifth["extra_over_ours"]) == {"twin"}
    assert fifth["parameters"]["condlr"] == fifth["parameters"]["twin"] < half["parameters"]["condlr"]


def test_bench_counts_memory(result):
    dense, ours = (result["rows"][1]["memory"][key] for key in ("dense nchw", "condlr"))
    numbers = 430500 + 580
    assert dense["gradients"] == dense["optimizer"] == 4 * numbers
    assert 4 * numbers <= dense["weights"] <= 4 * numbers + 64  # and the mean and deviation of the input
    assert ours["gradients"] < dense["gradients"] / 2 and ours["activations"] > 0


def test_markdown_has_a_line_for_every_row(result):
    shown = json.loads(json.dumps(result))  # JSON holds it
    shown["rows"][1]["peak"] = {"condlr": 3 * 2**20}
    shown["rows"][1]["failures"] = {"twin": 2}
    shown["rows"][1]["ratio"] = {"median": 0.5, "q1": 0.25, "q3": 0.75, "best": 0.4}
    text = as_markdown(shown)
    lines = text.splitlines()
    assert "lenet5 80 %: 2 steps of twin broke off." in lines
    times = [line for line in lines if line.startswith("| lenet5") and "0.500 [0.250, 0.750] (0.400)" in line]
    assert len(times) == 1 and times[0].startswith("| lenet5 | 80 % |")
    assert (
        sum(line.startswith("| lenet5") for line in lines) == 2 + 2 + 3
    )  # times; memory, one more for the twin
    assert any("| condlr |" in line and line.endswith("| 3 |") for line in lines)
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert len(set(tables[:4])) == 1 and len(set(tables[4:])) == 1
    assert shown["hardware"]["cpu"] in text and shown["hardware"]["torch"] in text


def test_save_and_main(tmp_path, monkeypatch, result):
    from ironrank.bench import main

    monkeypatch.setattr(main, "relaunch_if_needed", lambda threads: "allocator: default (test)")
    monkeypatch.setattr(
        main, "bench_train_step", lambda *args, **kwargs: {**result, "settings": dict(result["settings"])}
    )
    got = main_train_step(["lenet5"], out=tmp_path / "sub" / "step", threads=1)
    assert (
        got["settings"]["allocator"] == "allocator: default (test)" and "python" in got["settings"]["command"]
    )
    assert json.loads((tmp_path / "sub" / "step.json").read_text()) == got
    save(got, tmp_path / "again")
    assert (tmp_path / "again.md").read_text() == as_markdown(got)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "again.md", "sub"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"nets": ["lenet"]}, "did you mean 'lenet5'"), ({"nominal": [0]}, "between 1 and 99"),
     ({"layout": "nhwc"}, "layout='nhwc'"), ({"rounds": 0}, "rounds=0"), ({"nets": []}, "at least one")],
)  # fmt: skip
def test_bench_refuses_mistakes(change, message):
    good = {
        "nets": ["lenet5"],
        "nominal": [50],
        "rounds": 1,
        "batch": 2,
        "tau": 0.1,
        "momentum": 0.4,
        "threads": 1,
    }
    with pytest.raises(IronrankError, match=message):
        bench_train_step(**{**good, **change})


def test_a_loss_that_is_not_finite_stops_the_benchmark():
    def broken(task):
        step = steps.dense_step(task, "nchw")
        step.update = lambda backward: backward() * float("nan")
        return step

    with pytest.raises(IronrankError, match="broken 50 is not finite"):
        bench_train_step(["lenet5"], [50], 1, 2, 0.1, 0.4, 1, {"broken": broken})


def test_machine_names_processor_and_versions():
    told = machine.machine(1)
    assert told["cpu"] and told["torch"] == torch.__version__ and isinstance(told["avx512"], bool)
    assert machine.cpu("flags : sse\n") == ("", [])


def test_unknown_net():
    with pytest.raises(IronrankError, match="did you mean 'vgg16'"):
        steps.build("vgg-16")
