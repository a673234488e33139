"""The spectral weakness map, as FOLDER/weakness.json and weakness.safetensors hold it.

The file is shown as it is: every list of dicts in it is a table, every plain entry a line, every tensor that has the
shape of an image a picture. So a map that learns to say more is shown without a change here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ironrank.report import fields, png, text
from ironrank.report.cells import Cell, Column, Table
from ironrank.report.pictures import MOST, SIDE, Picture

LINES = 200  # of one table; the JSON file has all
HIDDEN = ("schema", "name", "versions", "command", "pictures", "hardware")


@dataclass(frozen=True)
class Weakness:
    """The map of one net: tables, pictures, the command."""

    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    command: str


def drawn(tensors: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """Turn the arrays of weakness.safetensors into pictures.

    Args:
        tensors: Directions in input space: (h, w), (c, h, w) or (k, c, h, w), with c 1 or 3; others are left out.

    Returns:
        ``name`` and ``image`` of each, at most as many as a page can carry.
    """
    found = []
    for name, direction in _directions(tensors):
        thin, _ = png.thinned(np.nan_to_num(direction.astype(np.float64)))
        image = png.uri(png.signed(thin, float(np.abs(thin).max(initial=0.0))))
        found.append({"name": text.clean(name)[:80], "image": image})
        if len(found) == MOST:
            break
    return found


def _directions(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name in sorted(tensors):
        value = tensors[name]
        stack = value if value.ndim == 4 else value[None] if value.ndim == 3 else value[None, None]
        if (
            2 <= value.ndim <= 4
            and stack.shape[1] in (1, 3)
            and 1 < min(stack.shape[2:]) <= max(stack.shape[2:]) <= SIDE
        ):
            many = len(stack) > 1
            yield from ((f"{name} {k}" if many else name, item) for k, item in enumerate(stack, 1))


def read(where: str, value: object) -> Weakness | None:
    """Read a weakness map; None where there is none.

    Args:
        where: What is read, for error messages.
        value: The content of weakness.json, with ``pictures`` from `drawn`.

    Returns:
        The map, checked.
    """
    if value is None:
        return None
    raw = fields.mapping(where, value)
    lists = {key: item for key, item in raw.items() if key not in HIDDEN and _is_table(item)}
    rest = {
        key: item for key, item in raw.items() if key not in HIDDEN and key not in lists and item is not None
    }
    tables = [
        _table(fields.word(key).replace("_", " "), fields.dicts(f"{where}: {key}", item))
        for key, item in lists.items()
    ]
    if found := fields.facts(rest):
        body = tuple((Cell(name.replace("_", " ")), Cell(said)) for name, said in found.items())
        tables.insert(0, Table("In short", (Column("what", words=True), Column("value")), body[:LINES]))
    pictures = fields.dicts(f"{where}: pictures", raw.get("pictures") or [])[:MOST]
    return Weakness(
        tuple(tables), tuple(_picture(where, item) for item in pictures), fields.command(raw.get("command"))
    )


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _table(name: str, items: list[dict[str, Any]]) -> Table:
    keys = list(dict.fromkeys(key for item in items for key in item))[:12]
    wordy = {key for key in keys if any(isinstance(item.get(key), str) for item in items)}
    columns = tuple(Column(fields.word(key).replace("_", " "), words=key in wordy) for key in keys)
    body = tuple(tuple(Cell(fields.said(item.get(key))) for key in keys) for item in items[:LINES])
    more = f"; the first {LINES} of {len(items)}" if len(items) > LINES else ""
    return Table(f"{name}{more}", columns, body)


def _picture(where: str, item: Mapping[str, Any]) -> Picture:
    name = fields.word(item.get("name"))
    return Picture(
        png.checked(f"{where}: picture", item.get("image")), name, f"Direction {name} in the space of images"
    )
