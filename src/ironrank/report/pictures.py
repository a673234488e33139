"""Adversarial examples and sensitive directions as pictures: from tensors to PNG, and from files back.

A change of pixels is shown around grey: what the attack made brighter is brighter, what it made darker is darker,
each example amplified until its largest change is white or black.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ironrank.errors import IronrankError
from ironrank.report import fields, png, text

MOST = 24  # pictures or examples of one net
SIDE = 4096  # pixels of the side of an image that is drawn


@dataclass(frozen=True)
class Picture:
    """One image of the page: its data URI, the words below it, and those for people who cannot see it."""

    source: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Trio:
    """One example: the image, the attacked image, what was changed."""

    pictures: tuple[Picture, ...]
    turned: bool


@dataclass(frozen=True)
class Examples:
    """The examples of one net, and a sentence about how they were made."""

    trios: tuple[Trio, ...]
    caption: str
    lines: tuple[tuple[str, str, str, str, str], ...]  # index, class, read, read under attack, largest change


def drawn(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the arrays of examples.safetensors into plain values with pictures.

    Args:
        tensors: What `ironrank.judge.examples.examples` returns, as arrays.
        facts: What `ironrank.judge.examples.facts` returns.

    Returns:
        The facts, ``every`` (1, or k where only every k-th pixel is shown) and ``shown``, a dict for each example.

    Raises:
        IronrankError: If an array is missing or of another shape.
    """
    try:
        clean, attacked = (_images(tensors[name])[:MOST] for name in ("clean", "attacked"))
        names = ("index", "label", "read", "read_attacked")
        numbers = {name: _numbers(tensors[name][: len(clean)]) for name in names}
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise IronrankError(f"examples.safetensors is damaged ({str(error)[:80]}): evaluate again") from None
    if clean.shape != attacked.shape or any(len(item) != len(clean) for item in numbers.values()):
        raise IronrankError("examples.safetensors is damaged (its shapes differ): evaluate again")
    (seen, every), (moved, _) = png.thinned(clean), png.thinned(attacked)
    return {**facts, "every": every,
            "shown": [_example(a, b, {name: item[i] for name, item in numbers.items()})
                      for i, (a, b) in enumerate(zip(seen, moved, strict=True))]}  # fmt: skip


def _images(value: np.ndarray) -> np.ndarray:
    if value.ndim != 4 or value.shape[1] not in (1, 3) or max(value.shape[2:], default=0) > SIDE:
        raise ValueError(f"images of shape {value.shape}")
    return value.astype(np.float64)


def _numbers(value: np.ndarray) -> list[int]:
    if value.ndim != 1:
        raise ValueError(f"numbers of shape {value.shape}")
    return [int(k) for k in value]


def _example(clean: np.ndarray, attacked: np.ndarray, numbers: dict[str, int]) -> dict[str, Any]:
    change = attacked - clean
    largest = float(np.abs(np.nan_to_num(change)).max(initial=0.0))
    return {
        **numbers,
        "largest": largest,
        "clean": png.uri(png.tones(clean)),
        "attacked": png.uri(png.tones(attacked)),
        "change": png.uri(png.signed(change, largest)),
    }


def read(where: str, value: object) -> Examples | None:
    """Read examples; None where there are none.

    Args:
        where: What is read, for error messages.
        value: What `drawn` returned, or what a file says that it returned.

    Returns:
        The examples, checked.
    """
    if value is None:
        return None
    raw = fields.mapping(where, value)
    shown = fields.dicts(f"{where}: shown", raw.get("shown") or [])[:MOST]
    trios = tuple(_trio(where, item) for item in shown)
    ball = f"{text.norm(fields.word(raw.get('norm')))}, ε = {text.epsilon(text.number(raw.get('eps')))}"
    every = text.whole(raw.get("every")) or 1
    thin = f" Only every {every}th pixel is drawn." if every > 1 else ""
    caption = (
        f"{text.norm(fields.word(raw.get('attack')))}, {ball}, seed {fields.said(raw.get('seed'))}: the first of "
        f"{fields.said(raw.get('among'))} test images that the net reads rightly and the attack turns, then the first "
        f"that withstood it. The change is amplified around grey.{thin}"
    )
    return Examples(trios, caption, tuple(_line(item) for item in shown)) if trios else None


def _trio(where: str, item: Mapping[str, Any]) -> Trio:
    index, label, seen, moved, largest = _line(item)
    times = 1 / (2 * found) if (found := text.number(item.get("largest")) or 0.0) > 0 else 1.0
    words = {
        "clean": (f"read as {seen}", f"Test image {index} of class {label}, read as {seen}"),
        "attacked": (
            f"read as {moved}" if moved != label else f"still {moved}",
            f"Test image {index} under attack, read as {moved}",
        ),
        "change": (
            f"change {text.TIMES} {text.significant(times, 2)}",
            f"What the attack changed, at most {largest} of a pixel",
        ),
    }
    pictures = tuple(
        Picture(png.checked(f"{where}: {key}", item.get(key)), *said) for key, said in words.items()
    )
    return Trio(pictures, moved != label)


def _line(item: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    index, label, seen, moved = (
        fields.said(text.whole(item.get(key))) for key in ("index", "label", "read", "read_attacked")
    )
    return index, label, seen, moved, text.significant(text.number(item.get("largest")), 2)
