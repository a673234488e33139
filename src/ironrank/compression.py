"""Runs that compress a trained net: that of a run folder, a saved one, or a module in memory.

    method              stages                                  epochs                           learning rate
    svd, uv             the method, from the net's weights      half of the earlier training's   a tenth
    magnitude, scores   the method, from the net's weights      half of the earlier training's   a tenth
    condlr, svd-prune   the method, from the net's weights      half of the earlier training's   the same
    cstar               the method; then fine-tuning, factored  half, and half                   the same, and a tenth
    admm-filters        the method; then fine-tuning            half, and half                   the same, and a tenth

Fine-tuning is plain (`ironrank.methods.Dense` trains what is left as it is), or, after CSTAR and with a condition,
CondLR's. At the full learning rate free factors of trained weights diverge within a few steps. What a method counts in
steps is a share of those it has (`Method.paced`). An objective whose eps grew has its full eps from the first step on.
What is set by hand is taken as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ironrank.artifact import WHICH
from ironrank.config import Pair, override, pairs_of, parse
from ironrank.data import Dataset
from ironrank.errors import IronrankError, nearest
from ironrank.files import read_json
from ironrank.methods import METHODS
from ironrank.models import Given, Model
from ironrank.ranks import parse_budget
from ironrank.recipes.stages import at_full_eps, fine_tuned, gentle, steps_of
from ironrank.settings import hints_of
from ironrank.training import Run, initial_model, read_run

TWO_STAGES = ("cstar", "admm-filters")
CONDITIONED = ("cstar",)  # of these, what leaves factors
FREE = (
    "svd",
    "uv",
    "magnitude",
    "scores",
)  # they train on what is left of trained weights, without constraint


def compress_run(
    folder: Path | str | None,
    method: str = "svd",
    overrides: Iterable[str] = (),
    *,
    budget: str | None = None,
    condition: float | None = None,
    **settings: Any,
) -> Run:
    """Build the run that compresses a trained dense net.

    Args:
        folder: Its run folder, or one that `ironrank.save` wrote; None for a module that is passed to the training.
        method: Name of the method.
        overrides: ``path=value``, as in `ironrank.config`; ``method...`` means this method, ``epochs`` all stages
            together. For a net without a run, ``data=...`` and ``model=...`` have to be among them or the settings.
        budget: Size of the result, such as "params=8x".
        condition: tau of CondLR in fine-tuning, where there is such a stage; None for plain fine-tuning.
        **settings: Settings of the run, such as ``data``, ``objective`` or ``epochs``, in place of the earlier run's.

    Returns:
        The run; its first stage starts from the net's weights.

    Raises:
        IronrankError: If the folder holds no dense net, something has to be said about it, or a value is not allowed.
    """
    for name in settings:
        if name not in hints_of(Run):
            raise IronrankError(f"{name}: no such setting of a run; {nearest(name, list(hints_of(Run)))}")
    if condition is not None and method not in CONDITIONED:
        raise IronrankError(
            f"condition={condition:g}: only {', '.join(CONDITIONED)} fine-tunes factors in a stage of its own; "
            "with condlr, set method.tau"
        )
    pairs = pairs_of(overrides)
    run = _source(folder, settings, pairs)
    if method not in TWO_STAGES and "epochs" not in settings:
        run = dataclasses.replace(run, epochs=(run.epochs + 1) // 2)
    if method in FREE and "optimizer" not in settings:
        run = dataclasses.replace(run, optimizer=gentle(run))
    sized = [] if budget is None else _sized(run, method, budget, [path for path, _ in pairs])
    run = override(run, [("method", method), *pairs, *sized])
    steps = steps_of(run, run.epochs - run.epochs // 2 if method in TWO_STAGES else run.epochs)
    given = [path.removeprefix("method.") for path, _ in pairs]
    run = dataclasses.replace(run, method=run.method.paced(steps, given))
    return fine_tuned(run, condition) if method in TWO_STAGES else run


def _sized(run: Run, method: str, budget: str, given: list[str]) -> list[Pair]:
    """Return the settings that a budget stands for: itself, and for multiply-adds the shape of an input."""
    if "method.budget" in given:
        raise IronrankError(f"budget={budget!r} and method.budget: give one of them")
    counted = parse_budget(budget).cost == "macs" and "method.input_shape" not in given
    if not counted or method not in METHODS or "input_shape" not in hints_of(METHODS[method]):
        return [("method.budget", budget)]
    return [("method.input_shape", ",".join(map(str, run.data.spec.shape))), ("method.budget", budget)]


def planned(run: Run, model: nn.Module | None = None) -> str:
    """Say which rank every layer would get, in the first stage that is not trained yet; nothing is written.

    Args:
        run: From `compress_run`.
        model: The dense module of your own, where the run's model is `ironrank.models.Given`.

    Returns:
        A text table.

    Raises:
        IronrankError: If the method chooses no ranks, or the start does not fit.
    """
    while isinstance(run.start, Run):
        run = run.start
    if not hasattr(run.method, "plan"):
        raise IronrankError(f"method {run.method.label()} chooses no ranks: there is no plan to show")
    table = str(run.method.plan(initial_model(run, run.start, model)))
    if not run.method.finds_ranks:
        return table
    within = f", within {budget}" if (budget := getattr(run.method, "budget", "")) else ""
    return (
        f"{table}\nThese are the ranks at the start; {run.method.label()} finds its own in training{within}."
    )


def _source(folder: Path | str | None, settings: dict[str, Any], pairs: list[Pair]) -> Run:
    """Return the run whose weights are compressed, with the settings that were given, ready to start from them."""
    if folder is None:
        return _described("a module of your own", None, {"model": Given(), **settings}, pairs)
    folder = Path(folder)
    if not (folder / "run.json").is_file() and (folder / WHICH["best"]).is_file():
        return _described(str(folder), str(folder), settings, pairs)
    return dataclasses.replace(at_full_eps(_trained(folder)), start=str(folder), **settings)


def _described(what: str, start: str | None, settings: dict[str, Any], pairs: list[Pair]) -> Run:
    families: dict[str, type] = {"data": Dataset, "model": Model}
    known = {name: parse(text, families[name], name) for name, text in pairs if name in families} | settings
    if missing := [name for name in families if name not in known]:
        needed = " and ".join(f"{name}=... (see `ironrank list {_LISTS[name]}`)" for name in missing)
        raise IronrankError(f"{what} comes without a run.json: say {needed}")
    return Run(**{"start": start, **known})


_LISTS = {"data": "data", "model": "models"}


def _trained(folder: Path) -> Run:
    """Return the run of a folder that holds a trained dense net."""
    old = read_run(folder)
    if not (folder / WHICH["best"]).is_file():
        raise IronrankError(f"{folder} holds no trained net yet: finish that run first (--resume)")
    layout = read_json(folder / "layout.json")
    if not isinstance(layout, dict):
        raise IronrankError(f"{folder / 'layout.json'} is damaged: no layout; restore it or train again")
    if layout.get("layers"):
        raise IronrankError(f"{folder} holds a net that is low-rank already: start from a dense run")
    return old
