"""Objectives: settings that are called as ``objective(model, x, y)`` and return the loss to train on."""

from ironrank.objectives.base import Objective
from ironrank.objectives.clean import Clean
from ironrank.objectives.madry import Madry

OBJECTIVES: dict[str, type[Objective]] = {o.name: o for o in (Clean, Madry)}

__all__ = ["OBJECTIVES", "Objective", "Clean", "Madry"]
