"""What the verbs of the command line do, as functions: one call each."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from ironrank.artifact import WHICH
from ironrank.certificates.folders import certify_folder
from ironrank.compression import compress_run
from ironrank.config import parse
from ironrank.devices import check_device
from ironrank.errors import IronrankError
from ironrank.files import read_lines, write_json
from ironrank.judge import evaluate_folder
from ironrank.judge.folders import weakness_folder
from ironrank.judge.named import audit_named
from ironrank.models import Given, Model
from ironrank.own import source_of
from ironrank.recipes.command import command_of
from ironrank.report import Report, build
from ironrank.report.gather import courses, gather, read_small
from ironrank.report.rows import told_apart, unique
from ironrank.shell import command_line
from ironrank.training import Run, read_run
from ironrank.training import train as loop
from ironrank.training.run import score

EVALUATION, LOG = "evaluation.json", "metrics.jsonl"


def train(
    run: Run,
    out: Path | str,
    *,
    model: nn.Module | None = None,
    resume: bool = False,
    until: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a run, and say what it came to.

    Args:
        run: From `ironrank.config.build_run` or `ironrank.compression.compress_run`.
        out: The run folder.
        model: The dense module of your own, where the run's model is `ironrank.models.Given`.
        resume: Go on from the folder's checkpoint.
        until: Stop after this many epochs, to be resumed later.
        console: Where progress goes; None for nowhere.

    Returns:
        What `outcome` returns.
    """
    check_device(run.device)
    return outcome(loop(run, out, model=model, resume=resume, until=until, console=console), run)


