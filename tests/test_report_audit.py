"""Audits and certificates in the report: what is not proven is never called robust, and no file does harm."""

from __future__ import annotations

import json
import math
import re

import pytest

from evaluations import EPS, HOSTILE, Page, audited, certified, evaluation, held, small
from expect import refuses
from ironrank.report import build, judge, proofs, rows, text

FAILED = ("noise never beats gradients",)


def plain(name="net", robust=0.46, **more):
    """A row without figures, for tests of words."""
    return evaluation(name, robust, **more) | {"layers": [], "curve": []}


def of(report, label):
    """The cells of one column of the one table, by net."""
    table = report.content.overview
    place = next(i for i, column in enumerate(table.columns) if column.label == label)
    return {line[0].text: line[place] for line in table.rows}


def test_an_audit_stands_beside_the_attacks_of_the_evaluation():
    report = build([plain("a", audit=audited(0.4)), plain("b")], title="t")
    cells = of(report, "audited accuracy")
    assert (cells["a"].text, cells["a"].detail) == ("40.0", "[37.0,\u00a043.0]")
    assert cells["b"].text == "not audited"
    assert "Audit, worst case: L∞, ε = 8/255" in report.content.attacks


def test_the_worst_of_audit_and_evaluation_counts():
    for robust, worst in ((0.6, 0.46), (0.31, 0.31)):
        (row,) = rows.read([plain(robust=0.46, audit=audited(robust))])
        assert row.at(("Linf", round(EPS, 5))).accuracy == worst


def test_who_was_not_audited_does_not_win_over_who_was():
    report = build([plain("audited", 0.4, audit=audited(0.4)), plain("tried", 0.7, share=0.1)], title="t")
    assert report.content.verdict.pick == 0
    assert any("want of an audit in its ball: tried" in note for note in report.content.notes)


@pytest.fixture(scope="module")
def refused():
    evil = small("masked", robust=0.7717, audit=audited(0.7913, FAILED))
    return build([evil, small("honest", robust=0.3)], title="t")


def test_what_is_not_proven_has_no_robust_number(refused):
    assert refused.content.verdict.pick == 1
    for label in ("FGSM", "PGD, 20 steps", "audited accuracy"):
        cell = of(refused, label)["masked"]
        assert (cell.text, cell.alarm) == ("not proven", True)
    assert of(refused, "audited accuracy")["masked"].detail == FAILED[0]
    assert judge.scores_of(refused.content.rows, ("Linf", round(EPS, 5))).keys() == {1}
    page, said = refused.html(), refused.markdown()
    for number in ("77.2", "79.1", "83.2"):  # PGD, audit and FGSM of the net that masks
        assert number not in said.split("## Audits")[0]
        assert number not in page.split('id="audits"')[0]
    derived = refused.data()["rows"][0]["derived"]
    assert derived["robust_in_ball_of_verdict"] is None and derived["robust_intervals"] == []
    assert derived["audit"] == f"not proven: {FAILED[0]}"


def test_what_is_not_proven_is_said_everywhere(refused):
    page = Page(refused.html())
    held(page, refused.html())
    assert "masked (not proven)" in page.said and "Left out, since nothing is proven: masked" in page.said
    (warning,) = refused.warnings
    assert FAILED[0] in warning and warning.startswith(text.quote("masked"))
    assert f"about {FAILED[0]}" in page.said and f"about {FAILED[0]}" in refused.markdown()


def test_where_nothing_is_proven_the_verdict_claims_nothing():
    one = build([plain("masked", audit=audited(0.9, FAILED))], title="t")
    assert one.content.verdict.pick is None and one.content.facts == []
    assert "not proven robust" in one.verdict and FAILED[0] in one.verdict
    two = build([plain(name, audit=audited(0.9, FAILED)) for name in "ab"], title="t")
    assert two.verdict.startswith("No net is proven robust")


