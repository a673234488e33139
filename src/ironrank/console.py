"""What the command line shows: results on stdout, as tables or JSON; progress on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ironrank.files import plain_json


def progress(quiet: bool = False) -> Console | None:
    """Return the console that progress goes to.

    Args:
        quiet: Whether it goes nowhere.

    Returns:
        A console on stderr, or None.
    """
    return None if quiet or not speaks() else Console(stderr=True)


def speaks() -> bool:
    """Return whether this process speaks for all: under ``torchrun``, only the first one does."""
    return os.environ.get("RANK", "0") == "0"


def show(result: Any, render: Callable[[Any], RenderableType], as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        result: Plain values.
        render: Makes something that a rich console prints; a text is printed as it is.
        as_json: Print the plain values as JSON instead, and nothing else.
    """
    if not speaks():
        return
    shown = json.dumps(plain_json(result), indent=2, allow_nan=False) if as_json else render(result)
    if isinstance(shown, str):
        typer.echo(shown)
    else:
        Console().print(shown)


@contextmanager
def resumable(out: Path, again: str = "the same with --resume", what: str = "epochs") -> Iterator[None]:
    """Say how to go on where a training or an audit is interrupted.

    Args:
        out: The folder.
        again: What to run then.
        what: What is finished in parts.

    Yields:
        Nothing.

    Raises:
        typer.Exit: With code 130, after an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; finished {what} are kept in {out}: to go on, run {again}", err=True)
        raise typer.Exit(130) from None


def verdict(result: Mapping[str, Any]) -> RenderableType:
    """Show what a demo came to: its nets side by side, a sentence, and the path of the report.

    Args:
        result: What `ironrank.recipes.demo.run_demo` returns.

    Returns:
        Something that a rich console prints.
    """
    nets = {row["name"]: dict(_numbers(row)) for row in result["rows"]}
    lines = list(next(iter(nets.values()), {}))
    side_by_side = table(
        ("", *nets), ((line, *(numbers[line] for numbers in nets.values())) for line in lines)
    )
    return Group(side_by_side, Text(result["verdict"]), Text(result["report"]))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], title: str | None = None) -> Table:
    """Return a table whose cells are shown as they are.

    Args:
        head: Words above the columns.
        rows: Texts.
        title: Words above the table.

    Returns:
        Something that a rich console prints.
    """
    made = Table(*head, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def catalogue(families: Mapping[str, Mapping[str, str]]) -> RenderableType:
    """Show what there is to choose from.

    Args:
        families: What `ironrank.catalog.members` returns.

    Returns:
        One table a family, with equally wide first columns.
    """
    width = max(len(name) for family in families.values() for name in family)
    return Group(*(table((family.ljust(width), ""), items.items()) for family, items in families.items()))


def settings(member: Mapping[str, Any]) -> RenderableType:
    """Show the settings of one member.

    Args:
        member: What `ironrank.catalog.settings_of` returns.

    Returns:
        A line and a table.
    """
    rows = [(row["field"], plain(row["default"]), row["meaning"], row["allowed"], row["paper"] or "")
            for row in member["settings"]]  # fmt: skip
    head = Text(f"{member['family']} {member['name']}\n{member['text']}")
    return Group(head, table(("setting", "default", "meaning", "allowed", "paper"), rows))


def plain(value: Any) -> str:
    """Return a value as it is written in an override.

    Args:
        value: A plain value; a member of a family is a dict with its name.

    Returns:
        Text.

    Example:
        >>> plain(8 / 255), plain(None), plain({"name": "sgd", "lr": 0.1}), plain([])
        ('8/255', 'none', 'sgd', '[]')
    """
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"])
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        pixels = round(value * 255)
        return f"{pixels}/255" if 0 < pixels < 32 and abs(value * 255 - pixels) < 1e-9 else f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def outcome(result: Mapping[str, Any]) -> str:
    """Show what `ironrank.verbs.outcome` returns, in one line.

    Args:
        result: Its return value.

    Returns:
        The folder, the best epoch, what guards saw, and how to go on where epochs are left.
    """
    parts, best = [str(result["folder"])], result["best"]
    if best is not None:
        scores = [f"{word} {100 * best[key]:.1f} %" for key, word in _SCORES.items() if key in best]
        parts.append(
            f"best epoch {best['epoch']}: " + (", ".join(scores) or "the last, for want of validation")
        )
    for event in result["events"]:
        parts.append(event["event"] + (f" in epoch {event['at_epoch']}" if "at_epoch" in event else "")
                     + (f" ({event['to_give_one']} gives it one)" if "to_give_one" in event else ""))  # fmt: skip
    if result["epochs"] < result["epochs_planned"]:
        done = f"{result['epochs']} of {result['epochs_planned']} epochs done"
        parts.append(f"{done}: {'out of patience' if result['finished'] else 'go on with --resume'}")
    return "; ".join(parts)


_SCORES = {"val_clean": "validation clean", "val_robust": "robust"}


def evaluation(result: Mapping[str, Any]) -> RenderableType:
    """Show how a net was judged.

    Args:
        result: What `ironrank.judge.evaluate_folder` returns.

    Returns:
        A line, a table of the net and one of its layers.
    """
    head = f"{result['name']}: {result['n']} test images, seed {result['seed']}, {result['device']}"
    layers = [
        (layer["name"], layer["kind"], "x".join(map(str, layer["shape"])),
         f"{layer['rank']} of {layer['full_rank']}", _number(layer["cond"]))
        for layer in result["layers"]
    ]  # fmt: skip
    by_layer = table(("layer", "kind", "shape", "rank", "cond"), layers)
    return Group(Text(head), table(("", ""), _numbers(result)), by_layer)


def audit(result: Mapping[str, Any]) -> RenderableType:
    """Show an audit: the verdict, what each attack found, and the sanity tests.

    Args:
        result: What `ironrank.judge.audit.audit` returns.

    Returns:
        Lines and two tables.
    """
    ball = f"{result['threat']['norm']} {plain(result['threat']['eps'])}"
    head = f"{result['name']}: {result['data']}, {ball}, {result['level']}, seed {result['seed']}"
    attacks = [
        (row["name"], row["describe"], row["kind"], f"{_percent(row['accuracy'])} of {row['n']}",
         _percent(row["standing"]))
        for row in result["attacks"]
    ]  # fmt: skip
    checks = [("passed" if row["passed"] else "FAILED", row["name"], row["text"]) for row in result["checks"]]
    curve = ", ".join(f"{plain(point['eps'])}: {_percent(point['accuracy'])}" for point in result["curve"])
    return Group(
        Text(head),
        table(("attack", "", "kind", "accuracy alone", "all so far"), attacks),
        table(("", "sanity test", ""), checks),
        Text(f"clean {_percent(result['clean'])}; accuracy against eps: {curve}"),
        *(Text(f"note: {flag}") for flag in result["flags"]),
        Text(result["verdict"]["text"], style="bold"),
    )


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    timing, hits = result["latency_ms"], result["robust"]
    attacked = [(f"accuracy, {h['attack']} at {plain(h['eps'])}", _percent(h["accuracy"])) for h in hits]
    return [
        ("accuracy, clean", _percent(result["clean"])),
        *attacked,
        ("parameters, deployed", _share(result, "params_deployed", "params_dense")),
        ("multiply-adds", _share(result, "macs", "macs_dense")),
        ("bytes", f"{result['bytes']:,}"),
        ("latency, batch 1", f"{timing['median']:.3f} ms [{timing['q1']:.3f}, {timing['q3']:.3f}]"),
        ("largest condition number", _number(result["max_cond"])),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"


def _share(result: Mapping[str, Any], part: str, whole: str) -> str:
    return f"{result[part]:,} ({100 * result[part] / result[whole]:.1f} % of dense)"
