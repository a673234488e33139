"""Runs from text: a recipe, and overrides such as ``method.tau=0.5``, applied from left to right.

    mode=svd nominal=50          arguments of the recipe, by their bare name; they come first
    epochs=2 batch_size=64       settings of the run
    method=svd                   another member of the family; what means the same stays, so does an objective's ball
    objective.attack.eps=8/255   a setting of the member
    method.ranks={"fc1": 10}     JSON where a table is needed; lists as JSON or with commas
    start=runs/dense             an earlier run folder; ``none`` where that is allowed

A run whose ``start`` is a run of its own has two stages that must agree: what does not concern ``method``,
``epochs`` or ``start`` reaches the earlier stage too, where it has that setting. ``objective.ramp`` is the first
stage's alone: in each further one eps would grow anew. Where the ball of the objective changes, that of ``validate``
does too, unless they differed or ``validate`` is set.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ironrank.errors import IronrankError, nearest
from ironrank.objectives import Objective
from ironrank.recipes import RECIPES
from ironrank.settings import Settings, hints_of, number, settings_in
from ironrank.training import FAMILIES, Run
from ironrank.training.run import check_radii

OF_ONE_STAGE = ("start", "method", "epochs")
OF_FIRST_STAGE = ("objective.ramp",)  # each stage would let eps grow anew
Pair = tuple[str, str]
_NOWHERE = object()  # the value of a setting that a run does not have


def build_run(
    recipe: str,
    overrides: Iterable[str] = (),
) -> Run:
    """Build a run from a recipe.

    Args:
        recipe: Name of the recipe.
        overrides: ``path=value``, as at the top of this file.

    Returns:
        The run.

    Raises:
        IronrankError: If the recipe or a path is unknown, or a value is not allowed.

    Example:
        >>> run = build_run("condlr/lenet5-mnist", ["nominal=50", "method.tau=0.5", "validate.eps=8/255"])
        >>> run.method.keep, run.method.tau, round(run.validate.eps, 3)
        (0.5, 0.5, 0.031)
    """
    if recipe not in RECIPES:
        raise IronrankError(f"recipe '{recipe}': {nearest(recipe, list(RECIPES))}")
    hints, pairs = arguments(RECIPES[recipe]), pairs_of(overrides)
    run = RECIPES[recipe](**{path: parse(text, hints[path], path) for path, text in pairs if path in hints})
    return override(run, [pair for pair in pairs if pair[0] not in hints], hints)


def override(run: Run, pairs: Iterable[Pair], arguments: Iterable[str] = ()) -> Run:
    """Apply overrides to a run, from left to right.

    Args:
        run: The run.
        pairs: Dotted paths and texts.
        arguments: Names that were allowed too, for error messages.

    Returns:
        The changed run.

    Raises:
        IronrankError: If a path is unknown or a value is not allowed.
    """
    before, undone = run, dict[str, str]()  # of each path, the override that undid it; empty for none
    for path, text in pairs:
        head = path.split(".")[0]
        if head == "recipe" or head not in hints_of(Run):
            raise IronrankError(f"{path}: no such setting; {_help(run, head, arguments)}")
        old, run = run, _override(run, path, text)
        lost = [p for p in undone if p.startswith(f"{path}.") and _value(old, p) != _value(run, p)]
        undone |= dict.fromkeys(lost, f"{path}={text}") | {path: ""}
    for path, later in undone.items():
        if later:
            raise IronrankError(f"{path} is undone by {later} after it: write it behind, or leave it out")
    run = run if any(path.split(".")[0] == "validate" for path in undone) else _watched(before, run)
    check_radii(run)
    return run


def _watched(before: Run, run: Run) -> Run:
    """Let validation look at the ball of the objective, where that is another one now and validation was in the old."""
    if isinstance(before.start, Run) and isinstance(run.start, Run):
        run = dataclasses.replace(run, start=_watched(before.start, run.start))
    old, new, attack = before.objective.threat, run.objective.threat, run.validate
    if new in (None, old) or old not in (None, (attack.norm, attack.eps)):
        return run
    return dataclasses.replace(run, validate=attack.inside(*new))


def _override(run: Run, path: str, text: str) -> Run:
    parts = path.split(".")
    if isinstance(run.start, Run) and path in OF_FIRST_STAGE:
        return dataclasses.replace(run, start=_override(run.start, path, text))
    run = _set(run, [], parts, text)
    start = run.start
    if isinstance(start, Run) and parts[0] not in OF_ONE_STAGE and _value(start, path) is not _NOWHERE:
        run = dataclasses.replace(run, start=_override(start, path, text))
    return run


def _set(node: Any, done: list[str], parts: list[str], text: str) -> Any:
    # `done` leads to `node`, `parts` from there to the setting
    head, *rest = parts
    hints, here = hints_of(type(node)), [*done, head]
    if head not in hints:
        path = ".".join([*done, *parts])
        raise IronrankError(f"{path}: {node.label()} has no such setting; {nearest(head, list(hints))}")
    old, where = getattr(node, head), ".".join(here)
    if not rest:
        value = parse(text, hints[head], where, old)
    elif isinstance(old, Settings):
        value = _set(old, here, rest, text)
    else:
        raise IronrankError(f"{where}.{'.'.join(rest)}: {where} is a single value; write {where}=...")
    return dataclasses.replace(node, **{head: value})


def _value(node: Any, path: str) -> Any:
    for part in path.split("."):
        known = hints_of(type(node)) if isinstance(node, Settings) else ()
        node = getattr(node, part) if part in known else _NOWHERE
    return node


def _help(run: Run, head: str, arguments: Iterable[str]) -> str:
    fields = [name for name in hints_of(Run) if name != "recipe"]
    members = [name for name in fields if isinstance(getattr(run, name), Settings) and name != "start"]
    inside = [f"{name}.{head}" for name in members if head in hints_of(type(getattr(run, name)))]
    if inside:
        return f"did you mean {' or '.join(inside)}?"
    return nearest(head, sorted({*fields, *arguments}))


def arguments(recipe: Callable[..., Run]) -> dict[str, Any]:
    """Return the types of a recipe's arguments, by name.

    Args:
        recipe: The function.

    Returns:
        Types by name.
    """
    hints = get_type_hints(recipe)
    return {name: hints[name] for name in inspect.signature(recipe).parameters}


def pairs_of(overrides: Iterable[str]) -> list[Pair]:
    """Split ``path=value`` texts.

    Args:
        overrides: The texts.

    Returns:
        Dotted paths and texts.

    Raises:
        IronrankError: If one has no path or no equals sign.
    """
    return [_pair(text) for text in overrides]


def _pair(text: str) -> Pair:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise IronrankError(f"'{text}': a path, '=' and a value are needed, such as epochs=2")
    return path.strip(), value.strip()


def shorthand(
    data: Path | str | None = None, seed: int | None = None, device: str | None = None
) -> list[str]:
    """Return the overrides that the short options stand for.

    Args:
        data: Folder with the data set.
        seed: Seed of everything random.
        device: Torch device.

    Returns:
        ``path=value`` for each that is given.

    Example:
        >>> shorthand("there", device="cuda")
        ['data.folder=there', 'device=cuda']
    """
    given = {"data.folder": data, "seed": seed, "device": device}
    return [f"{path}={value}" for path, value in given.items() if value is not None]


def parse(text: str, hint: Any, where: str, old: Any = None) -> Any:
    """Read a value of a declared type from text.

    Args:
        text: The text.
        hint: The declared type: a plain type, a family such as ``Method``, a tuple, a dict, or a union.
        where: Path of the setting, for error messages.
        old: The value before; a new member of a family takes over what means the same in both.

    Returns:
        The value; its bounds are checked where it is used.

    Raises:
        IronrankError: If the text is no value of this type.

    Example:
        >>> parse("2/255, 8/255", tuple[float, ...], "eps")[0] * 255, parse("none", float | None, "step_size")
        (2.0, None)
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if NoneType in kinds and text.lower() == "none":
        return None
    families = settings_in(hint)
    plain = [kind for kind in kinds if kind is not NoneType and kind not in families]
    if not plain:
        return _member(text, families[0], where, old)
    kind = plain[0]
    if get_origin(kind) is tuple:
        return tuple(parse(item, get_args(kind)[0], where) for item in _items(text, where))
    if get_origin(kind) is dict:
        return _json(text, dict, where, 'JSON in braces is needed, such as {"fc1": 10}')
    read, needed = _READERS[kind]
    try:
        return read(text)
    except (ValueError, OverflowError):
        raise IronrankError(f"{where}={text!r}: {needed} is needed") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (_truth, "true or false"),
    int: (int, "a whole number"),
    float: (number, "a number, such as 0.1 or 8/255,"),
    str: (str, "text"),
}