@pytest.mark.parametrize(
    "change",
    [
        {"checks": [{"name": "steps", "passed": False}]},
        {"checks": [{"name": "steps", "passed": "yes"}]},
        {"checks": [{"name": "steps"}]},
        {"robust": None},
        {"verdict": {"kind": "robust", "text": "robust accuracy 99 %", "failed": ["steps"]}},
    ],
)
def test_an_audit_that_contradicts_itself_proves_nothing(change):
    (row,) = rows.read([plain(audit=audited(0.9) | change)])
    assert row.refused and row.scores == () and "99" not in row.audit.said


def test_flags_are_warnings():
    (line,) = build([plain(audit=audited(flags=["few classes"]))], title="t").warnings
    assert "the audit raised a flag: few classes" in line


def test_the_curve_of_the_audit_takes_the_place_of_the_weaker_one():
    report = build([small(audit=audited(0.4))], title="t")
    assert [point[1] for point in report.content.rows[0].curve] == pytest.approx([0.8, 0.6, 0.4, 0.0])
    assert "worst case of the audit" in report.content.curves.caption


def test_an_audited_page_keeps_the_promises():
    row = small(audit=audited(0.4), certificate=certified())
    report = build([row, small("other")], title="t")
    page = Page(report.html())
    held(page, report.html())
    for words in ("Verdicts of the audits", "Tests of the audit", "Attacks of the audit", "Universal perturbation",
                  "Gram", "ironrank audit net --standard", "ironrank certify net"):  # fmt: skip
        assert words in page.said and words in report.markdown(), words


def test_a_page_without_audit_says_so():
    said = Page(build([plain()], title="t").html()).said
    assert "Not audited." in said and "No certificate." in said


# --- certificates


def test_certified_accuracy_stands_in_the_one_table():
    nets = [plain("a", certificate=certified(0.5, 0.2)), plain("b", certificate=certified(0, 0)), plain("c")]
    report = build(nets, title="t")
    cells = of(report, "certified accuracy")
    assert [cells[name].text for name in "abc"] == ["50.0", "vacuous", "no certificate"]
    assert cells["a"].detail == "[45.0,\u00a055.0]"
    assert "36/255" in next(
        c.unit for c in report.content.overview.columns if c.label == "certified accuracy"
    )
    assert [row["derived"]["certificate"] for row in report.data()["rows"]] == [
        "certified", "vacuous", "no certificate"]  # fmt: skip


def test_smoothing_has_a_line_of_its_own():
    smoothing = {
        "sigma": 0.25,
        "n0": 100,
        "n": 1000,
        "alpha": 0.001,
        "certified": [0.4, 0.3, 0.2],
        "abstained": 0.1,
    }
    table = build([plain(certificate=certified(smoothing=smoothing))], title="t").content.certificates
    assert [cell.text for cell in table.rows[1]][:6] == [
        "net", "randomized smoothing", "certified", "40.0", "30.0", "20.0"]  # fmt: skip
    assert "sigma\u00a00.250" in table.rows[1][1].detail
    nothing = certified(smoothing=smoothing | {"certified": [0.0, 0.0, 0.0]})
    table = build([plain(certificate=nothing)], title="t").content.certificates
    assert table.rows[1][2].text == "vacuous" and table.rows[1][2].alarm


def test_radii_need_not_agree():
    nets = [certified(0.5, 0.2), certified(0.4) | {"radii": [72 / 255]}]
    found = rows.read([plain(str(i), certificate=c) for i, c in enumerate(nets)])
    assert proofs.radius_of(found) == 72 / 255
    assert [proofs.certified(row, proofs.radius_of(found)).text for row in found] == ["20.0", "40.0"]


