"""What a report says, before it becomes a page, a Markdown file or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ironrank.report import fields, group, judge, proofs, tables, text
from ironrank.report.cells import Table
from ironrank.report.judge import Verdict
from ironrank.report.rows import Row
from ironrank.report.training import Training

FORMAT = "ironrank-report/1"


@dataclass(frozen=True)
class Content:
    """Title, rows and runs, and all that follows from them.

    Attributes:
        title: One line.
        rows: The lines of the report: nets, or several seeds of one setting together.
        nets: All evaluated nets, each alone.
        runs: Their training metrics; may be empty.
        command: What made the report; may be empty.
    """

    title: str
    rows: tuple[Row, ...]
    nets: tuple[Row, ...]
    runs: tuple[Training, ...]
    command: str = ""

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
    def audits(self) -> Table | None:
        """The verdicts of the audits."""
        return proofs.audits(self.nets)

    @property
    def audit_details(self) -> list[Table]:
        """Tests, attacks and universal perturbation of every audit."""
        makers = (proofs.checks, proofs.attacks, proofs.universal)
        return [table for row in self.nets for make in makers if (table := make(row))]

    @property
    def certificates(self) -> Table | None:
        """The certified accuracies."""
        return proofs.certificates(self.nets)

    @property
    def bounds(self) -> list[Table]:
        """The Lipschitz bounds of the layers of every net that has a certificate."""
        return [
            table for row in self.nets for make in (proofs.bounds, proofs.rounding) if (table := make(row))
        ]

    @property
    def examples(self) -> Table | None:
        """The adversarial examples in words."""
        return tables.examples(self.rows)

    @property
    def captions(self) -> list[str]:
        """How the examples were made, each way once."""
        return list(dict.fromkeys(row.examples.caption for row in self.rows if row.examples))

    @property
    def missing(self) -> list[str]:
        """What could not be made for a row, and why."""
        found = ((row, key, row.raw.get(key)) for row in self.rows for key in ("examples", "before"))
        words = {"examples": "no adversarial examples", "before": "no spectra from before training"}
        return [
            f"{row.name}: {words[key]} ({fields.word(value['missing'])})"
            for row, key, value in found
            if isinstance(value, dict) and "missing" in value
        ]

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Each row of several seeds, and the nets in it."""
        return [(row.name, ", ".join(net.name for net in row.members)) for row in self.rows if row.members]

    def owner(self, name: str) -> int | None:
        """Return the place of the row that a net belongs to, by the net's name; None where there is none."""
        return next(
            (i for i, row in enumerate(self.rows) if name in {net.name for net in row.members or (row,)}),
            None,
        )

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
        return tables.provenance(self.nets)

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of every net that recorded them, one a line; last that of the report itself."""
        found = [(net.name, "\n".join(commands)) for net in self.nets if (commands := _commands(net))]
        return [*found, *([("This report", self.command)] if self.command else [])]

    @property
    def attacks(self) -> list[str]:
        """Every attack and ball of the table, once."""
        return list(
            dict.fromkeys(f"{score.label}: {score.ball}" for row in self.rows for score in row.scores)
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
            "An audit runs many attacks of different kinds and counts an image only where none of them wins; it then "
            "tests its own numbers. Where a test fails, the verdict stands in the place of an accuracy: not proven. A "
            "certified accuracy is a lower bound: no attack inside the radius, known or not, can go below it.",
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
    spread = {row.name: _spread(row, content) for row in content.rows if row.members}
    return {
        "format": FORMAT,
        "title": content.title,
        "verdict": content.verdict.sentence,
        "picked": None if content.verdict.pick is None else content.rows[content.verdict.pick].name,
        "warnings": content.warnings,
        "notes": content.notes,
        "threat_model": content.threat_model,
        "rows": [{**net.raw, "name": net.name, "derived": _derived(net, content)} for net in content.nets],
        "groups": text.plain(spread),
        "command": content.command,
        "runs": [{"name": run.name, "metrics": list(run.lines)} for run in content.runs],
    }


def _commands(net: Row) -> list[str]:
    sources = (net.audit, net.certificate, net.weakness)
    found = [fields.command(net.raw.get(key)) for key in ("trained_by", "command")]
    return list(filter(None, [*found, *(source.command for source in sources if source)]))


def _spread(row: Row, content: Content) -> Mapping[str, Any]:
    worst = row.at(content.verdict.threat)
    return {
        "members": [net.name for net in row.members],
        "clean": {"mean": row.clean, "sd": row.clean_sd},
        "robust_in_ball_of_verdict": None if worst is None else {"mean": worst.accuracy, "sd": worst.sd},
        "audit": row.audit.said if row.audit else proofs.NOT_AUDITED,
    }


def _derived(row: Row, content: Content) -> Mapping[str, Any]:
    place = next(i for i, net in enumerate(content.nets) if net is row)
    score = judge.scores_of(content.nets, content.verdict.threat).get(place)
    return text.plain(
        {
            "clean_interval": row.clean_score.interval,
            "robust_intervals": [] if row.refused else [score.interval for score in row.robust],
            "robust_in_ball_of_verdict": None if score is None else score.accuracy,
            "audit": row.audit.said if row.audit else proofs.NOT_AUDITED,
            "certificate": _certified(row),
            "params_deployed_of_dense": row.ratio("params_deployed", "params_dense"),
            "params_stored_of_dense": row.ratio("params_stored", "params_dense"),
            "macs_of_dense": row.ratio("macs", "macs_dense"),
        }
    )


def _certified(row: Row) -> str:
    if row.certificate is None:
        return proofs.NO_CERTIFICATE
    return proofs.VACUOUS if row.certificate.vacuous else "certified"


def title_of(title: str) -> str:
    """Return a title on one line that any file format can carry."""
    return " ".join(text.clean(title).split()) or "Report"


def content_of(
    title: str,
    nets: Sequence[Row],
    runs: Sequence[Training],
    grouped: bool | None = None,
    command: str = "",
) -> Content:
    """Return the content of a report."""
    rows = group.grouped(nets, grouped)
    return Content(title_of(title), rows, tuple(nets), tuple(runs), fields.command(command))
