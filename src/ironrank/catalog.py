"""What there is to choose from: families, their members, and the settings of each, read off the objects."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from ironrank.attacks import ATTACKS
from ironrank.config import arguments
from ironrank.data import DATASETS
from ironrank.errors import IronrankError, nearest
from ironrank.methods import METHODS
from ironrank.models import MODELS
from ironrank.objectives import OBJECTIVES
from ironrank.optim import OPTIMIZERS, SCHEDULES
from ironrank.recipes import RECIPES
from ironrank.settings import encode, hints_of, settings_in
from ironrank.training import FAMILIES, Guard, Run

CATALOG: dict[str, Mapping[str, Any]] = {
    "recipes": RECIPES,
    "methods": METHODS,
    "objectives": OBJECTIVES,
    "attacks": ATTACKS,
    "models": MODELS,
    "data": DATASETS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "run": {"run": Run, "guard": Guard},
}


def members(family: str | None = None) -> dict[str, dict[str, str]]:
    """Say what there is, in one line each.

    Args:
        family: One family; without it all of them.

    Returns:
        Descriptions by family and name; a family that does not exist raises an `IronrankError`.

    Example:
        >>> list(members("schedules")["schedules"])
        ['constant', 'steps', 'cosine', 'one-cycle']
    """
    chosen = [_family(family)] if family else list(CATALOG)
    return {name: {key: _describe(name, item) for key, item in CATALOG[name].items()} for name in chosen}


def settings_of(family: str, name: str) -> dict[str, Any]:
    """Describe one member and each of its settings.

    Args:
        family: The family.
        name: Name of the member.

    Returns:
        ``family``, ``name``, ``text`` and ``settings``, a list of dicts with ``field``, ``default`` (a plain
        value), ``meaning``, ``allowed`` and ``paper``, the value of the source, or None.

    Raises:
        IronrankError: If there is no such family or member.

    Example:
        >>> [row["allowed"] for row in settings_of("methods", "condlr")["settings"] if row["field"] == "tau"]
        ['number >= 0']
    """
    known = CATALOG[_family(family)]
    if name not in known:
        raise IronrankError(f"{family} '{name}': {nearest(name, list(known))}")
    rows = _rows(known[name]) if inspect.isclass(known[name]) else _arguments(known[name])
    return {"family": family, "name": name, "text": _describe(family, known[name]), "settings": rows}


def _family(name: str) -> str:
    if name not in CATALOG:
        raise IronrankError(f"family '{name}': {nearest(name, list(CATALOG))}")
    return name


def _describe(family: str, item: Any) -> str:
    """Return the first line of a docstring; that of the file where the member is the only one in it."""
    lodgers = [other for other in CATALOG[family].values() if other.__module__ == item.__module__]
    source = sys.modules[item.__module__] if len(lodgers) == 1 and inspect.isclass(item) else item
    line = (inspect.getdoc(source) or "").partition("\n")[0]
    line = re.sub(
        r"(: :math:|; for the arguments| for the arguments).*", ".", line
    )  # for readers of the page
    return re.sub(r":math:`\\?([^`]*)`", r"\1", line).replace("`", "").replace(",.", ".")


def _rows(member: type) -> list[dict[str, Any]]:
    hints = hints_of(member)
    return [
        {
            "field": field.name,
            "default": _default(field),
            "meaning": field.metadata.get("text", ""),
            "allowed": _allowed(hints[field.name], field.metadata),
            "paper": field.metadata.get("paper"),
        }
        for field in dataclasses.fields(member)
        if not (member is Run and field.name == "recipe")  # a label, not a choice
    ]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return encode(field.default_factory())
    return None if field.default is dataclasses.MISSING else encode(field.default)


def _arguments(recipe: Callable[..., Run]) -> list[dict[str, Any]]:
    meanings, parameters = _meanings(), inspect.signature(recipe).parameters
    return [
        {"field": name, "default": parameters[name].default, "meaning": meanings.get((recipe, name), ""),
         "allowed": _allowed(hint, {}), "paper": None}
        for name, hint in arguments(recipe).items()
    ]  # fmt: skip


def _meanings() -> dict[tuple[Any, str], str]:
    # what the docstrings say; the first recipe of a file speaks for the others
    found: dict[tuple[Any, str], str] = {}
    spoken: dict[tuple[str, str], str] = {}
    for recipe in RECIPES.values():
        told = dict(re.findall(r"^ {4}(\w+): (.+)$", inspect.getdoc(recipe) or "", re.MULTILINE))
        for name in inspect.signature(recipe).parameters:
            text = told.get(name) or spoken.get((recipe.__module__, name), "")
            spoken.setdefault((recipe.__module__, name), text)
            found[recipe, name] = text.replace("`", "")
    return found


_WORDS = {bool: "true, false", int: "whole number", float: "number", str: "text"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _allowed(hint: Any, metadata: Mapping[str, Any]) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    families = settings_in(hint)
    words = [", ".join(FAMILIES[family]) for family in families if family in FAMILIES]
    bounds = ", ".join(f"{_SIGNS[key]} {bound:g}" for key, bound in metadata.get("bounds", {}).items())
    for kind in kinds:
        if kind is not NoneType and kind not in families:
            words.append(", ".join(metadata.get("choices") or ()) or f"{_word(kind)} {bounds}".strip())
    words += ["none"] * (NoneType in kinds)
    return ", ".join(words)


def _word(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_word(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_word(get_args(kind)[0])}s"
    if get_origin(kind) is dict:
        return f"JSON: {_word(get_args(kind)[1])} by name"
    return _WORDS.get(kind, json.dumps(str(kind)))
