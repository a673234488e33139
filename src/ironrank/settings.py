"""Frozen, checked settings: what data sets, models, attacks, objectives, methods and recipes are made of.

A family member is a frozen dataclass that derives from `Settings`, carries the class variable ``name`` under which
the command line and ``run.json`` know it, and declares its hyper-parameters with `setting`, which keeps meaning, unit,
allowed range and the paper's value beside the default. Values are checked once, on construction.

    symbol in this file   meaning
    ge, gt, le, lt        bounds: at least, above, at most, below
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ironrank.errors import IronrankError, nearest

_BOUNDS = {"ge": ("at least", lambda v, b: v >= b), "gt": ("above", lambda v, b: v > b),
           "le": ("at most", lambda v, b: v <= b), "lt": ("below", lambda v, b: v < b)}  # fmt: skip


def setting(
    default: Any = dataclasses.MISSING,
    text: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] | None = None,
    paper: str | None = None,
) -> Any:
    """Declare a hyper-parameter: a dataclass field that knows its meaning and its bounds.

    Args:
        default: The default value; a mutable one (dict, list) is copied for each instance.
        text: One phrase: meaning and unit.
        ge: Smallest allowed value.
        gt: The value must lie above this one.
        le: Largest allowed value.
        lt: The value must lie below this one.
        choices: The allowed words of a text field.
        paper: The value that the source uses.

    Returns:
        A dataclass field.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"text": text, "paper": paper, "choices": choices,
                "bounds": {k: v for k, v in bounds.items() if v is not None}}  # fmt: skip
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def number(text: str) -> float:
    """Read a number that may be written as a fraction, the way eps is written in this field.

    Args:
        text: ``"0.1"``, ``"1e-3"`` or ``"8/255"``.

    Returns:
        The number.

    Raises:
        ValueError: If the text is neither.

    Example:
        >>> round(number("8/255"), 6)
        0.031373
    """
    if "/" in text:
        try:
            return float(Fraction(text.replace(" ", "")))
        except ArithmeticError:
            raise ValueError(f"'{text}' is no finite number") from None
    return float(text)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every family member: frozen, compared by value, checked on construction."""

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check types and bounds of all fields.

        Raises:
            IronrankError: If a value has the wrong type or lies outside its bounds.
        """
        hints = hints_of(type(self))
        for field in dataclasses.fields(self):
            value = check_type(f"{self.label()}.{field.name}", getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            self._check_bounds(field, value)

    @classmethod
    def label(cls) -> str:
        """Return the name that error messages use."""
        return cls.name or cls.__name__.lower()

    def _check_bounds(self, field: dataclasses.Field, value: Any) -> None:
        where, choices = f"{self.label()}.{field.name}", field.metadata.get("choices")
        if choices and value is not None and value not in choices:
            raise IronrankError(f"{where}={value!r}: allowed is {', '.join(choices)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if isinstance(value, float) and not math.isfinite(value):
            raise IronrankError(f"{where}={value}: a finite number is needed")
        bounds = field.metadata.get("bounds", {})
        if any(not _BOUNDS[kind][1](value, bound) for kind, bound in bounds.items()):
            allowed = " and ".join(f"{_BOUNDS[kind][0]} {bound:g}" for kind, bound in bounds.items())
            raise IronrankError(f"{where}={value:g}: allowed is {allowed}")


def hints_of(cls: type) -> dict[str, Any]:
    """Return the resolved field types of a settings class, without its class variables."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls).items() if name in names}


def settings_in(hint: Any) -> tuple[type[Settings], ...]:
    """Return the settings classes that a field of this type may hold; (hint,) itself where it is one."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(option for option in options if isinstance(option, type) and issubclass(option, Settings))


def without_settings(hint: Any) -> Any:
    """Return a union type without the settings classes in it; other types as they are."""
    members = settings_in(hint)
    if not members:
        return hint
    return Union[tuple(option for option in get_args(hint) if option not in members)]  # noqa: UP007


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def check_type(where: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint`` demands it.

    Args:
        where: The name for the error message, such as ``condlr.tau``.
        value: The value; for numbers also text such as ``"8/255"``.
        hint: The declared type.

    Returns:
        The value, converted where that loses nothing.

    Raises:
        IronrankError: If it does not fit.
    """
    if hint in (float, float | None) and isinstance(value, str) and value.lower() != "none":
        try:
            return number(value)
        except ValueError:
            raise IronrankError(f"{where}={value!r}: a number is needed, such as 0.1 or 8/255") from None
    members = settings_in(hint)
    if any(isinstance(value, member) for member in members):
        return value
    if members == (hint,):
        raise IronrankError(f"{where}={value!r}: a {hint.__name__} is needed")
    hint = without_settings(hint)
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise IronrankError(f"{where}={value!r}: {reason}") from None


def encode(value: Any) -> Any:
    """Turn settings into plain JSON values; a settings object becomes a dict that starts with its name.

    Args:
        value: Settings, or a value held by them.

    Returns:
        The same as dicts, lists, numbers, text and None.

    Example:
        >>> encode((1, 2))
        [1, 2]
    """
    if isinstance(value, Settings):
        head = {"name": value.name} if value.name else {}
        return head | {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


Families = Mapping[type[Settings], Mapping[str, type[Settings]]]


def decode(hint: Any, value: Any, families: Families, where: str = "") -> Any:
    """Turn what `encode` made back into settings.

    Args:
        hint: Declared type: a family such as ``Method``, a settings class, a union, or a plain type.
        value: JSON value.
        families: The members of every family by name.
        where: Name for error messages.

    Returns:
        The settings, checked.

    Raises:
        IronrankError: If a name or a field is unknown, or a value is not allowed.
    """
    members = settings_in(hint)
    if not members or not isinstance(value, Mapping):
        return value
    family = families.get(members[0], {members[0].name: members[0]})
    name = value.get("name", members[0].name)
    if name not in family:
        raise IronrankError(
            f"{where or members[0].__name__.lower()}={name!r}: {nearest(str(name), list(family))}"
        )
    hints = hints_of(family[name])
    given = {key: item for key, item in value.items() if key != "name" or "name" in hints}
    for key in given:
        if key not in hints:
            raise IronrankError(f"{name}.{key}: no such setting; {nearest(key, list(hints))}")
    return family[name](**{k: decode(hints[k], v, families, f"{name}.{k}") for k, v in given.items()})