# --- files that are damaged, or want to do harm


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("audit", [], ["audit of 'net'", "a dict"]),
        ("audit", audited(schema=2), ["schema 2"]),
        ("audit", audited(verdict={"kind": "robust as a rock"}), ["robust as a rock", "not proven"]),
        ("audit", audited(verdict=None), ["verdict"]),
        ("audit", audited(threat={"norm": "Linf", "eps": "many"}), ["eps"]),
        ("audit", audited(threat={"norm": "Linf", "eps": math.inf}), ["eps"]),
        ("audit", audited(robust=0.4) | {"robust": {"accuracy": 40, "interval": None}}, ["robust accuracy=40"]),
        ("audit", audited() | {"robust": {"accuracy": 0.4, "interval": [0.3]}}, ["interval"]),
        ("audit", audited(attacks=[{"name": "x", "accuracy": "high"}]), ["accuracy under x"]),
        ("audit", audited(attacks={"a": 1}), ["attacks: a list"]),
        ("audit", audited(checks=[{}] * 20_000), ["checks", "20000"]),
        ("audit", audited(clean=10**400), ["clean"]),
        ("audit", audited(curve=[{"eps": 0.1, "accuracy": -1}]), ["curve"]),
        ("certificate", "certified", ["certificate of 'net'", "a dict"]),
        ("certificate", certified(verdict="sure"), ["sure", "vacuous"]),
        ("certificate", certified(radii=[0.1]), ["one length"]),
        ("certificate", certified(radii=None), ["one length"]),
        ("certificate", certified(0.5) | {"certified": [1.5]}, ["certified=1.5"]),
        ("certificate", certified(0.5) | {"radii": [-1]}, ["radius"]),
        ("certificate", certified(smoothing=[1]), ["smoothing"]),
        ("weakness", "deep", ["weakness map of 'net'"]),
        ("weakness", {"pictures": [{"name": "a", "image": "https://evil.example/a.png"}]}, ["PNG"]),
        ("examples", {"shown": [{"clean": "data:image/svg+xml,<svg onload=alert(1)>"}]}, ["examples", "PNG"]),
        ("before", {"layers": 3}, ["first weights", "a list"]),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(key, value, words):
    with refuses(*words):
        build([plain(**{key: value})], title="t")


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def test_a_file_nested_too_deeply_is_one_line():
    with refuses("nested too deeply"):
        build([plain(audit=audited(universal=deep(5000)))], title="t")


def test_hostile_words_of_an_audit_are_only_words():
    words = dict.fromkeys(("level", "data", "command", "hardware"), HOSTILE)
    attack = {
        "name": HOSTILE,
        "describe": HOSTILE,
        "kind": HOSTILE,
        "accuracy": 0.5,
        "n": HOSTILE,
        "seconds": HOSTILE,
    }
    check = {"name": HOSTILE, "passed": False, "value": HOSTILE, "limit": {HOSTILE: HOSTILE}, "text": HOSTILE}
    audit = audited(
        attacks=[attack], checks=[check], flags=[HOSTILE], universal={HOSTILE: {HOSTILE: HOSTILE}}, **words
    )
    audit["threat"]["norm"] = HOSTILE
    proof = certified(
        lipschitz={"global": HOSTILE, "layers": [{"name": HOSTILE, "bound": HOSTILE, "method": HOSTILE}]}
    )
    weak = {HOSTILE: [{HOSTILE: HOSTILE}], "b": HOSTILE, "c": [HOSTILE], "d": {HOSTILE: 10**400}}
    report = build(
        [plain(HOSTILE, audit=audit, certificate=proof, weakness=weak, trained_by=HOSTILE)], title=HOSTILE
    )
    page = Page(report.html())
    held(page, report.html())
    assert "<script" not in report.html() and "alert('x')" in page.said
    outside = re.sub("^```.*?^```", "", report.markdown(), flags=re.S | re.M)
    assert "<" not in outside and "&lt;script&gt;" in outside
    assert json.loads(json.dumps(report.data(), allow_nan=False))["rows"][0]["name"]


def test_long_words_are_cut():
    report = build([plain(audit=audited(command="x" * 10**6, level="y" * 10**6))], title="t")
    assert len(report.html()) < 60_000 and len(report.markdown()) < 40_000
