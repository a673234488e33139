"""The model card, and the command that makes a run again."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest

from evaluations import HOSTILE, audited, certified, evaluation
from expect import refuses
from ironrank.config import build_run
from ironrank.recipes import RECIPES
from ironrank.recipes.command import command_of
from ironrank.report import build
from ironrank.report.card import yaml

SETTING = {"model": {"name": "lenet5", "width": 0.25}, "data": {"name": "mnist", "validation": 0.1},
           "method": {"name": "condlr", "tau": 0.1}, "objective": {"name": "madry", "attack": {"name": "pgd"}},
           "optimizer": {"name": "sgd", "lr": 0.1}, "epochs": 7}  # fmt: skip


def card(name="net", **more):
    return build([evaluation(name, **more) | {"layers": [], "curve": []}], title="t").card()


def parsed(text):
    """Read the subset of YAML that the card writes: nested maps and lists, values as JSON."""

    def block(lines, indent):
        found = None
        while lines and len(lines[0]) - len(lines[0].lstrip()) >= indent and lines[0][indent] != " ":
            line = lines[0][indent:]
            if line.startswith("- "):
                found = [] if found is None else found
                lines[0] = f"{' ' * (indent + 2)}{line[2:]}"
                plain = line[2] == '"'
                found.append(json.loads(lines.pop(0)) if plain else block(lines, indent + 2))
            elif found is None or isinstance(found, dict):
                key, _, value = lines.pop(0)[indent:].partition(":")
                inner = indent if lines and lines[0][indent : indent + 2] == "- " else indent + 2
                found = (found or {}) | {key: json.loads(value) if value else block(lines, inner)}
            else:
                break
        return found

    lines = text.splitlines()
    found = block(lines, 0)
    assert not lines
    return found


@pytest.mark.parametrize("value", [
    {"a": 1, "b": "x: y # z", "c": ["1", "- no"], "d": {"e": {"f": 0.5}}},
    {"list": [{"a": 1, "b": [{"c": "d", "e": ["f"]}, {"c": "g"}]}, {"a": 2, "b": []}], "last": "'\"\n---"},
])  # fmt: skip
def test_the_header_is_read_as_it_was_meant(value):
    text = yaml(value)
    kept = json.loads(json.dumps(value).replace('"b": []', '"b": null'))
    assert parsed(text) == kept


def head(source):
    assert source.startswith("---\n")
    return parsed(source.split("---\n")[1])


def test_a_card_says_what_a_hub_and_a_reader_want_to_know():
    source = card(setting=SETTING, audit=audited(0.4), certificate=certified())
    meta = head(source)
    assert (meta["library_name"], meta["pipeline_tag"], meta["datasets"]) == (
        "ironrank", "image-classification", ["mnist"])  # fmt: skip
    (result,) = meta["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert (
        values["clean accuracy"] == 0.83 and values["accuracy under Audit, worst case, L∞, ε = 8/255"] == 0.4
    )
    assert values["certified accuracy, L2, ε = 36/255"] == 0.5
    for title in ("What it is", "Training", "Threat model", "Evaluation", "Limits", "How to load"):
        assert f"\n## {title}\n" in source
    for words in ("lenet5 (width 0.250)", "condlr (tau 0.100)", "Epochs: 7", "load_model", "white-box"):
        assert words in source, words


def test_what_is_not_proven_or_certified_is_no_metric():
    source = card(robust=0.7717, audit=audited(0.9, ("more steps",)), certificate=certified(0, 0))
    metrics = head(source)["model-index"][0]["results"][0]["metrics"]
    assert [metric["name"] for metric in metrics] == ["clean accuracy"]
    assert "77.2" not in source and "not proven" in source and "more steps" in source


def test_a_card_is_about_one_net():
    with refuses("one net", "2"):
        build([evaluation("a"), evaluation("b")], title="t").card()


def test_a_hostile_name_stays_a_name():
    source = card(HOSTILE, data=HOSTILE, method={"name": HOSTILE}, setting={"model": {HOSTILE: HOSTILE}})
    meta = head(source)
    assert meta["model-index"][0]["name"].startswith("<script>")
    assert "<script" not in source.split("---\n", 2)[2].split("```")[0]


# --- commands


CHANGES = (
    [],
    ["seed=4", "optimizer.lr=0.02", "validate.eps=8/255", "batch_size=7"],
    ["objective=trades", "objective.beta=3", "average=0.9", "data.validation=0.2"],
    ["device=cuda", "method=svd", "start=a folder/dense"],
)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("changes", CHANGES, ids=len)
def test_a_run_tells_the_command_that_makes_it(recipe, changes):
    run = build_run(recipe, changes)
    program, verb, name, *words = shlex.split(command_of(run))
    assert (program, verb, name) == ("ironrank", "train", recipe) and words[::2] == ["--set"] * (
        len(words) // 2
    )
    assert build_run(recipe, words[1::2]) == run
    assert len(words) // 2 <= len(changes)


def test_a_run_that_no_override_makes_has_no_command():
    run = build_run("condlr/lenet5-mnist")
    assert command_of(dataclasses.replace(run, recipe="")) is None
    inner = dataclasses.replace(run, start=dataclasses.replace(run, epochs=77))
    assert command_of(inner) is None
