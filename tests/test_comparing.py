"""The verb `compare`, its page, and what both say: on the images inside the package."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from unittest import mock

import pytest

import ironrank
from ironrank import comparing
from ironrank.cli import main
from ironrank.comparison import figures, page, remarks, words
from ironrank.comparison.difference import Difference
from ironrank.training import loop

TINY = ["tiny=true", "epochs=1", "data.validation=0.99", "validate_images=8", "validate.steps=1",
        "objective.attack.steps=1", "batch_size=50"]  # fmt: skip
CALL = ["compare", "demo", "--methods", "uv,condlr", "--budgets", "50,80", "--seeds", "1", "--n", "8", "--steps", "2",
        "--restarts", "1", *(word for text in TINY for word in ("--set", text))]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nets_that_learnt_little_count():
    with mock.patch("ironrank.comparison.findings.LEARNT", 0.0):
        yield


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Run the command line; return exit code, stdout and stderr."""

    def run(capsys, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished comparison on the embedded images, made by the verb."""
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.raises(SystemExit) as exit_:
        main([*CALL, "--ablation", "--quiet", "--out", str(out)])
    assert not exit_.value.code
    return out


def test_the_verb_goes_on_and_shows_table_and_paths(made, call, capsys):
    code, out, err = call(capsys, *CALL, "--ablation", "--out", made)
    assert (code, err) == (0, "")  # nothing was left to do
    assert "condlr" in out and "Adversarial training" in out and "Clean training" in out
    assert str(made / "comparison.html") in out.replace("\n", "")
    code, out, err = call(capsys, *CALL, "--ablation", "--out", made, "--json")
    assert (code, err) == (0, "") and json.loads(out) == json.loads((made / "table.json").read_text())


def test_the_python_function_is_the_same(made):
    result = ironrank.compare("demo", "uv,condlr", (50, 80), 1, ablation=True, overrides=TINY, out=made, n=8, steps=2,
                              restarts=1)  # fmt: skip
    assert result == json.loads((made / "table.json").read_text())


def test_a_dry_run_shows_cells_and_a_time(made, call, capsys, tmp_path):
    code, out, err = call(capsys, *CALL, "--out", made, "--dry-run")
    assert code == 0 and err == "" and "uv_80_adversarial_s0" in out and "done" in out
    assert "9 cells" not in out and "7 cells, 0 s" in out and "estimate" in out


def test_an_interrupt_says_how_to_go_on(call, capsys, tmp_path, monkeypatch):
    def interrupted(job, watcher):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Job, "epoch", interrupted)
    code, out, err = call(capsys, *CALL, "--out", tmp_path / "out")
    assert (code, out) == (130, "") and err.count("\n") == 1
    assert str(tmp_path / "out") in err and "run the same command" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "condrl"], "method 'condrl': did you mean 'condlr'?"),
        (["--budgets", "50,120"], "budget 120: allowed is above 0 and below 100"),
        (["--budgets", "small"], "budgets='small'"),
        (["--equal", "speed"], "equal='speed'"),
        (["--set", "epoch=2"], "epoch"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, words, call, capsys, tmp_path):
    code, out, err = call(capsys, *CALL, *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_and_another_comparison_exit_2(made, call, capsys):
    code, out, err = call(capsys, "compare", "demmo")
    assert (code, out) == (2, "") and "recipe 'demmo': did you mean 'demo'?" in err
    code, out, err = call(capsys, *CALL, "--set", "epochs=3", "--out", made)
    assert (code, out) == (2, "") and "holds another comparison" in err


# ---- the page


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]
        if tag not in ("meta", "link", "br", "img", "path", "use", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(made):
    source = (made / "comparison.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(source)
    assert not reader.open and "script" not in reader.tags
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    assert not re.findall(r"https?://(?!www\.w3\.org)", source) and "@import" not in source
    assert reader.tags.count("svg") > 4 and "default-src 'none'" in source
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))


def test_the_page_shows_what_the_table_says(made):
    result = json.loads((made / "table.json").read_text())
    source = (made / "comparison.html").read_text(encoding="utf-8")
    for head in ("What it teaches", "Size and speed against robustness", "Ablation", "Adversarial training"):
        assert head in source
    for row in result["rows"]:
        assert row["seeds"] == [0] and words.label_of(row) in source
    said = shlex.split(result["command"])
    assert said[:3] == ["ironrank", "compare", "demo"] and said[-2:] == ["--out", str(made)]
    assert "--methods uv,condlr --budgets 50,80 --seeds 1 " in result["command"]
    assert "--ablation" in result["command"] and result["command"] in source
    assert f"torch {result['machine']['torch']}" in source
    assert "FGSM" not in source  # one step proves nothing
    text = (made / "table.md").read_text(encoding="utf-8")
    assert text.count("| dense |") == 4 and "## Ablation" in text  # two tables, two curves
    assert "PGD-2 on cross-entropy and on the margin, 1 random start each" in text


def test_nets_that_learnt_nothing_and_gradients_that_hide_are_warned_of(made):
    result = json.loads((made / "table.json").read_text())
    row = result["rows"][0]
    result["rows"], row["clean"]["mean"] = [row], 0.1
    assert "near chance" in remarks.warnings(result)[0]
    row["clean"]["mean"], row["curve"][-1]["accuracy"] = 0.9, 0.8
    assert "its gradient is hidden" in remarks.warnings(result)[0]
    row["curve"][-1]["accuracy"] = 0.0
    row["latency"] |= {"ratio": 0.8, "ratio_q1": 0.79, "ratio_q3": 0.81}
    assert remarks.warnings(result) == []
    row["latency"]["ratio_q3"] = 5.1
    assert (
        "time of 1 of 1 nets" in remarks.warnings(result)[0]
        and "quiet machine" in remarks.warnings(result)[0]
    )


def test_what_another_process_works_on_is_missing(made):
    result = json.loads((made / "table.json").read_text())
    result["rows"][1] |= {"seeds": [], "pending": [0, 2]}
    where = words.label_of(result["rows"][1])
    assert (
        f"{where}, {result['rows'][1]['training']} training, seed 0, 2: not done, another process works on it"
        in remarks.missing(result)[0]
    )


def test_latencies_are_compared_by_what_is_paired(made):
    result = json.loads((made / "table.json").read_text())
    for row, ratio in zip(result["rows"], (1.0, 0.5, 0.9, 0.7, 0.6), strict=False):
        row["latency"] |= {"ratio": ratio, "median": 1 / ratio}  # in ms the order is the opposite one
    plate = figures.pareto(result, "latency")
    first = next(panel.alt for panel in plate.panels)
    assert "% of the dense net's (paired" in first
    net = words.label_of(result["rows"][1])
    assert f"{net} 50" in first and "dense 100" in first


def test_what_is_missing_is_said_and_names_are_escaped(made):
    result = json.loads((made / "table.json").read_text())
    gone = {"training": "clean", "net": "<b>", "budget": 90.0, "seeds": [], "failed": {"0": "loss is <nan>"},
            "pending": [], "left_out": None}  # fmt: skip
    left = gone | {"net": "scores", "failed": {}, "left_out": "too small"}
    result["rows"] += [gone, left]
    source = page.render(result)
    assert "&lt;b&gt;" in source and "<b>" not in source
    assert "failed. loss is &lt;nan&gt;" in source and "left out. too small" in source


def test_what_is_known_of_a_difference_is_one_of_three_words():
    assert Difference(0.1, 0.02, 0.2, 3, 10).verdict == "higher"
    assert Difference(-0.1, -0.2, -0.02, 3, 10).verdict == "lower"
    assert Difference(0.1, -0.01, 0.2, 3, 10).verdict == "no difference shown"


def test_times_are_for_people():
    assert [comparing.duration(s) for s in (0, 89, 90, 3600, 90_000)] == [
        "0 s",
        "89 s",
        "2 min",
        "1 h 0 min",
        "25 h 0 min",
    ]
