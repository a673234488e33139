"""Comparisons: many methods on one recipe, at equal size or equal latency, judged alike.

question.py    what is asked, checked          cells.py       every net, budget and seed as a run
grid.py        cells side by side              folder.py      the folder; work on its cells
worker.py      one of several processes        estimate.py    how long it would take
timing.py      latency beside the dense net    judging.py     the judge of a cell
difference.py  paired, with an interval        table.py       from cells to rows
findings.py    ablation, sentences             words.py       tables as text
remarks.py     what is said beside them        figures.py     plots
page.py        HTML and Markdown               main.py        `compare`
"""

from ironrank.comparison.main import compare

__all__ = ["compare"]
