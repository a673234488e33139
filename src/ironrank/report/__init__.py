"""The report: many evaluations in one table, one page, one sentence.

rows.py      reads evaluations, checks them at the door      training.py  reads training metrics
interval.py  Wilson and Newcombe                             judge.py     verdict, warnings, notes
text.py      numbers as text                                 tables.py    the tables, as cells
palette.py   colours, dashes, markers                        svg.py       from matplotlib to inline SVG
figures.py   the drawings                                    content.py   all that the report says
page.py      HTML from templates/                            markdown.py  Markdown
files.py     atomic writing                                  report.py    `Report` and `build`
"""

from ironrank.report.report import Report, build

__all__ = ["Report", "build"]
