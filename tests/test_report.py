"""The report: numbers, verdict, warnings, and three files that hold what they promise."""

from __future__ import annotations

import json
import math
import re

import pytest

from evaluations import EPS, HOSTILE, THREE, Page, evaluation, held, layer, metrics, page_of, small
from ironrank.errors import IronrankError
from ironrank.judge.interval import exceeds, wilson
from ironrank.report import build, judge, rows, structure, text
from ironrank.report.robustness import front
from ironrank.report.score import Score
from ironrank.report.svg import draw

# --- numbers


def test_wilson_meets_known_values():
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0.9, 1000) == pytest.approx((0.8799, 0.9171), abs=1e-4)
    low, high = wilson(0.3, 50)
    assert low < 0.3 < high


def test_exceeds_is_about_noise():
    assert not exceeds(0.40, 0.40, 1000, 1000)
    assert not exceeds(0.02, 0.01, 100, 100)
    assert exceeds(0.50, 0.40, 1000, 1000)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, text.DASH),
        (math.inf, "∞"),
        (math.nan, "not finite"),
        (0.0, "0"),
        (1234.5, "1\u202f234"),
        (3e-7, "3.00·10⁻⁷"),
    ],
)
def test_significant(value, shown):
    assert text.significant(value) == shown


def test_epsilon_is_written_as_the_field_writes_it():
    assert [text.epsilon(e) for e in (EPS, 0.1, 0.2, 0.031372, 0.5)] == [
        "8/255",
        "0.1",
        "0.2",
        "8/255",
        "0.5",
    ]


def test_plain_is_strict_json():
    value = text.plain({"a": (1, math.nan), 3: {"b": -math.inf}, "c": object, "d\x00": True})
    assert value["a"] == [1, "nan"] and value["3"]["b"] == "-inf" and value["d\ufffd"] is True
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_front_keeps_what_nothing_beats():
    assert front({0: (10, 0.5), 1: (20, 0.4), 2: (30, 0.7), 3: (10, 0.45)}) == [0, 2]


@pytest.mark.parametrize(
    ("attack", "steps", "restarts", "label", "single"),
    [
        ("pgd", 20, 1, "PGD, 20 steps", False),
        ("PGD-20 x5 Linf", 20, 5, "PGD, 20 steps, 5 restarts", False),
        ("PGD-20 Linf margin", 20, 1, "PGD margin, 20 steps", False),
        ("FGSM Linf", 1, 1, "FGSM", True),
        ("FGSM-RS Linf", None, None, "FGSM-RS", True),
        ("apgd", None, None, "APGD", False),
    ],
)
def test_an_attack_is_named_once(attack, steps, restarts, label, single):
    found = Score(attack, "Linf", EPS, steps, restarts, 0.5, 100)
    assert (found.label, found.ball, found.single_step) == (label, "L∞, ε = 8/255", single)


# --- verdict


def verdict_of(*evaluations):
    return judge.judge(rows.read(evaluations))


def test_the_verdict_picks_the_smallest_within_a_point():
    verdict = verdict_of(*THREE)
    assert verdict.pick == 1
    assert f"{text.quote('condlr, rank 30 %')} is the smallest of 3 nets within 1 point" in verdict.sentence
    assert f"45.8 % against 46.2 % of {text.quote('dense')}" in verdict.sentence
    assert "31.0 % of its dense form" in verdict.sentence


def test_two_points_below_is_not_within_a_point():
    verdict = verdict_of(evaluation("big", 0.50), evaluation("small", 0.48, share=0.1))
    assert verdict.pick == 0 and "no smaller one comes within 1 point" in verdict.sentence


def test_the_best_may_be_the_smallest():
    assert (
        "and none is smaller"
        in verdict_of(evaluation("big", 0.4), evaluation("small", 0.5, share=0.1)).sentence
    )


def test_one_row_is_not_compared():
    sentence = verdict_of(evaluation("only", 0.4)).sentence
    assert f"{text.quote('only')} keeps 40.0 %" in sentence and "best" not in sentence


def test_the_verdict_says_where_nets_met_different_numbers_of_images():
    few, many = evaluation("few", 0.5, n=100), evaluation("many", 0.4, n=2000)
    assert "they were attacked on 100 and 2" in verdict_of(few, many).sentence
    assert "compare with care" not in verdict_of(few, evaluation("few too", 0.4, n=100)).sentence


