"""What stands in a run folder beside its evaluation: audit, certificate, weakness map, examples, first weights.

All of it goes into the evaluation itself, under one key each, so that a report can be made again from its JSON file
alone. What is missing because it cannot be made is a key ``missing`` with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.errors import IronrankError
from ironrank.files import read_json, read_lines, read_tensors
from ironrank.judge.before import before
from ironrank.judge.evaluate import for_inference
from ironrank.judge.examples import AMONG, FILE, examples, facts
from ironrank.report import pictures, text, weakness
from ironrank.settings import encode
from ironrank.training.run import Run, decode_run, read_run

AUDIT, CERTIFICATE, WEAKNESS, LOG, RUN = (
    "audit.json",
    "certificate.json",
    "weakness.json",
    "metrics.jsonl",
    "run.json",
)
LARGEST = 64 * 1024**2  # bytes of a file that a report reads
STAGES = 8  # earlier stages that are followed
PLACES = ("seed", "device", "folder", "download")  # what does not make another setting


def gather(folder: Path, evaluation: Mapping[str, Any], data: Path | str | None = None) -> dict[str, Any]:
    """Return an evaluation with all that stands beside it in the run folder.

    Args:
        folder: The run folder.
        evaluation: What `ironrank.judge.evaluate_folder` returned for it.
        data: Folder with the data set, for examples that are drawn now; by default that of the run.

    Returns:
        The evaluation, and where there is one: ``audit``, ``certificate``, ``weakness``, ``examples``, ``before`` and
        ``setting``. A file among them that is damaged or too large raises an `IronrankError`.
    """
    found = dict(evaluation)
    for key, name in (("audit", AUDIT), ("certificate", CERTIFICATE), ("weakness", WEAKNESS)):
        if (folder / name).is_file():
            found[key] = read_small(folder / name)
    images = folder / "weakness.safetensors"
    if isinstance(found.get("weakness"), dict) and images.is_file():
        found["weakness"] = {**found["weakness"], "pictures": weakness.drawn(_arrays(images)[0])}
    if not (folder / RUN).is_file():
        return found
    found["setting"] = setting(folder)
    for key, make in (
        ("examples", lambda: _examples(folder, evaluation, data)),
        ("before", lambda: before(folder)),
    ):
        try:
            found[key] = make()
        except IronrankError as error:
            found[key] = {"missing": str(error)}
    return found


def read_small(path: Path) -> Any:
    """Read a JSON file of a size that a report can carry.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        IronrankError: If it is missing, damaged or too large.
    """
    _check_size(path)
    return read_json(path)


def _check_size(path: Path) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size > LARGEST:
        raise IronrankError(
            f"{path} has {size >> 20} MiB, a report reads {LARGEST >> 20}: remove it or make it again"
        )


def _arrays(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    _check_size(path)
    tensors, notes = read_tensors(path)
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}, notes


def _examples(folder: Path, evaluation: Mapping[str, Any], data: Path | str | None) -> dict[str, Any]:
    if not (folder / FILE).is_file():
        return _drawn_now(folder, evaluation, data)
    arrays, notes = _arrays(folder / FILE)
    try:
        known = json.loads(notes.get("examples", ""))
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise IronrankError(
            f"{folder / FILE} does not say which attack made it: remove it, or evaluate again"
        )
    return pictures.drawn(arrays, known)


def _drawn_now(folder: Path, evaluation: Mapping[str, Any], data: Path | str | None) -> dict[str, Any]:
    run = read_run(folder)
    images = (run.data if data is None else dataclasses.replace(run.data, folder=str(data))).load("test")
    images = images.first(text.whole(evaluation.get("n")) or len(images))
    attack, seed = _judged(run, evaluation), text.whole(evaluation.get("seed")) or 0
    found = examples(for_inference(load_model(folder)), images, attack, seed=seed)
    arrays = {name: tensor.numpy() for name, tensor in found.items()}
    return pictures.drawn(arrays, facts(attack, seed, min(AMONG, len(images))))


def _judged(run: Run, evaluation: Mapping[str, Any]) -> PGD:
    """Return the strongest attack that the net was judged by: PGD in the last ball."""
    entries = evaluation.get("robust")
    last = entries[-1] if isinstance(entries, list) and entries and isinstance(entries[-1], dict) else {}
    steps, restarts = (text.whole(last.get(key)) for key in ("steps", "restarts"))
    norm, eps = last.get("norm", run.validate.norm), last.get("eps", run.validate.eps)
    return PGD(norm=norm, eps=eps, steps=steps or 20, restarts=restarts or 1)


def setting(folder: Path, stages: int = STAGES) -> dict[str, Any]:
    """Return what a run folder was trained with, without its seed and places: equal for runs of one setting.

    Args:
        folder: The run folder.
        stages: Earlier stages that are followed at most.

    Returns:
        The values of run.json, with defaults for what was not a setting yet when it was written; ``start`` is the
        setting of the earlier stage, where that is there.

    Raises:
        IronrankError: If run.json holds no run.
    """
    raw = read_small(folder / RUN)
    with contextlib.suppress(IronrankError):  # else as it is: another version's, say
        raw = encode(decode_run(raw))
    raw = _bare(raw)
    if not isinstance(raw, dict):
        raise IronrankError(f"{folder / RUN} holds no run: restore it or train again")
    start = raw.get("start")
    if isinstance(start, str) and stages and (Path(start) / RUN).is_file():
        raw["start"] = setting(Path(start), stages - 1)
    return raw


def _bare(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _bare(item) for key, item in value.items() if key not in PLACES}


def courses(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the training metrics of a run folder, and of the earlier stages inside it, latest first.

    Args:
        name: The name of its row.
        folder: The run folder.

    Returns:
        ``name`` and ``metrics`` of each stage.
    """
    found, stage = [{"name": name, "metrics": _lines(folder)}], folder / "start"
    while (stage / LOG).is_file() and len(found) <= STAGES:
        method = read_run(stage).method.name
        found.append({"name": f"{name}, earlier: {method}", "metrics": _lines(stage)})
        stage = stage / "start"
    return found


def _lines(folder: Path) -> list[dict[str, Any]]:
    _check_size(folder / LOG)
    return read_lines(folder / LOG)
