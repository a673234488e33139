"""What a report says, before it becomes a page, a Markdown file or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ironrank.report import judge, tables, text
from ironrank.report.judge import Verdict
from ironrank.report.rows import Row
from ironrank.report.cells import Table
from ironrank.report.training import Training

FORMAT = "ironrank-report/1"


@dataclass(frozen=True)
class Content:
    """Title, rows and runs, and all that follows from them.

    Attributes:
        title: One line.
        rows: The evaluated nets.
        runs: Their training metrics; may be empty.
    """

    title: str
    rows: tuple[Row, ...]
    runs: tuple[Training, ...]

    @cached_property
    def verdict(self) -> Verdict:
        """The headline."""
        return judge.judge(self.rows)

    @property
    def warnings(self) -> list[str]:
        """Signs that a robust accuracy must not be trusted."""
        return judge.warnings_of(self.rows)

    @property
    def notes(self) -> list[str]:
        """What is needed to compare the rows."""
        return judge.notes_of(self.rows, self.verdict.threat)

    @property
    def overview(self) -> Table:
        """The one table."""
        return tables.overview(self.rows, self.verdict)

    @property
    def layers(self) -> list[Table]:
        """A table of layers for every row that recorded them."""
        return [tables.layers(row) for row in self.rows if row.layers]

    @property
    def curves(self) -> Table | None:
        """The curves as numbers."""
        return tables.curves(self.rows)

    @property
    def training(self) -> Table | None:
        """Where the training curves end."""
        return tables.training(self.runs)

    @property
    def provenance(self) -> Table:
        """Data, recipe, method, device and versions of each row."""
        return tables.provenance(self.rows)

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Name and command of every row that recorded its command."""
        return [(row.name, row.text("command")) for row in self.rows if row.text("command") != text.DASH]

    @property
    def attacks(self) -> list[str]:
        """Every attack and ball of the table, once."""
        return list(
            dict.fromkeys(f"{score.label}: {score.ball}" for row in self.rows for score in row.robust)
        )

    @property
    def threat_model(self) -> list[str]:
        """Who attacks, and how to read the numbers."""
        found = sorted({row.count("n") or 0 for row in self.rows} - {0})
        counts = " or ".join(map(text.count, found))
        images = f"{counts} images of the test set" if counts else "the test images"
        return [
            "The attack is white-box: it knows the net and follows the gradient of the net's own loss, taken "
            f"through the net itself. It moves each of {images} inside a ball around it (ε in pixel units, "
            "every pixel stays in [0, 1]) and wins where the answer becomes wrong.",
            "Robust accuracy is the share of images whose answer stayed right. It is an upper bound: a "
            "stronger attack can only lower it. Brackets at an accuracy are its 95 % Wilson interval for so "
            "many images.",
            "Deployed parameters are those of the net as it is shipped, stored ones those of the trained "
            "net as it is saved; ratios are to the same net with dense layers. The condition number of a "
            "layer is its largest singular value over the smallest one that its rank keeps; ∞: it is zero.",
        ]

    @property
    def facts(self) -> list[tuple[str, str, str]]:
        """Label, value and small print of the few numbers beside the verdict."""
        if self.verdict.pick is None:
            return []
        line = self.overview.rows[self.verdict.pick]
        robust = tables.accuracy(judge.scores_of(self.rows, self.verdict.threat)[self.verdict.pick])
        names = [column.label for column in self.overview.columns]
        size, work = (line[names.index(name)] for name in ("deployed parameters", "multiply-accumulates"))
        million = f"{work.text} M" if work.text != text.DASH else work.text
        return [
            ("Robust accuracy", f"{robust.text} %", robust.detail),
            ("Clean accuracy", f"{line[1].text} %", line[1].detail),
            ("Deployed parameters", size.text, size.detail),
            ("Multiply-accumulates", million, work.detail),
            ("Largest condition number", line[names.index("largest condition number")].text, ""),
        ]


def data(content: Content) -> dict[str, Any]:
    """Return the report as plain JSON values.

    Args:
        content: What the report says.

    Returns:
        ``rows`` are the evaluations themselves, with a key ``derived`` beside their own; given to ``build``
        again, they make the same report. Numbers that JSON lacks are the text ``inf`` or ``nan``.
    """
    return {
        "format": FORMAT,
        "title": content.title,
        "verdict": content.verdict.sentence,
        "picked": None if content.verdict.pick is None else content.rows[content.verdict.pick].name,
        "warnings": content.warnings,
        "notes": content.notes,
        "threat_model": content.threat_model,
        "rows": [
            {**row.raw, "name": row.name, "derived": _derived(i, content)}
            for i, row in enumerate(content.rows)
        ],
        "runs": [{"name": run.name, "metrics": list(run.lines)} for run in content.runs],
    }


def _derived(place: int, content: Content) -> Mapping[str, Any]:
    row = content.rows[place]
    worst = judge.scores_of(content.rows, content.verdict.threat).get(place)
    return text.plain(
        {
            "clean_interval": row.clean_score.interval,
            "robust_intervals": [score.interval for score in row.robust],
            "robust_in_ball_of_verdict": None if worst is None else worst.accuracy,
            "params_deployed_of_dense": row.ratio("params_deployed", "params_dense"),
            "params_stored_of_dense": row.ratio("params_stored", "params_dense"),
            "macs_of_dense": row.ratio("macs", "macs_dense"),
        }
    )


def title_of(title: str) -> str:
    """Return a title on one line that any file format can carry."""
    return " ".join(text.clean(title).split()) or "Report"


def content_of(title: str, rows: Sequence[Row], runs: Sequence[Training]) -> Content:
    """Return the content of a report."""
    return Content(title_of(title), tuple(rows), tuple(runs))