def test_no_net_above_chance_wins_nothing():
    verdict = verdict_of(evaluation("a", 0.08), evaluation("b", 0.1, share=0.5))
    assert verdict.pick is None and "no net is robust" in verdict.sentence and "10.0 %" in verdict.sentence


def test_without_an_attack_nothing_is_claimed():
    verdict = verdict_of(evaluation("a", robust=0.4) | {"robust": []})
    assert verdict.pick is None and "nothing is known about robustness" in verdict.sentence


def test_a_row_with_single_steps_only_does_not_win():
    weak = evaluation("weak", 0.9, share=0.1)
    weak["robust"] = weak["robust"][:1]
    report = build([evaluation("strong", 0.5), weak], title="t")
    assert report.content.verdict.pick == 0
    assert "only one of 2 nets with a number" in report.verdict and "best" not in report.verdict
    assert any("Left out of the verdict" in note and "weak" in note for note in report.content.notes)
    assert report.data()["rows"][1]["derived"]["robust_in_ball_of_verdict"] is None


def test_the_worst_attack_in_the_ball_counts():
    row = evaluation("a", 0.5)
    row["robust"].append(row["robust"][1] | {"attack": "apgd", "accuracy": 0.42})
    assert judge.scores_of(rows.read([row]), ("Linf", round(EPS, 5)))[0].accuracy == 0.42


# --- warnings


def curved(*accuracies, n=1000):
    points = [{"eps": k / 255, "accuracy": a} for k, a in enumerate(accuracies)]
    return evaluation("net", n=n) | {"curve": points}


def test_a_rise_with_eps_is_a_warning():
    report = build([curved(0.8, 0.4, 0.3, 0.45)], title="t")
    (line,) = report.warnings
    assert "rises from 30.0 % at ε = 2/255 to 45.0 % at ε = 3/255" in line and "gradient masking" in line
    page = Page(report.html())
    assert (
        "Warnings" in page.said
        and line in page.said
        and f"see the warnings about {text.quote('net')}" in report.verdict
    )


def test_noise_is_no_warning():
    assert build([curved(0.8, 0.40, 0.41, 0.39)], title="t").warnings == []
    assert build([curved(0.8, 0.40, 0.44, n=100)], title="t").warnings == []


def test_a_rise_counts_without_n_too():
    assert len(build([curved(0.8, 0.40, 0.44, n=None)], title="t").warnings) == 1


def test_fgsm_alone_proves_nothing():
    row = evaluation("net")
    row["robust"] = row["robust"][:1]
    (line,) = build([row], title="t").warnings
    assert "FGSM alone proves nothing" in line


def test_one_step_stronger_than_many_is_a_warning():
    row = evaluation("net", 0.5)
    row["robust"][0]["accuracy"] = 0.3
    (line,) = build([row], title="t").warnings
    assert "one step (FGSM: 30.0 % left) does more harm" in line


# --- page


def test_three_rows_make_a_whole_page():
    page, source = page_of(THREE, [metrics("dense"), metrics("condlr, rank 30 %")])
    held(page, source)
    assert page.figures == 5
    for words in (
        "83.1",
        "[80.7,\u00a085.3]",
        "31.0\u00a0% of dense",
        "203\u202f611",
        "torch",
        "2.11.0",
        "white-box",
    ):
        assert words.replace("\u00a0", " ").replace("\u202f", " ") in page.said.replace("\u202f", " "), words
    assert "Dotted line: chance, 10.0 %" in page.said
    assert "ironrank evaluate runs/dense --n 1000" in page.said


def test_one_row_makes_a_page():
    page, source = page_of([THREE[1]])
    held(page, source)
    assert page.figures == 4


def test_twelve_rows_make_a_page():
    many = [small(f"net {i}", robust=0.5 - 0.02 * i, share=1 / (1 + i), decay=0.1 * i) for i in range(12)]
    page, source = page_of(many, [metrics(f"net {i}", epochs=3) for i in range(12)])
    held(page, source)
    assert source.count('class="key"') == 12 + 12 + 11 + 12 + 12


def test_a_deep_net_stays_small(monkeypatch):
    monkeypatch.setattr(structure, "PANELS", 2)
    deep = [layer(f"features.block{i}.conv", (64, 64, 3, 3), 0.5) for i in range(40)]
    page, source = page_of([evaluation("a", layers=deep), evaluation("b", layers=deep)])
    held(page, source)
    assert "The first 2 of 40 layers" in page.said


