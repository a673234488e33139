"""Reading what others wrote: each value is checked once, and what is wrong is one line that names the place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ironrank.errors import IronrankError
from ironrank.report import text

LONGEST = 2000  # characters of one text
LONGEST_COMMAND = 20_000  # a report's names every folder
MOST = 10_000  # entries of one list


def dicts(where: str, value: object) -> list[dict[str, Any]]:
    """Return a list of dicts.

    Args:
        where: What is read, for the error message.
        value: The value.

    Returns:
        The same list.

    Raises:
        IronrankError: If it is none, or has more entries than any report could show.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise IronrankError(f"{where}: a list of dicts is needed")
    if len(value) > MOST:
        raise IronrankError(f"{where}: {len(value)} entries, at most {MOST} are allowed")
    return value


def mapping(where: str, value: object) -> dict[str, Any]:
    """Return a dict, or raise an `IronrankError` that names the place."""
    if not isinstance(value, dict):
        raise IronrankError(f"{where}: a dict is needed, not {type(value).__name__}; make the file again")
    return value


def versioned(where: str, value: object, schema: int) -> dict[str, Any]:
    """Return a dict of this schema, or raise an `IronrankError` that names the place."""
    raw = mapping(where, value)
    if raw.get("schema") != schema:
        raise IronrankError(f"{where}: schema {shown(raw.get('schema'))}: this version reads {schema}")
    return raw


def accuracy(where: str, value: object) -> float:
    """Return an accuracy in [0, 1], or raise an `IronrankError` that names the place."""
    found = text.number(value)
    if found is None or not 0 <= found <= 1:
        raise IronrankError(f"{where}={shown(value)}: an accuracy in [0, 1] is needed")
    return found


def radius(where: str, value: object) -> float:
    """Return a radius: finite, not negative; or raise an `IronrankError` that names the place."""
    found = text.number(value)
    if found is None or not 0 <= found < float("inf"):
        raise IronrankError(f"{where}={shown(value)}: a radius that is a number and not negative is needed")
    return found


def interval(where: str, value: object) -> tuple[float, float] | None:
    """Return the two limits of an accuracy, None for null; or raise an `IronrankError` that names the place."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise IronrankError(f"{where}={shown(value)}: two accuracies are needed")
    return accuracy(where, value[0]), accuracy(where, value[1])


def word(value: object, missing: str = text.DASH) -> str:
    """Return a text on one line, cut to a length that a page can carry; ``missing`` for null and empty."""
    line = " ".join(text.clean(value).split()) if value is not None else ""
    return (line if len(line) <= LONGEST else f"{line[:LONGEST]} ...") or missing


def command(value: object) -> str:
    """Return a command as it was recorded: quoted paths keep their spaces; empty for null."""
    return " ".join(text.clean(value).splitlines()).strip()[:LONGEST_COMMAND] if value is not None else ""


def words(where: str, value: object) -> tuple[str, ...]:
    """Return a list of texts, null for none; or raise an `IronrankError` that names the place."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST:
        raise IronrankError(f"{where}: a list of at most {MOST} texts is needed")
    return tuple(word(item) for item in value)


def wholes(value: object) -> tuple[int, ...]:
    """Return one or several whole numbers; none where one of them is not known."""
    found = [text.whole(part) for part in (value if isinstance(value, list | tuple) else [value])]
    return () if None in found else tuple(part for part in found if part is not None)


def facts(value: object) -> dict[str, str]:
    """Return the plain entries of a dict as texts, those of inner dicts with the outer name before; else nothing.

    Example:
        >>> facts({"eps": 0.1, "by": {"a": 1, "b": True}, "list": [1, 2]})
        {'eps': '0.100', 'by a': '1', 'by b': 'yes', 'list': '1, 2'}
    """
    found: dict[str, str] = {}
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(item, Mapping):
            found |= {f"{word(name)} {word(key)}": said(part) for key, part in item.items()}
        else:
            found[word(name)] = said(item)
    return found


def said(value: object) -> str:
    """Return any plain value as a short text for a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(said(item) for item in value[:12]) + (" ..." if len(value) > 12 else "")
    if isinstance(value, int):
        return text.count(value) if abs(value) < 10**15 else text.significant(text.number(value))
    return text.significant(value) if isinstance(value, float) else word(value)


def shown(value: object) -> str:
    """Return a value for an error message, on one line and cut short."""
    return word(repr(value) if not isinstance(value, int) else said(value))[:80]
