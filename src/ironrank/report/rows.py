"""Evaluations, read once: required numbers are checked at the door, missing ones are None from here on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironrank.errors import IronrankError
from ironrank.judge.interval import wilson
from ironrank.report import text

REQUIRED = ("clean", "robust", "params_deployed")
SINGLE_STEP = ("fgsm", "n-fgsm", "nfgsm", "rs-fgsm")

Threat = tuple[str, float]
"""A ball that attacks search: norm and eps in pixel units."""


@dataclass(frozen=True)
class Score:
    """Accuracy under one attack on n images."""

    attack: str
    norm: str
    eps: float | None
    steps: int | None
    restarts: int | None
    accuracy: float
    n: int | None

    @property
    def key(self) -> tuple:
        """What makes two scores comparable: the column of the table."""
        return (self.name.lower(), self.norm, _rounded(self.eps), self.steps, self.restarts)

    @property
    def threat(self) -> Threat | None:
        """Norm and eps, or None where eps is not known."""
        return None if self.eps is None else (self.norm, _rounded(self.eps) or 0.0)

    @property
    def single_step(self) -> bool:
        """Whether the attack follows the gradient once."""
        return self.steps == 1 or self.name.lower().startswith(SINGLE_STEP)

    @property
    def name(self) -> str:
        """The attack's name without what other fields say: ``PGD`` of ``PGD-20 x5 Linf``."""
        name = self.attack
        for known in (self.norm, f"-{self.steps}", f"x{self.restarts}"):
            name = name.replace(known, "") if known else name
        name = " ".join(name.split()) or self.attack
        return name.upper() if name.islower() else name

    @property
    def label(self) -> str:
        """The attack in words, such as ``PGD, 20 steps, 5 restarts``."""
        parts = [self.name]
        if self.steps and not self.single_step:
            parts.append(f"{self.steps} step{'s' * (self.steps > 1)}")
        if self.restarts and self.restarts > 1:
            parts.append(f"{self.restarts} restarts")
        return ", ".join(parts)

    @property
    def ball(self) -> str:
        """The ball in words, such as ``L∞, ε = 8/255``."""
        return ", ".join(filter(None, [text.norm(self.norm), f"ε = {text.epsilon(self.eps)}"]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson interval of the accuracy, or None where n is not known."""
        return wilson(self.accuracy, self.n) if self.n else None


@dataclass(frozen=True)
class Layer:
    """One layer of one net, as the judge saw it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: tuple[int, ...]  # one number, two for a Tucker-2 layer, none where it is not known
    full_rank: tuple[int, ...]
    cond: float | None
    orthonormality_error: float | None
    singular_values: tuple[float, ...]

    @property
    def share(self) -> float | None:
        """The rank as a fraction of the full one, for two ranks their geometric mean; None where it is not known."""
        if not self.rank or len(self.rank) != len(self.full_rank) or not all(self.full_rank):
            return None
        return (math.prod(self.rank) / math.prod(self.full_rank)) ** (1 / len(self.rank))

    @property
    def factored(self) -> bool:
        """Whether the layer holds factors or has lost rank."""
        short = any(r < full for r, full in zip(self.rank, self.full_rank, strict=False))
        return short or self.orthonormality_error is not None or "factored" in self.kind.lower()


@dataclass(frozen=True)
class Row:
    """One evaluated net: one line of the table, one curve of the figures."""

    name: str
    clean: float
    robust: tuple[Score, ...]
    curve: tuple[tuple[float, float, int | None], ...]
    layers: tuple[Layer, ...]
    raw: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Return a text of the evaluation, or a dash."""
        value = self.raw.get(key)
        if isinstance(value, Mapping):
            value = value.get("name") or ", ".join(f"{k} {v}" for k, v in value.items())
        return text.clean(value).strip() if value not in (None, "") else text.DASH

    def count(self, key: str) -> int | None:
        """Return a whole number of the evaluation, or None."""
        return text.whole(self.raw.get(key))

    def number(self, key: str, part: str | None = None) -> float | None:
        """Return a number of the evaluation, or of a dict in it, or None."""
        value = self.raw.get(key)
        if part is not None:
            value = value.get(part) if isinstance(value, Mapping) else None
        return text.number(value)

    def ratio(self, part: str, whole: str) -> float | None:
        """Return the quotient of two counts, or None where one is missing."""
        above, below = self.count(part), self.count(whole)
        return above / below if above is not None and below else None

    @property
    def max_cond(self) -> float | None:
        """The largest condition number; NaN where it was measured but JSON could not say it."""
        return _cond(self.raw, "max_cond")

    @property
    def size(self) -> int:
        """Deployed parameters."""
        return self.count("params_deployed") or 0

    @property
    def clean_score(self) -> Score:
        """The clean accuracy in the form of the others: a ball of radius zero."""
        return Score("none", "", 0.0, None, None, self.clean, self.count("n") or None)

    @property
    def classes(self) -> int | None:
        """The number of classes: recorded, or the outputs of a last linear layer."""
        last = self.layers[-1] if self.layers else None
        outputs = last.shape[0] if last and last.shape and "linear" in last.kind.lower() else None
        return self.count("classes") or outputs

    def at(self, threat: Threat | None) -> Score | None:
        """Return the worst score of this net in a ball: the lowest over all attacks that searched it."""
        inside = [score for score in self.robust if score.threat == threat and threat is not None]
        return min(inside, key=lambda score: (score.accuracy, score.single_step)) if inside else None


def read(evaluations: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Read evaluations into rows.

    Args:
        evaluations: Dicts with at least ``clean``, ``robust`` and ``params_deployed``.

    Returns:
        The rows in the same order; names are made unique.

    Raises:
        IronrankError: If there is no evaluation, or one lacks a required number.
    """
    if isinstance(evaluations, Mapping | str) or not evaluations:
        raise IronrankError("a report needs a list of at least one evaluation: run an evaluation first")
    for i, item in enumerate(evaluations, 1):
        if not isinstance(item, Mapping):
            raise IronrankError(
                f"evaluation {i} is a {type(item).__name__}: a dict as evaluate() returns it is needed"
            )
    names = unique(name_of(item, i) for i, item in enumerate(evaluations, 1))
    return tuple(_row(name, item) for name, item in zip(names, evaluations, strict=True))


def name_of(item: Mapping[str, Any], position: int) -> str:
    """Return the label of a row on one line: its name, else its recipe or method, else its position."""
    found = next((str(item[key]) for key in ("name", "recipe", "method") if item.get(key)), "")
    return " ".join(text.clean(found).split()) or f"row {position}"


def unique(names: Iterable[str]) -> list[str]:
    """Return the names with a number after each repetition.

    Example:
        >>> unique(["dense", "condlr", "dense"])
        ['dense', 'condlr', 'dense (2)']
    """
    seen: Counter[str] = Counter()
    out: list[str] = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def _row(name: str, item: Mapping[str, Any]) -> Row:
    raw = text.plain(item)
    missing = [key for key in REQUIRED if raw.get(key) is None]
    if missing:
        raise IronrankError(f"evaluation '{name}' lacks {', '.join(missing)}: evaluate the net again")
    if text.whole(raw["params_deployed"]) is None:
        raise IronrankError(
            f"evaluation '{name}': params_deployed={raw['params_deployed']!r}: a count is needed"
        )
    clean, n = _accuracy(f"evaluation '{name}': clean", raw["clean"]), text.whole(raw.get("n")) or None
    robust = tuple(_score(name, entry, n) for entry in _dicts(f"evaluation '{name}': robust", raw["robust"]))
    curve = _curve(name, _dicts(f"evaluation '{name}': curve", raw.get("curve") or []), n)
    layers = _dicts(f"evaluation '{name}': layers", raw.get("layers") or [])
    return Row(name, clean, robust, curve, tuple(_layer(layer) for layer in layers), raw)


def _dicts(where: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise IronrankError(f"{where}: a list of dicts is needed")
    return value


def _accuracy(where: str, value: object) -> float:
    found = text.number(value)
    if found is None or not 0 <= found <= 1:
        raise IronrankError(f"{where}={value!r}: an accuracy in [0, 1] is needed")
    return found


def _score(name: str, entry: Mapping[str, Any], n: int | None) -> Score:
    attack = text.clean(entry.get("attack") or "attack")
    return Score(
        attack=attack,
        norm=text.clean(entry.get("norm") or ""),
        eps=text.number(entry.get("eps")),
        steps=text.whole(entry.get("steps")),
        restarts=text.whole(entry.get("restarts")),
        accuracy=_accuracy(f"evaluation '{name}': robust accuracy under {attack}", entry.get("accuracy")),
        n=text.whole(entry.get("n")) or n,
    )


def _curve(
    name: str, points: list[dict[str, Any]], n: int | None
) -> tuple[tuple[float, float, int | None], ...]:
    found = []
    for point in points:
        eps = text.number(point.get("eps"))
        if eps is not None and math.isfinite(eps):
            accuracy = _accuracy(f"evaluation '{name}': curve at eps {eps:g}", point.get("accuracy"))
            found.append((eps, accuracy, text.whole(point.get("n")) or n))
    return tuple(sorted(found, key=lambda point: point[0]))


def _layer(item: Mapping[str, Any]) -> Layer:
    shape = item.get("shape")
    values = item.get("singular_values")
    numbers = [text.number(value) for value in values] if isinstance(values, list) else []
    return Layer(
        name=text.clean(item.get("name") or text.DASH),
        kind=text.clean(item.get("kind") or text.DASH),
        shape=tuple(text.whole(side) or 0 for side in shape) if isinstance(shape, list) else (),
        rank=_wholes(item.get("rank")),
        full_rank=_wholes(item.get("full_rank")),
        cond=_cond(item, "cond"),
        orthonormality_error=text.number(item.get("orthonormality_error")),
        singular_values=tuple(
            sorted((s for s in numbers if s is not None and math.isfinite(s)), reverse=True)
        ),
    )


def _wholes(value: object) -> tuple[int, ...]:
    found = [text.whole(part) for part in (value if isinstance(value, list | tuple) else [value])]
    return () if None in found else tuple(part for part in found if part is not None)


def _cond(item: Mapping[str, Any], key: str) -> float | None:
    if key in item and item[key] is None:
        return math.nan  # measured, but not finite: plain JSON writes null
    return text.number(item.get(key))


def _rounded(eps: float | None) -> float | None:
    return None if eps is None else round(eps, 5)