@pytest.mark.parametrize("missing", sorted(set(THREE[0]) - {"clean", "robust", "params_deployed"}))
def test_a_missing_key_is_a_dash(missing):
    row = {key: value for key, value in THREE[0].items() if key != missing}
    whole, rest = (build([item], title="t").markdown() for item in (THREE[0], row))
    assert rest != whole
    if missing not in ("name", "curve_attack", "params_dense", "macs_dense", "curve", "layers", "command"):
        assert rest.count(text.DASH) > whole.count(text.DASH)


def test_the_bare_minimum_makes_a_page():
    report = build([{"clean": 1, "robust": [], "params_deployed": 0}], title="")
    page = Page(report.html())
    held(page, report.html())
    assert page.figures == 0 and "row 1" in page.said
    assert report.markdown().startswith("# Report\n")


@pytest.mark.parametrize("key", ["clean", "robust", "params_deployed"])
def test_a_missing_number_is_an_error_of_one_line(key):
    row = {k: v for k, v in THREE[0].items() if k != key}
    with pytest.raises(IronrankError, match=f"'dense' lacks {key}") as error:
        build([row], title="t")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": 83.1}, r"clean=83.1: an accuracy in \[0, 1\]"),
        ({"clean": "nan"}, "clean='nan'"),
        ({"robust": {"pgd": 0.3}}, "robust: a list of dicts"),
        ({"robust": [{"attack": "pgd"}]}, "robust accuracy under pgd=None"),
        ({"curve": [{"eps": 0.1, "accuracy": 2}]}, "curve at eps 0.1=2"),
        ({"layers": [1]}, "layers: a list of dicts"),
        ({"params_deployed": "many"}, "params_deployed='many': a count"),
    ],
)
def test_a_wrong_value_is_an_error_of_one_line(change, message):
    with pytest.raises(IronrankError, match=message) as error:
        build([THREE[0] | change], title="t")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("evaluations", [[], {}, [3], "dense"])
def test_no_evaluation_is_an_error(evaluations):
    with pytest.raises(IronrankError):
        build(evaluations, title="t")


def test_runs_of_another_shape_are_an_error():
    with pytest.raises(IronrankError, match="'name' and 'metrics'"):
        build(THREE, title="t", runs=[{"epoch": 1, "loss": 2.0}])


def test_hostile_names_do_nothing():
    words = dict.fromkeys(("curve_attack", "device", "command", "data"), HOSTILE)
    row = small(HOSTILE, share=0.3, method={"name": HOSTILE}, versions={HOSTILE: HOSTILE}, **words)
    row["layers"] = [
        item | {"name": HOSTILE + item["name"], "kind": HOSTILE + "Factored"} for item in row["layers"]
    ]
    row["robust"][1]["attack"] = row["robust"][1]["norm"] = HOSTILE
    page, source = page_of([row, row], [metrics(HOSTILE, epochs=2)], title=HOSTILE)
    held(page, source)
    assert "<script" not in source and "alert('x')" in page.said
    outside = re.sub("^```.*?^```", "", build([row], title=HOSTILE).markdown(), flags=re.S | re.M)
    assert "<" not in outside and "&lt;script&gt;" in outside


@pytest.mark.parametrize(
    ("cond", "shown"), [(math.inf, "∞"), ("inf", "∞"), (math.nan, "not finite"), (None, "not finite")]
)
def test_a_condition_number_need_not_be_finite(cond, shown):
    row = small(share=0.3, max_cond=cond, curve=[])
    row["layers"][0] |= {"cond": cond, "singular_values": [1.0, 0.5, 0.0, math.nan]}
    report = build([row], title="t")
    source = report.html()
    held(Page(source), source)
    assert shown in [cell.text for cell in report.content.overview.rows[0]]
    assert shown in [cell.text for cell in report.content.layers[0].rows[0]]
    json.dumps(report.data(), allow_nan=False)


def test_layers_without_any_singular_value_are_not_drawn():
    row = evaluation("net")
    row["layers"] = [
        item | {"singular_values": values}
        for item, values in zip(row["layers"], ([], [0.0], None, [math.inf]), strict=True)
    ]
    page, source = page_of([row])
    held(page, source)
    assert "Singular values" not in page.said


