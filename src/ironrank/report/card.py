"""A model card: what a net is, what it was trained on, what it withstands, where it ends, how to load it.

The header is the metadata that model hubs read (YAML, written here without a library: every text is quoted as JSON
quotes it, which YAML reads alike). Accuracies under attack stand in it only where no audit refused them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ironrank.errors import IronrankError
from ironrank.report import fields, markdown, text
from ironrank.report.cells import Cell, Column, Table
from ironrank.report.rows import Row

if TYPE_CHECKING:
    from ironrank.report.content import Content

TASK = {"type": "image-classification", "name": "Image classification"}


def render(content: Content) -> str:
    """Return the card of the one net of a report.

    Args:
        content: What the report says.

    Returns:
        Markdown with a header between two lines of three dashes.

    Raises:
        IronrankError: If the report is about several nets.
    """
    if len(content.nets) != 1:
        raise IronrankError(
            f"a model card is about one net, the report about {len(content.nets)}: name one folder"
        )
    row = content.nets[0]
    blocks = [
        f"---\n{yaml(_metadata(row))}---", f"# {markdown.escape(row.name)}",
        f"**{markdown.escape(content.verdict.sentence)}**",
        "## What it is", markdown.bullets(_what(row)),
        "## Training", markdown.bullets(_training(row)),
        "## Threat model", *map(markdown.escape, content.threat_model), markdown.bullets(content.attacks),
        "## Evaluation", markdown.table(_turned(content.overview)),
        *(markdown.table(item) for item in (content.audits, content.certificates) if item),
        "## Limits", markdown.bullets(_limits(row, content)),
        "## How to load", "The folder holds `model.safetensors`, which names its own architecture and the ranks.",
        markdown.code(_loading(row), "python"),
        "## Versions and commands", markdown.table(content.provenance),
        *(markdown.code(command) for _, command in content.commands),
    ]  # fmt: skip
    return "\n\n".join(filter(None, blocks)) + "\n"


def _metadata(row: Row) -> dict[str, Any]:
    data, recorded = _part(row, "data"), row.text("data").split(",")[0]
    name = data.get("name") if isinstance(data.get("name"), str) else recorded
    tags = ["ironrank", "low-rank", "adversarial-robustness", "pytorch", *_methods(row)]
    results = {
        "task": TASK,
        "dataset": {"name": name, "type": name, "split": "test"},
        "metrics": _metrics(row),
    }
    return {
        "library_name": "ironrank",
        "pipeline_tag": TASK["type"],
        "tags": list(dict.fromkeys(tags)),
        "datasets": [name],
        "metrics": ["accuracy"],
        "model-index": [{"name": row.name, "results": [results]}],
    }


def _methods(row: Row) -> list[str]:
    return [] if row.text("method") == text.DASH else [row.text("method")[:80]]


def _metrics(row: Row) -> list[dict[str, Any]]:
    found = [("accuracy", "clean accuracy", row.clean)]
    found += [
        ("accuracy", f"accuracy under {score.label}, {score.ball}", score.accuracy) for score in row.scores
    ]
    if row.certificate and not row.certificate.vacuous:
        found += [
            ("accuracy", f"certified accuracy, L2, ε = {text.epsilon(r)}", a)
            for r, a, _ in row.certificate.points
        ]
    return [{"type": kind, "name": name, "value": round(value, 6)} for kind, name, value in found]


def yaml(value: Mapping[str, Any], indent: int = 0) -> str:
    """Return plain values as YAML, in the subset that every reader agrees on.

    Args:
        value: Text, numbers, dicts and lists of these; keys are plain words.
        indent: Spaces before each line.

    Returns:
        Lines, each with its end.

    Example:
        >>> print(yaml({"tags": ["a: b"], "n": 1}), end="")
        tags:
        - "a: b"
        n: 1
    """
    lines = ""
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += f"{' ' * indent}{key}:\n{yaml(item, indent + 2)}"
        elif isinstance(item, list):
            lines += f"{' ' * indent}{key}:\n" + "".join(_entry(part, indent) for part in item)
        else:
            lines += f"{' ' * indent}{key}: {json.dumps(item, ensure_ascii=False)}\n"
    return lines


def _entry(value: Any, indent: int) -> str:
    if not isinstance(value, Mapping):
        return f"{' ' * indent}- {json.dumps(value, ensure_ascii=False)}\n"
    lines = yaml(value, indent + 2)
    return f"{' ' * indent}- {lines[indent + 2 :]}"


def _part(row: Row, key: str) -> dict[str, Any]:
    """Return a part of the run that the net came from; empty where it is not known."""
    setting = row.raw.get("setting")
    found = setting.get(key) if isinstance(setting, dict) else None
    return found if isinstance(found, dict) else {}


def _what(row: Row) -> list[str]:
    dense = row.ratio("params_deployed", "params_dense")
    share = "" if dense is None else f", {text.percent(dense)} % of the same net with dense layers"
    factored = sum(layer.factored for layer in row.layers)
    model = _settings(_part(row, "model"))
    return [
        "An image classifier for PyTorch; pixels in [0, 1] go in, logits come out, normalization is inside.",
        *([f"Architecture: {model}."] if model else []),
        f"Method: {_settings(_part(row, 'method')) or row.text('method')}.",
        f"{text.count(row.size)} deployed parameters{share}.",
        f"{factored} of {len(row.layers)} layers hold low-rank factors; the largest condition number of a layer is "
        f"{text.significant(row.max_cond)}.",
    ]  # fmt: skip


def _training(row: Row) -> list[str]:
    setting = row.raw.get("setting")
    epochs = setting.get("epochs") if isinstance(setting, dict) else None
    found = {
        "Data": _settings(_part(row, "data")) or row.text("data"),
        "Objective": _settings(_part(row, "objective")),
        "Optimizer": _settings(_part(row, "optimizer")),
        "Epochs": "" if epochs is None else fields.said(epochs),
        "Seed": row.text("train_seed" if "train_seed" in row.raw else "seed"),
        "Began with": row.before.what if row.before else "",
    }
    return [f"{name}: {said}." for name, said in found.items() if said]


def _settings(part: Mapping[str, Any]) -> str:
    """Return a member of a family with its settings, such as ``sgd (lr 0.100)``; empty where it is not known."""
    if not part:
        return ""
    inner = {
        key: _settings(item) if isinstance(item, Mapping) else fields.said(item)
        for key, item in part.items()
        if key != "name" and item not in (None, "", {}, [])
    }
    listed = ", ".join(f"{key} {said}" for key, said in inner.items() if said)
    return f"{fields.word(part.get('name'))} ({listed})" if listed else fields.word(part.get("name"))


def _limits(row: Row, content: Content) -> list[str]:
    proven = row.certificate is not None and not row.certificate.vacuous
    return [
        *content.warnings,
        *(["No audit was run: the accuracies under attack come from few attacks, and stronger ones may lower them."]
          if row.audit is None else []),
        *([] if proven else ["No certificate says more than nothing: robustness is measured, not proven."]),
        "One trained net: another seed gives other numbers.",
        "Only the balls above were searched; other changes of an image (rotation, blur, other norms) were not.",
        "The numbers hold for images like those of the test set, and for no other use.",
        *content.missing,
    ]  # fmt: skip


def _turned(table: Table) -> Table:
    """Return the one table of a single net with its columns as rows."""
    columns = (Column("what", words=True), Column("value"))
    heads = (f"{column.label} ({column.unit})" if column.unit else column.label for column in table.columns)
    cells = zip(heads, table.rows[0], strict=True)
    return Table(table.caption.replace(" The net of the verdict is set in bold.", ""), columns,
                 tuple((Cell(head), cell) for head, cell in list(cells)[1:]))  # fmt: skip


def _loading(row: Row) -> str:
    given = _part(row, "model").get("name") == "given"
    argument = ", model=net" if given else ""
    before = "net = ...  # the dense module that was trained, built as before\n" if given else ""
    return (
        f"from ironrank import deploy, load_model\n\n{before}"
        f'model = load_model("FOLDER"{argument})  # evaluation mode; layers hold factors\n'
        "small = deploy(model)  # plain PyTorch layers\nlogits = small(images)  # (b, c, h, w) in [0, 1]"
    )
