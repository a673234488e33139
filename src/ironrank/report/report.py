"""The report: evaluations in, a page, a Markdown file and JSON out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironrank.files import write_text
from ironrank.report import card, content, markdown, page, rows, training


@dataclass(frozen=True)
class Report:
    """A finished report; three ways to write it say the same.

    Attributes:
        content: What it says.
    """

    content: content.Content

    @property
    def verdict(self) -> str:
        """The headline in one sentence."""
        return self.content.verdict.sentence

    @property
    def warnings(self) -> list[str]:
        """Signs that a robust accuracy must not be trusted; often none."""
        return self.content.warnings

    def html(self) -> str:
        """Return one self-contained page: no script, no request, light and dark."""
        return page.render(self.content)

    def markdown(self) -> str:
        """Return the tables and the numbers of the figures as Markdown."""
        return markdown.render(self.content)

    def card(self) -> str:
        """Return a model card of the one net of the report, in Markdown with a header of metadata."""
        return card.render(self.content)

    def data(self) -> dict[str, Any]:
        """Return everything as plain JSON values; its ``rows`` can be given to `build` again."""
        return content.data(self.content)

    def write_html(self, path: Path | str) -> Path:
        """Write the page.

        Args:
            path: Where to; an existing file is replaced in one step.

        Returns:
            The path.
        """
        return _write(path, self.html())

    def write_markdown(self, path: Path | str) -> Path:
        """Write the Markdown file.

        Args:
            path: Where to; an existing file is replaced in one step.

        Returns:
            The path.
        """
        return _write(path, self.markdown())

    def write_card(self, path: Path | str) -> Path:
        """Write the model card of the one net of the report.

        Args:
            path: Where to; an existing file is replaced in one step.

        Returns:
            The path.
        """
        return _write(path, self.card())

    def write_json(self, path: Path | str) -> Path:
        """Write the JSON file.

        Args:
            path: Where to; an existing file is replaced in one step.

        Returns:
            The path.
        """
        return _write(path, json.dumps(self.data(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _write(path: Path | str, text: str) -> Path:
    write_text(Path(path), text)
    return Path(path)


def build(
    evaluations: Sequence[Mapping[str, Any]],
    *,
    title: str,
    runs: Sequence[Mapping[str, Any]] | None = None,
    group: bool | None = None,
    command: str = "",
) -> Report:
    """Build a report that compares evaluated nets.

    Args:
        evaluations: What ``evaluate`` returned for each net, in the order of the table. Required keys:
            ``clean`` and the accuracies in ``robust`` (fractions in [0, 1]), ``params_deployed``. What else
            is missing is shown as a dash; a required one that is missing raises an ``IronrankError``.
        title: The title of the page.
        runs: Training metrics, for the curves: dicts with ``name`` (of the row) and ``metrics`` (the lines of
            ``metrics.jsonl``: ``epoch``, ``loss``, ``lr``, ``val_clean``, ``val_robust``, ``max_cond`` ...).
        group: Whether evaluations whose ``setting`` is the same become one row, mean and standard deviation over
            seeds; None where that is unambiguous (see `ironrank.report.group`).
        command: The command that makes the report, to be shown in it.

    Returns:
        The report.

    Example:
        >>> pgd = {"attack": "pgd", "norm": "Linf", "eps": 8 / 255, "steps": 20, "accuracy": 0.5}
        >>> net = {"name": "net", "clean": 0.8, "robust": [pgd], "params_deployed": 1200}
        >>> build([net], title="One net").verdict[:29]
        'Under attack (L∞, ε = 8/255),'
    """
    return Report(content.content_of(title, rows.read(evaluations), training.read(runs), group, command))
