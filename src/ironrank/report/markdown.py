"""The report as Markdown: the tables and the numbers of the figures, for a repository or a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ironrank.report.cells import Cell, Column, Table

if TYPE_CHECKING:
    from ironrank.report.content import Content


def render(content: Content) -> str:
    """Return the whole report as Markdown.

    Args:
        content: What the report says.

    Returns:
        Text in GitHub-flavoured Markdown.
    """
    blocks = [f"# {escape(content.title)}", f"**{escape(content.verdict.sentence)}**"]
    blocks += [f"> **Warning.** {escape(line)}" for line in content.warnings]
    blocks += ["## Results", table(content.overview), bullets(content.notes), bullets(content.missing)]
    blocks += (
        ["## Accuracy against the strength of the attack", table(content.curves)] if content.curves else []
    )
    blocks += ["## Training", table(content.training)] if content.training else []
    blocks += _proofs(content)
    if content.layers:
        blocks += [
            "## Layers",
            *map(table, content.layers),
            "All singular values are in the JSON file of this report.",
        ]
    blocks += [
        "## Threat model and how to read",
        *map(escape, content.threat_model),
        bullets(content.attacks),
    ]
    blocks += ["## Versions and commands", table(content.provenance)]
    blocks += [block for what, command in content.commands for block in (f"{escape(what)}:", code(command))]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _proofs(content: Content) -> list[str]:
    found: dict[str, list[Table | None]] = {
        "## Audits": [content.audits, *content.audit_details],
        "## Certificates": [content.certificates, *content.bounds],
        "## Adversarial examples": [content.examples],
        "## Weakness map": [table for row in content.nets if row.weakness for table in row.weakness.tables],
    }
    kept = {title: [table(item) for item in items if item] for title, items in found.items()}
    return [block for title, blocks in kept.items() if blocks for block in (title, *blocks)]


def table(item: Table) -> str:
    """Return a table: its caption as a line of its own, then header and rows.

    Args:
        item: The table.

    Returns:
        Markdown; every line of the table has the same number of cells.
    """
    head = _join(_head(column) for column in item.columns)
    rule = _join(":---" if column.words or i == 0 else "---:" for i, column in enumerate(item.columns))
    body = [_join(_cell(cell, place == item.pick) for cell in line) for place, line in enumerate(item.rows)]
    return "\n".join([escape(item.caption), "", head, rule, *body])


def escape(text: str) -> str:
    r"""Return text that Markdown and the HTML around it show as it stands, on one line.

    Example:
        >>> print(escape("a|b <script> *c*"))
        a\|b &lt;script&gt; \*c\*
    """
    line = " ".join(text.split("\n")).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]~#])", r"\\\1", line.replace("\r", " "))


def code(text: str, language: str = "sh") -> str:
    """Return a fenced block, with a fence longer than any row of back-ticks inside."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def bullets(lines: Iterable[str]) -> str:
    """Return a list, one line an entry."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def _head(column: Column) -> str:
    return escape(f"{column.label} ({column.unit})" if column.unit else column.label)


def _cell(cell: Cell, bold: bool) -> str:
    value = f"**{escape(cell.text)}**" if bold else escape(cell.text)
    detail = cell.detail if cell.detail.startswith("[") else f"({cell.detail})"
    return f"{value} {escape(detail)}" if cell.detail else value


def _join(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
