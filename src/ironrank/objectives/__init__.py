"""Objectives: settings that are called as ``objective(model, x, y)`` and return the loss to train on."""

from ironrank.objectives.base import Memory, Objective
from ironrank.objectives.clean import Clean
from ironrank.objectives.distill import Distill
from ironrank.objectives.free import Free
from ironrank.objectives.madry import Madry
from ironrank.objectives.mart import Mart
from ironrank.objectives.robust import Robust
from ironrank.objectives.trades import Trades

OBJECTIVES: dict[str, type[Objective]] = {o.name: o for o in (Clean, Madry, Trades, Mart, Free, Distill)}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Robust",
    "Memory",
    "Clean",
    "Madry",
    "Trades",
    "Mart",
    "Free",
    "Distill",
]