def compress(
    source: nn.Module | Path | str,
    method: str = "svd",
    overrides: Iterable[str] = (),
    *,
    out: Path | str,
    budget: str | None = None,
    condition: float | None = None,
    model: nn.Module | Model | str | None = None,
    resume: bool = False,
    until: int | None = None,
    console: Console | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Compress a trained dense net, and train it on.

    ``compress(net, "cstar", budget="params=8x", data=MNIST(folder="data"), objective=Madry(), out="small")``;
    then ``load_model("small", model=net)`` is the small net.

    Args:
        source: A dense module, ``MODULE:FUNCTION`` that returns one, a run folder, or one that `ironrank.save` wrote.
        method: Name of the method.
        overrides: ``path=value``; see `ironrank.compression.compress_run`.
        out: The new run folder.
        budget: Size of the result for methods that have one, such as "params=8x".
        condition: tau of CondLR in fine-tuning, where there is such a stage.
        model: What the folder's net is built by: the dense module of your own, ``MODULE:FUNCTION``, or an architecture.
        resume: Go on from the new folder's checkpoint.
        until: Stop after this many epochs, to be resumed later.
        console: Where progress goes; None for nowhere.
        **settings: Settings of the run: ``data``, ``objective``, ``epochs`` and so on.

    Returns:
        What `outcome` returns.

    Raises:
        IronrankError: If there is no dense net, something about it is missing, or a value is not allowed.
    """
    if isinstance(model, Model):
        settings["model"], model = model, None
    folder, given, own_settings = source_of(source, model)
    settings = own_settings | settings
    run = compress_run(folder, method, overrides, budget=budget, condition=condition, **settings)
    return train(run, out, model=given, resume=resume, until=until, console=console)


def outcome(folder: Path | str, run: Run | None = None) -> dict[str, Any]:
    """Say what a training came to.

    Args:
        folder: Its run folder.
        run: The run; by default read from the folder.

    Returns:
        ``folder``; ``best``, the line of metrics.jsonl of the epoch whose weights were kept, or None before
        the first; ``epochs`` done and ``epochs_planned``; whether it is ``finished``; and ``events``, the lines of
        metrics.jsonl that say what was odd: before the first step, or what a guard saw or did.
    """
    folder = Path(folder)
    lines = read_lines(folder / LOG)
    epochs = [line for line in lines if "epoch" in line]
    run = run or read_run(folder)

    def order(line: dict[str, Any]) -> tuple[tuple[float, float], int]:  # of equals the later epoch
        return score(run, line.get("val_robust", 0.0), line.get("val_clean", 0.0)), line["epoch"]

    best = max(epochs, key=order, default=None)
    events, finished = [line for line in lines if "event" in line], (folder / WHICH["best"]).is_file()
    return {"folder": str(folder), "best": best, "epochs": len(epochs), "epochs_planned": run.epochs,
            "finished": finished, "events": events}  # fmt: skip


def evaluate(
    folder: Path | str,
    *,
    eps: str | None = None,
    device: str = "cpu",
    out: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Judge the net of a run folder.

    Args:
        folder: The run folder.
        eps: Radii of the attacks, with commas, such as ``"4/255,8/255"``; by default that of validation.
        device: Torch device.
        out: Where to write the result; by default evaluation.json in the folder, for the best weights.
        **options: Further arguments of `ironrank.judge.evaluate_folder`.

    Returns:
        What `ironrank.judge.evaluate_folder` returns.
    """
    check_device(device)
    radii = None if eps is None else parse(eps, tuple[float, ...], "eps")
    save = out is None and options.get("which", "best") == "best"
    result = evaluate_folder(folder, eps=radii, device=device, save=save, **options)
    if out is not None:
        write_json(out, result)
    return result


def audit(
    what: Path | str,
    *,
    eps: str | None = None,
    levels: Mapping[str, bool],
    device: str = "cpu",
    **options: Any,
) -> dict[str, Any]:
    """Audit what a command line names.

    Args:
        what: A run folder, a ``.onnx`` file, or ``"module:function"``.
        eps: Radius, such as ``"8/255"``; by default that of the run's validation attack.
        levels: Which levels were asked for, at most one; by default "quick".
        device: Torch device.
        **options: Further arguments of `ironrank.judge.named.audit_named`.

    Returns:
        What `ironrank.judge.audit.audit` returns.

    Raises:
        IronrankError: If more than one level is asked for.
    """
    check_device(device)
    asked = [level for level, wanted in levels.items() if wanted]
    if len(asked) > 1:
        raise IronrankError(f"audit with --{' and --'.join(asked)}: one level is needed")
    radius = None if eps is None else parse(eps, float, "eps")
    return audit_named(what, eps=radius, level=(asked or ["quick"])[0], device=device, **options)


def certify(folder: Path | str, *, radii: str, device: str = "cpu", **options: Any) -> dict[str, Any]:
    """Certify the net of a run folder.

    Args:
        folder: The run folder.
        radii: Radii in L2, with commas, such as ``"36/255,72/255"``.
        device: Torch device.
        **options: Further arguments of `ironrank.certificates.folders.certify_folder`.

    Returns:
        What `ironrank.certificates.folders.certify_folder` returns.
    """
    check_device(device)
    return certify_folder(folder, radii=parse(radii, tuple[float, ...], "radii"), device=device, **options)


def weakness(folder: Path | str, *, eps: str, device: str = "cpu", **options: Any) -> dict[str, Any]:
    """Map the sensitivity of the net of a run folder.

    Args:
        folder: The run folder.
        eps: Radius of the universal perturbation, such as ``"8/255"``.
        device: Torch device.
        **options: Further arguments of `ironrank.judge.folders.weakness_folder`.

    Returns:
        What `ironrank.judge.folders.weakness_folder` returns.
    """
    check_device(device)
    return weakness_folder(folder, eps=parse(eps, float, "eps"), device=device, **options)


def report(
    folders: Sequence[Path | str],
    *,
    html: Path | None = None,
    markdown: Path | None = None,
    json: Path | None = None,
    card: Path | None = None,
    data: Path | str | None = None,
    title: str = "Small, fast and hard to fool",
    group: bool | None = None,
    model: nn.Module | str | None = None,
) -> Report:
    """Compare the nets of run folders in one report.

    Args:
        folders: Run folders, in the order of the table; each is judged first where it has no evaluation.json. What
            lies in it beside that (audit.json, certificate.json, weakness.json, examples.safetensors) is shown too.
        html: Where to write the page.
        markdown: Where to write the Markdown file.
        json: Where to write the JSON file.
        card: Where to write the model card, of one folder.
        data: Folder with the data set, for nets that are judged first and for examples.
        title: The title of the page.
        group: Whether folders that differ in their seed alone become one row, mean and standard deviation; None
            where that is unambiguous.
        model: The dense module of your own, or ``MODULE:FUNCTION``, where a net that is judged first is of one.

    Returns:
        The report.

    Raises:
        IronrankError: If a folder is named twice, holds no run, or a file in it is damaged.
    """
    places = [Path(folder) for folder in folders]
    there = [place.resolve() for place in places]
    if twice := [str(place) for place, path in zip(places, there, strict=True) if there.count(path) > 1]:
        raise IronrankError(f"report of {twice[0]}: the folder is named more than once; name it once")
    rows = [gather(folder, _row(folder, data, model), data) for folder in places]
    rows = [row | {"trained_by": _trained_by(folder)} for row, folder in zip(rows, places, strict=True)]
    names = told_apart([str(row["name"]) for row in rows], places)
    rows = [row | {"name": name} for row, name in zip(rows, names, strict=True)]
    named = unique(str(row["name"]) for row in rows)
    runs = [course for name, folder in zip(named, places, strict=True) for course in courses(name, folder)]
    files = {"html": html, "markdown": markdown, "json": json, "card": card}
    choice = {} if group is None else {"group" if group else "no-group": True}
    command = command_line("report", *places, title=title, **choice, **files, data=data, model=model)
    made = build(rows, title=title, runs=runs, group=group, command=command)
    for kind, path in files.items():
        if path is not None:
            getattr(made, f"write_{kind}")(path)
    return made


def _row(folder: Path, data: Path | str | None, model: nn.Module | str | None) -> dict[str, Any]:
    there = folder / EVALUATION
    if there.is_file():
        row = read_small(there)
    else:
        given = model if model is not None and isinstance(read_run(folder).model, Given) else None
        row = evaluate(folder, data=None if data is None else str(data), model=given)
    if not isinstance(row, dict):
        raise IronrankError(f"{there} holds no evaluation: remove it, or evaluate {folder} again")
    return {"name": folder.name or folder.resolve().name, **row}


def _trained_by(folder: Path) -> str:
    command = command_of(read_run(folder)) if (folder / "run.json").is_file() else None
    return "" if command is None else shlex.join([*shlex.split(command), "--out", str(folder)])
