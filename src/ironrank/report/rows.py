"""Evaluations, read once: required numbers are checked at the door, missing ones are None from here on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironrank.errors import IronrankError
from ironrank.report import audit, certificate, fields, layer, pictures, text, weakness
from ironrank.report.audit import Audit
from ironrank.report.certificate import Certificate
from ironrank.report.layer import Layer
from ironrank.report.pictures import Examples
from ironrank.report.score import Score, Threat
from ironrank.report.weakness import Weakness

REQUIRED = ("clean", "robust", "params_deployed")


@dataclass(frozen=True)
class Before:
    """The layers of the net that a training began with, and what that was."""

    what: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Row:
    """One evaluated net, or several that differ in their seed: one line of the table, one curve of the figures.

    Attributes:
        raw: The evaluation itself.
        clean_sd: Standard deviation of the clean accuracy over seeds, where there are several.
        members: The nets behind a row of several seeds; empty for a single one.
    """

    name: str
    clean: float
    robust: tuple[Score, ...]
    curve: tuple[tuple[float, float, int | None], ...]
    layers: tuple[Layer, ...]
    raw: Mapping[str, Any]
    audit: Audit | None = None
    certificate: Certificate | None = None
    weakness: Weakness | None = None
    examples: Examples | None = None
    before: Before | None = None
    clean_sd: float | None = None
    members: tuple[Row, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether an audit found nothing proven: no number of this net may then be called robust."""
        return self.audit is not None and not self.audit.proven

    @property
    def scores(self) -> tuple[Score, ...]:
        """What counts as robust accuracy: every attack's, and the audit's; none where the audit refused the net."""
        if self.refused:
            return ()
        return self.robust + ((self.audit.score,) if self.audit and self.audit.score else ())

    @property
    def label(self) -> str:
        """The name for a legend, with the audit's refusal where there is one."""
        return f"{self.name} (not proven)" if self.refused else self.name

    @property
    def seeds(self) -> int:
        """The number of trained nets behind this row."""
        return len(self.members) or 1

    def text(self, key: str) -> str:
        """Return a text of the evaluation, or a dash."""
        value = self.raw.get(key)
        if isinstance(value, Mapping):
            value = value.get("name") or ", ".join(f"{k} {v}" for k, v in value.items())
        return text.clean(value).strip()[: fields.LONGEST] or text.DASH if value is not None else text.DASH

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
        return layer.cond(self.raw, "max_cond")

    @property
    def size(self) -> int:
        """Deployed parameters."""
        return self.count("params_deployed") or 0

    @property
    def clean_score(self) -> Score:
        """The clean accuracy in the form of the others: a ball of radius zero."""
        return Score("none", "", 0.0, None, None, self.clean, self.count("n") or None, sd=self.clean_sd)

    @property
    def classes(self) -> int | None:
        """The number of classes: recorded, or the outputs of a last linear layer."""
        last = self.layers[-1] if self.layers else None
        outputs = last.shape[0] if last and last.shape and "linear" in last.kind.lower() else None
        return self.count("classes") or outputs

    def at(self, threat: Threat | None) -> Score | None:
        """Return the worst score of this net in a ball: the lowest over all attacks that searched it."""
        inside = [score for score in self.scores if score.threat == threat and threat is not None]
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


def told_apart(names: Sequence[str], places: Sequence[Path]) -> list[str]:
    """Return the names; those that are alike, and called after their folders, get folders above it as well.

    Example:
        >>> told_apart(["net", "net", "dense"], [Path("a/x/net"), Path("b/x/net"), Path("dense")])
        ['a/x/net', 'b/x/net', 'dense']
    """
    found, parts = list(names), [place.resolve().parts for place in places]
    alike = [i for i, name in enumerate(names) if names.count(name) > 1 and name == parts[i][-1]]
    depth = 1
    while len({found[i] for i in alike}) < len({parts[i] for i in alike}):
        depth += 1
        for i in alike:
            found[i] = "/".join(parts[i][-depth:])
    return found


def _row(name: str, item: Mapping[str, Any]) -> Row:
    try:
        raw = text.plain(item)
    except RecursionError:
        raise IronrankError(f"evaluation '{name}' is nested too deeply: make its files again") from None
    missing = [key for key in REQUIRED if raw.get(key) is None]
    if missing:
        raise IronrankError(f"evaluation '{name}' lacks {', '.join(missing)}: evaluate the net again")
    if text.whole(raw["params_deployed"]) is None:
        raise IronrankError(
            f"evaluation '{name}': params_deployed={raw['params_deployed']!r}: a count is needed"
        )
    clean, n = fields.accuracy(f"evaluation '{name}': clean", raw["clean"]), text.whole(raw.get("n")) or None
    robust = tuple(
        _score(name, entry, n) for entry in fields.dicts(f"evaluation '{name}': robust", raw["robust"])
    )
    curve = audit.curve(f"evaluation '{name}'", raw.get("curve"), n)
    layers = fields.dicts(f"evaluation '{name}': layers", raw.get("layers") or [])
    judged = audit.read(f"audit of '{name}'", raw.get("audit"))
    proof = certificate.read(f"certificate of '{name}'", raw.get("certificate"))
    if judged is not None and judged.curve:
        curve = judged.curve
    return Row(
        name, clean, robust, curve, tuple(map(layer.read, layers)), raw, judged, proof,
        weakness=weakness.read(f"weakness map of '{name}'", raw.get("weakness")),
        examples=pictures.read(f"examples of '{name}'", _there(raw, "examples")),
        before=_before(f"first weights of '{name}'", _there(raw, "before")),
    )  # fmt: skip


def _there(raw: Mapping[str, Any], key: str) -> Any:
    value = raw.get(key)
    return None if isinstance(value, dict) and "missing" in value else value


def _before(where: str, value: object) -> Before | None:
    if value is None:
        return None
    raw = fields.mapping(where, value)
    found = fields.dicts(f"{where}: layers", raw.get("layers") or [])
    return Before(fields.word(raw.get("what")), tuple(map(layer.read, found)))


def _score(name: str, entry: Mapping[str, Any], n: int | None) -> Score:
    attack = fields.word(entry.get("attack"), "attack")
    return Score(
        attack=attack,
        norm=fields.word(entry.get("norm"), ""),
        eps=text.number(entry.get("eps")),
        steps=text.whole(entry.get("steps")),
        restarts=text.whole(entry.get("restarts")),
        accuracy=fields.accuracy(
            f"evaluation '{name}': robust accuracy under {attack}", entry.get("accuracy")
        ),
        n=text.whole(entry.get("n")) or n,
    )
