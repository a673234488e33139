"""Comparisons end to end: a small grid on real images, kept, gone on with, extended; and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar
from unittest import mock

import pytest
import torch

from expect import refuses
from ironrank.comparison import compare, estimate, folder
from ironrank.comparison.cells import by_params, cells_of
from ironrank.comparison.estimate import Cost
from ironrank.comparison.grid import stage_name
from ironrank.comparison.judging import fates
from ironrank.comparison.question import ask, stages_of
from ironrank.config import build_run
from ironrank.files import read_json
from ironrank.layers.factored import Factored
from ironrank.methods import METHODS, SVD
from ironrank.methods.lowrank import LowRank
from ironrank.settings import setting
from ironrank.training import loop

LENET = "condlr/lenet5-mnist"
TINY = ["tiny=true", "epochs=2", "validate.steps=1", "validate_images=8"]
QUICK = {"n": 8, "steps": 2, "restarts": 1, "rounds": 2}


def run_of(mnist: str, *more: str):
    return build_run(LENET, [*TINY, f"data.folder={mnist}", *more])


@pytest.fixture(scope="module", autouse=True)
def nets_that_learnt_little_count():
    with mock.patch("ironrank.comparison.findings.LEARNT", 0.0):
        yield


@pytest.fixture(scope="module")
def grid(mnist, tmp_path_factory):
    """A finished comparison: two methods, one budget, two seeds, with the ablation."""
    out = tmp_path_factory.mktemp("grid") / "out"
    said: list[str] = []
    result = compare(run_of(mnist), "svd,condlr", (50,), 2, ablation=True, out=out, say=said.append, **QUICK)
    return result, out, said


def rows(result, training="clean"):
    return {(row["net"], row["budget"]): row for row in result["rows"] if row["training"] == training}


def test_the_table_has_a_row_for_every_net(grid):
    result, out, said = grid
    assert list(rows(result)) == [
        ("dense", None),
        ("narrow", 50),
        ("svd", 50),
        ("condlr", 50),
        ("condlr-unbounded", 50),
    ]
    assert list(rows(result, "adversarial")) == [("dense", None), ("condlr-unbounded", 50), ("condlr", 50)]
    dense = rows(result)["dense", None]
    for (net, _), row in rows(result).items():
        assert row["seeds"] == [0, 1] and len(row["robust"]["values"]) == 2 and not row["failed"]
        assert row["n"] == 8 and row["n_clean"] == 32
        assert 0 <= row["robust"]["mean"] <= 1 and row["bytes"] > 0 and row["macs"] > 0
        assert row["latency"]["q1"] <= row["latency"]["median"] <= row["latency"]["q3"]
        assert row["curve"][0]["eps"] == 0 and row["curve"][-1]["eps"] == pytest.approx(0.5)
        if net != "dense":
            assert row["params_deployed"] <= 0.5 * dense["params_deployed"] and row["smaller"] >= 0.5
    assert dense["params_deployed"] == result["params_dense"] and dense["smaller"] == 0
    assert rows(result)["condlr", 50]["max_cond"] <= 1.1 + 1e-3
    assert sum(line.endswith("done") for line in said) == 16
    assert read_json(out / "table.json") == json.loads(json.dumps(result))


def test_all_nets_have_the_same_epochs_and_share_their_stage(grid):
    _, out, _ = grid
    for cell in out.glob("*_s?"):
        run = read_json(cell / "run.json")
        earlier = (
            read_json(out / "stages" / run["start"].rpartition("/")[2] / "run.json") if run["start"] else None
        )
        assert run["epochs"] + (earlier["epochs"] if earlier else 0) == 2
        assert (earlier is not None) == cell.name.startswith("svd")
        assert run["optimizer"]["lr"] == pytest.approx(0.01 if earlier else 0.1)
        assert run["objective"]["name"] == ("madry" if "adversarial" in cell.name else "clean")
    assert len(list((out / "stages").iterdir())) == 2  # one for each seed


def test_the_fate_of_every_image_is_kept(grid):
    result, out, _ = grid
    for seed in (0, 1):
        kept = fates(out / f"svd_50_clean_s{seed}")
        assert [tuple(kept[key].shape) for key in ("clean", "robust", "curve")] == [(32,), (8,), (9, 8)]
        assert kept["robust"].double().mean() == rows(result)["svd", 50]["robust"]["values"][seed]
        assert not (kept["robust"] & ~kept["clean"][:8]).any()
        assert not (kept["curve"][1:] & ~kept["curve"][:-1]).any()  # an image lost stays lost


def test_the_ablation_takes_both_parts_apart(grid):
    result, _, _ = grid
    (row,) = result["ablation"]
    assert list(row["nets"]) == ["rank only", "+ conditioning", "+ adversarial training", "+ both"]
    gain = row["nets"]["+ both"]["robust"] - row["nets"]["+ adversarial training"]["robust"]
    assert row["conditioning"]["adversarial"]["mean"] == pytest.approx(gain)
    text = " ".join(result["findings"])
    assert (
        "Under clean training, bounded condition numbers (condlr against condlr-unbounded, else the same)"
        in text
    )
    assert "On top of adversarial training" in text and "2 seeds" in text


def test_finished_cells_are_kept_and_new_ones_added(grid, mnist, monkeypatch):
    result, out, _ = grid
    monkeypatch.setattr(folder, "judge", lambda *_: pytest.fail("judged again"))
    again = compare(run_of(mnist), "svd,condlr", (50,), 2, ablation=True, out=out, **QUICK)
    assert again == result
    fewer = compare(run_of(mnist), "svd", (50,), 1, out=out, **QUICK)  # a part of what is there
    assert list(rows(fewer)) == [("dense", None), ("narrow", 50), ("svd", 50)]


def test_a_finished_cell_is_refused_once_its_method_has_another_default(grid, mnist, monkeypatch):
    _, out, _ = grid

    @dataclass(frozen=True, kw_only=True)
    class Changed(SVD):
        round_to: int = setting(2, "another default", ge=1)

    monkeypatch.setitem(METHODS, "svd", Changed)
    with refuses("svd_50_", "was trained with other settings (it differs in method)", "delete it"):
        compare(run_of(mnist), "svd", (50,), 1, out=out, **QUICK)


def test_a_folder_of_another_comparison_is_refused(grid, mnist, tmp_path):
    _, out, _ = grid
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    with refuses("holds another comparison", "differs in epochs", "another --out"):
        compare(run_of(mnist, "epochs=3"), "svd", (50,), 1, out=out, **QUICK)
    with refuses("holds another comparison", "protocol"):
        compare(run_of(mnist), "svd", (50,), 1, out=out, **QUICK | {"n": 9})
    assert before == sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    (tmp_path / "notes.txt").write_text("mine")
    with refuses("holds other files", "another --out"):
        compare(run_of(mnist), "svd", (50,), 1, out=tmp_path, **QUICK)
    with refuses("is a file"):
        compare(run_of(mnist), "svd", (50,), 1, out=tmp_path / "notes.txt", **QUICK)
    with refuses("cannot write"):
        compare(run_of(mnist), "svd", (50,), 1, out=tmp_path / "notes.txt" / "below", **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_words_and_numbers_are_checked(mnist, tmp_path):
    bad = {
        "method 'condrl': did you mean 'condlr'?": {"methods": "condrl"},
        "budget 0: allowed is above 0": {"budgets": (50, 0)},
        "budget 100: allowed is above 0": {"budgets": (100,)},
        "budget nan": {"budgets": (float("nan"),)},
        "budgets: at least one": {"budgets": ()},
        "seeds=0": {"seeds": 0},
        "equal='speed': ": {"equal": "speed"},
        "train='robust': ": {"training": "robust"},
        "jobs=-1": {"jobs": -1},
        "n=0": {"n": 0},
    }
    for words, wrong in bad.items():
        with refuses(words):
            compare(run_of(mnist), **{"methods": "uv", "out": tmp_path / "out"} | wrong)
    with refuses("recipe 'condlr/lenet': did you mean"):
        compare("condlr/lenet", out=tmp_path / "out")
    with refuses("start=somewhere", "take start=none"):
        compare(run_of(mnist, "start=somewhere"), out=tmp_path / "out")
    with refuses("no net can be compared", "the narrowest has"):
        compare(run_of(mnist), "uv", (99.99,), out=tmp_path / "out")
    with refuses(str(tmp_path / "none")):  # data that is missing shows before anything is written
        compare(build_run(LENET, [*TINY, f"data.folder={tmp_path / 'none'}"]), "uv", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_comparison_goes_on(mnist, tmp_path, monkeypatch):
    real, calls = loop.Job.epoch, []

    def interrupted(job, watcher):
        calls.append(job.out.name)
        if len(calls) == 4:  # in the second epoch of the second cell
            raise KeyboardInterrupt
        real(job, watcher)

    asked = {"methods": "uv", "budgets": (50,), "seeds": 1, "out": tmp_path / "out", **QUICK}
    with monkeypatch.context() as patch:
        patch.setattr(loop.Job, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(run_of(mnist), **asked)
    assert [path.name for path in (tmp_path / "out").glob("*/judged.json")] == ["judged.json"]
    epochs = []
    monkeypatch.setattr(
        loop.Job, "epoch", lambda job, watcher: (epochs.append(job.out.name), real(job, watcher))
    )
    result = compare(run_of(mnist), **asked)
    assert epochs == ["narrow_50_clean_s0", "uv_50_clean_s0", "uv_50_clean_s0"]
    assert all(row["seeds"] == [0] for row in result["rows"])


def test_a_cell_that_cannot_be_trained_leaves_the_others_alone(mnist, tmp_path, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Broken(LowRank):
        name: ClassVar[str] = "broken"

        def prepare(self, model):
            return self.factorize(model, core=False)

        def penalty(self, model, state):
            return torch.tensor(float("nan"))

    monkeypatch.setitem(METHODS, "broken", Broken)
    said: list[str] = []
    asked = {"methods": "broken", "budgets": (50,), "seeds": 1, "out": tmp_path / "out", **QUICK}
    result = compare(run_of(mnist), say=said.append, **asked)
    assert rows(result)["narrow", 50]["seeds"] == [0]
    broken = rows(result)["broken", 50]
    assert broken["seeds"] == [] and "loss" in broken["failed"]["0"]
    assert any(line.startswith("broken_50_clean_s0 failed: ") for line in said)
    assert "failed." in (tmp_path / "out" / "table.md").read_text()
    with refuses("broken is no part of this package", "--jobs 1"):
        compare(run_of(mnist), jobs=2, **asked)


def test_a_method_of_one_file_takes_part(mnist, tmp_path, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Throwaway(LowRank):
        """Two factors; after each step the second one shrinks a little."""

        name: ClassVar[str] = "throwaway"

        def prepare(self, model):
            return self.factorize(model, core=False)

        def step(self, model, optimizer, state, backward, t):
            loss = super().step(model, optimizer, state, backward, t)
            with torch.no_grad():
                [layer.V.mul_(0.999) for layer in model.modules() if isinstance(layer, Factored)]
            return loss

    monkeypatch.setitem(METHODS, "throwaway", Throwaway)
    result = compare(run_of(mnist), "throwaway", (50, 80), 1, out=tmp_path / "out", **QUICK)
    assert list(rows(result)) == [
        ("dense", None),
        ("narrow", 50),
        ("narrow", 80),
        ("throwaway", 50),
        ("throwaway", 80),
    ]
    sizes = [rows(result)["throwaway", budget]["smaller"] for budget in (50, 80)]
    assert sizes[0] >= 0.5 and sizes[1] >= 0.8
    assert "throwaway 80" in (tmp_path / "out" / "table.md").read_text()


def test_several_processes_do_the_same(grid, mnist, tmp_path):
    result, _, _ = grid
    said: list[str] = []
    again = compare(run_of(mnist), "svd", (50,), 1, out=tmp_path / "out", jobs=2, say=said.append, **QUICK)
    for net in (("dense", None), ("narrow", 50), ("svd", 50)):
        assert rows(again)[net]["robust"]["values"][0] == rows(result)[net]["robust"]["values"][0]
        assert rows(again)[net]["clean"]["values"][0] == rows(result)[net]["clean"]["values"][0]
    assert sorted(said)[:3] == ["dense_clean_s0 done", "narrow_50_clean_s0 done", "svd_50_clean_s0 done"]


def test_a_dry_run_lists_cells_and_writes_nothing(grid, mnist, tmp_path):
    _, out, _ = grid
    plan = compare(run_of(mnist), "svd", (50, 99.9), 2, out=tmp_path / "out", dry_run=True, **QUICK)
    names = [cell["name"] for cell in plan["cells"]]
    assert names == [f"{net}_clean_s{seed}" for seed in (0, 1) for net in ("dense", "narrow_50", "svd_50")]
    assert [row["net"] for row in plan["left_out"]] == ["narrow", "svd"]
    assert "the narrowest has" in plan["left_out"][0]["reason"] and "rank 1" in plan["left_out"][1]["reason"]
    spent = [cell["seconds"] for cell in plan["cells"]]
    assert min(spent) > 0 and plan["seconds"] == pytest.approx(sum(spent))
    first, second = (cell["seconds"] for cell in plan["cells"] if cell["net"] == "svd")
    assert first == pytest.approx(second)  # seeds cost the same, and so do their stages
    assert not (tmp_path / "out").exists()
    done = compare(run_of(mnist), "svd", (50,), 2, out=out, dry_run=True, **QUICK)
    assert done["seconds"] == 0 and all(cell["done"] for cell in done["cells"])


def test_the_estimate_leaves_out_what_is_trained(mnist, tmp_path):
    def cost(run, protocol):
        return Cost(10, {stage_name(stage): 1 for stage in stages_of(run)[:-1]}, 100)

    question = ask(run_of(mnist), "svd", (50,), 1, "size", "recipe", False, 8, 2, 1, {})
    cells, _ = cells_of(question, by_params(question))
    svd = next(cell for cell in cells if cell.net == "svd")
    (stage,) = stages_of(svd.run)[:-1]
    spent = []
    with mock.patch.object(estimate, "cost", cost):
        for there in (
            "nothing",
            f"stages/{stage_name(stage)}/model.safetensors",
            f"{svd.name}/model.safetensors",
        ):
            (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / there).touch()
            spent.append(estimate.estimate(tmp_path, [svd], question.protocol)[svd.name])
    assert spent == [111, 110, 100]
