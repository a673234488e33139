"""The report: many evaluations in one table, one page, one sentence.

gather.py      what stands in a run folder        fields.py      values, checked as they are read
rows.py        evaluations                        layer.py, score.py, audit.py, certificate.py, weakness.py: their parts
group.py       several seeds in one row           training.py    training metrics
judge.py       verdict, warnings, notes           text.py        numbers as text
cells.py       what tables are made of            tables.py, proofs.py: the tables
png.py         pixels as PNG                      pictures.py    adversarial examples
palette.py     colours, dashes, markers           svg.py         from matplotlib to inline SVG
drawing.py     what all figures share             robustness.py, structure.py, course.py: the figures
content.py     all that the report says           page.py        HTML, from templates/
markdown.py    Markdown                           card.py        the model card
report.py      `Report` and `build`
"""

from ironrank.report.report import Report, build

__all__ = ["Report", "build"]
