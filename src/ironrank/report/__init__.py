"""The report: many evaluations in one table, one page, one sentence.

rows.py        reads evaluations, checks them     training.py    reads training metrics
judge.py       verdict, warnings, notes           text.py        numbers as text
tables.py      the tables, as cells               palette.py     colours, dashes, markers
svg.py         from matplotlib to inline SVG      drawing.py     what all figures share
robustness.py, structure.py, course.py: the figures
content.py     all that the report says           page.py        HTML, from templates/
markdown.py    Markdown                           report.py      `Report` and `build`
"""

from ironrank.report.report import Report, build

__all__ = ["Report", "build"]
