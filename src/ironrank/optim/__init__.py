"""Optimizers and learning-rate schedules as settings."""

from ironrank.optim.clipping import clip_gradients, clip_steps
from ironrank.optim.muon import Muon
from ironrank.optim.optimizers import SGD, AdamW, Optimizer, set_lr, slowed
from ironrank.optim.schedules import Constant, Cosine, OneCycle, Schedule, Steps

OPTIMIZERS: dict[str, type[Optimizer]] = {o.name: o for o in (SGD, AdamW, Muon)}
SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Constant, Steps, Cosine, OneCycle)}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Optimizer",
    "SGD",
    "AdamW",
    "Muon",
    "clip_gradients",
    "clip_steps",
    "set_lr",
    "slowed",
    "Schedule",
    "Constant",
    "Steps",
    "Cosine",
    "OneCycle",
]