def _items(text: str, where: str) -> list[str]:
    if text.startswith("["):
        items = _json(text, list, where, "a list is needed, as JSON or with commas")
        return [item if isinstance(item, str) else json.dumps(item) for item in items]
    return [item.strip() for item in text.split(",") if item.strip()]


def _json(text: str, kind: type, where: str, needed: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise IronrankError(f"{where}={text!r}: {needed}")
    return value


def _member(text: str, family: type[Settings], where: str, old: Any) -> Settings:
    members: Mapping[str, type[Settings]] = FAMILIES[family]
    if text not in members:
        raise IronrankError(f"{where}={text!r}: {nearest(text, list(members))}")
    if type(old) is members[text]:
        return old
    new = members[text](**({} if old is None else _shared(old, members[text])))
    if not isinstance(old, Objective) or not isinstance(new, Objective) or old.threat in (None, new.threat):
        return new
    return new.facing(*old.threat)  # one keeps its ball itself, another in its attack


def _shared(old: Settings, new: type[Settings]) -> dict[str, Any]:
    """Return the values of settings that mean the same in another member: same name, same default.

    A learning rate of SGD, for example, must not become one of AdamW.
    """
    before = {field.name: _default(field) for field in dataclasses.fields(old)}
    names = [f.name for f in dataclasses.fields(new) if f.name in before and before[f.name] == _default(f)]
    return {name: getattr(old, name) for name in names}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
