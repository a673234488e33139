"""Several seeds of one setting: one row, mean and standard deviation, wherever that cannot be misread."""

from __future__ import annotations

import json
import math
import re

import pytest

from evaluations import Page, audited, certified, evaluation, held, metrics, small
from expect import refuses
from ironrank.report import build
from ironrank.report.group import mean_and_sd

SETTING = {"method": {"name": "condlr", "tau": 0.1}, "epochs": 3}


def plain(name, seed, robust=0.4, setting=SETTING, **more):
    row = evaluation(name, robust, setting=setting, train_seed=seed, **more)
    return row | {"layers": [], "curve": []}


def three(**more):
    return [plain(f"condlr-seed{s}", s, 0.3 + 0.1 * s, clean=0.7 + 0.05 * s, **more) for s in range(3)]


def test_seeds_of_one_setting_become_one_row():
    report = build([plain("dense", 0, setting={"epochs": 9}), *three()], title="t")
    dense, group = report.content.rows
    assert (dense.name, group.name, group.seeds) == ("dense", "condlr, 3 seeds", 3)
    assert (group.clean, group.clean_sd) == pytest.approx((0.75, 0.05))
    line = [(cell.text, cell.detail) for cell in report.content.overview.rows[1]]
    assert line[1:4] == [("75.0", "±\u00a05.0"), ("46.0", "±\u00a010.0"), ("40.0", "±\u00a010.0")]
    assert line[-1][0] == "0, 1, 2, 0"
    assert report.content.groups == [("condlr, 3 seeds", "condlr-seed0, condlr-seed1, condlr-seed2")]


def test_the_deviation_is_that_of_a_sample():
    assert mean_and_sd([1.0, 3.0]) == (2.0, math.sqrt(2))


def test_sizes_are_means_and_the_condition_number_is_the_largest():
    nets = three()
    for i, row in enumerate(nets):
        row |= {"params_deployed": 100 + i, "max_cond": 2.0 + i}
        row["latency_ms"] = {"median": 1.0 + i, "q1": 0.5, "q3": 2.0}
    (group,) = build(nets, title="t").content.rows
    assert (group.size, group.max_cond, group.number("latency_ms", "median")) == (101, 4.0, 2.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_seed": 1}, "seed 1 stands there twice"),
        ({"n": 50}, "different images"),
        ({"audit": audited(0.3)}, "audited alike"),
        ({"certificate": certified()}, "certificate"),
        ({"robust": []}, "different attacks"),
    ],
)
def test_what_is_ambiguous_is_grouped_by_nobody(change, words):
    nets = three()
    nets[2] |= change
    assert len(build(nets, title="t").content.rows) == 3
    with refuses(words, "condlr-seed0"):
        build(nets, title="t", group=True)


def test_nothing_is_grouped_on_request():
    assert len(build(three(), title="t", group=False).content.rows) == 3


@pytest.mark.parametrize("setting", [None, {}, "text", [1]])
def test_without_a_setting_rows_stay_alone(setting):
    assert len(build(three(setting=setting), title="t", group=True).content.rows) == 3


def test_names_may_say_nothing_of_the_seed():
    names = ("a", "b", "a (2)")
    nets = [row | {"name": name, "method": "condlr"} for row, name in zip(three(), names, strict=True)]
    assert build(nets, title="t").content.rows[0].name == "condlr, 3 seeds"


@pytest.mark.parametrize(("folders", "name"), [
    (("seed0/small", "seed1/small", "seed2/small"), "small"), (("a/s0", "a/s1", "a/s2"), "a"),
])  # fmt: skip
def test_names_with_folders_leave_the_seed_out(folders, name):
    nets = [row | {"name": folder} for row, folder in zip(three(), folders, strict=True)]
    assert build(nets, title="t").content.rows[0].name == f"{name}, 3 seeds"


def test_one_seed_that_is_not_proven_refuses_the_group():
    nets = [row | {"audit": audited(0.4 + 0.01 * i)} for i, row in enumerate(three())]
    (group,) = build(nets, title="t").content.rows
    assert group.audit.score.accuracy == pytest.approx(0.41) and group.audit.score.sd == pytest.approx(0.01)
    nets[1]["audit"] = audited(0.9, ("more steps",))
    report = build(nets, title="t")
    (group,) = report.content.rows
    assert group.refused and "1 of 3 seeds" in group.audit.said and report.content.verdict.pick is None
    assert len(report.content.audits.rows) == 3  # each seed's verdict is shown


def test_certified_accuracies_are_means_too():
    nets = [row | {"certificate": certified(0.1 * i)} for i, row in enumerate(three(), 1)]
    (group,) = build(nets, title="t").content.rows
    assert group.certificate.points[0][1:] == (pytest.approx(0.2), pytest.approx((0.1, 0.3)))


def test_a_page_of_groups_and_its_files():
    nets = [small(f"net-s{s}", robust=0.3 + 0.1 * s, setting=SETTING, train_seed=s) for s in range(2)]
    runs = [metrics(row["name"], epochs=3) for row in nets]
    report = build([*nets, small("other", share=0.5)], title="t", runs=[*runs, metrics("other", epochs=3)])
    page = Page(report.html())
    held(page, report.html())
    assert (
        "net, 2 seeds" in page.said
        and "One row of several seeds: net, 2 seeds (net-s0, net-s1)." in page.said
    )
    legends = re.findall('<ul class="legend">(.*?)</ul>', report.html(), re.S)
    assert len(legends) > 3 and not any("net-s0" in legend for legend in legends)
    assert "±" in report.markdown()
    found = json.loads(json.dumps(report.data(), allow_nan=False))
    assert [row["name"] for row in found["rows"]] == ["net-s0", "net-s1", "other"]
    assert found["groups"]["net, 2 seeds"]["robust_in_ball_of_verdict"]["mean"] == pytest.approx(0.35)
    again = build(found["rows"], title=found["title"], runs=found["runs"])
    assert again.data() == found and again.markdown() == report.markdown()