def test_metrics_inside_an_epoch_are_not_drawn():
    run = metrics("dense", epochs=2)
    run["metrics"].insert(1, {"step": 100, "loss": 1e9, "max_cond": "Infinity"})
    table = build(THREE, title="t", runs=[run]).content.training
    assert [cell.text for cell in table.rows[0]][:2] == ["dense", "2"]
    assert "1.00·10⁹" not in str(table)


def test_the_page_is_the_same_each_time():
    assert build([small()], title="t").html() == build([small()], title="t").html()


def test_the_settings_of_matplotlib_stay_as_they_are():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    svg = draw("key", lambda axes: axes.plot([1, 2], [1, 2]))
    assert dict(mpl.rcParams) == before
    assert svg.startswith("<svg viewBox=") and "DejaVu" not in svg and "xmlns" not in svg


# --- Markdown, JSON


def cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


@pytest.mark.parametrize("name", ["dense", HOSTILE])
def test_markdown_tables_are_well_formed(name):
    source = build([evaluation(name), *THREE[1:]], title="t", runs=[metrics(name)]).markdown()
    tables = [block.split("\n") for block in source.split("\n\n") if block.startswith("|")]
    assert len(tables) == 7
    for table in tables:
        widths = {len(cells(line)) for line in table}
        assert len(widths) == 1 and all(re.fullmatch(r" :?---:? ", cell) for cell in cells(table[1]))


def test_markdown_says_what_the_page_says():
    report = build(THREE, title="Three nets")
    source = report.markdown()
    assert f"**{report.verdict}**" in source
    for line in report.content.overview.rows:
        assert all(cell.text in source for cell in line)
    assert "| 8/255 |" in source and "white-box" in source and "ironrank evaluate runs/dense" in source


def test_json_makes_the_same_report_again(tmp_path):
    row = small(max_cond=math.inf, latency_ms=None)
    report = build([row, row, small("other", share=0.31)], title="A title", runs=[metrics("net", epochs=3)])
    found = json.loads(report.write_json(tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["format"] == "ironrank-report/1" and found["verdict"] == report.verdict
    assert [r["name"] for r in found["rows"][:2]] == ["net", "net (2)"]
    assert found["rows"][0]["max_cond"] == "inf" and found["rows"][2]["curve"] == row["curve"]
    assert found["rows"][2]["derived"]["params_deployed_of_dense"] == pytest.approx(0.31, abs=1e-3)
    again = build(found["rows"], title=found["title"], runs=found["runs"])
    assert again.data() == found and again.html() == report.html() and again.markdown() == report.markdown()


# --- files


def test_files_are_written_whole(tmp_path):
    report = build([small()], title="t")
    made = [
        report.write_html(tmp_path / "new" / "r.html"),
        report.write_markdown(str(tmp_path / "new" / "r.md")),
    ]
    assert [path.read_text(encoding="utf-8") for path in made] == [report.html(), report.markdown()]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["r.html", "r.md"]


@pytest.mark.parametrize("write", ["write_html", "write_markdown", "write_json"])
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, write):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(IronrankError) as error:
        getattr(build([small(curve=[], layers=[])], title="t"), write)(tmp_path / "file" / "report")
    assert "\n" not in str(error.value) and "report" in str(error.value)


def test_a_failed_move_leaves_the_old_file(tmp_path, monkeypatch):
    from pathlib import Path

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "r.md").write_text("old")
    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(IronrankError, match="Permission denied"):
        build([THREE[0]], title="t").write_markdown(tmp_path / "r.md")
    assert [path.name for path in tmp_path.iterdir()] == ["r.md"] and (tmp_path / "r.md").read_text() == "old"


# --- colours


def contrast(first, second):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(first), light(second)))
    return (high + 0.05) / (low + 0.05)


def test_lines_and_words_stand_out_from_their_ground():
    _, source = page_of([{"clean": 1, "robust": [], "params_deployed": 0}])
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", source, re.S)
    ]
    assert len(schemes) == 3 and schemes[0] == schemes[2]
    for scheme in schemes:
        assert all(contrast(scheme[f"s{i}"], scheme["paper"]) >= 3 for i in range(6))
        assert all(
            contrast(scheme[name], scheme["paper"]) >= 4.5 for name in ("ink", "muted", "accent", "alarm")
        )
