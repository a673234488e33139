"""Comparisons: many methods on one recipe, at equal size or equal latency, judged alike.

grid.py        cells side by side: kept, resumed, shared stages trained once
"""
