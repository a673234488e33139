"""Training: the one loop, its runs and its checkpoints."""

from ironrank.training.guards import Guard
from ironrank.training.loop import train
from ironrank.training.run import FAMILIES, Run, decode_run, read_run
from ironrank.training.start import initial_model

__all__ = ["train", "Run", "Guard", "decode_run", "read_run", "initial_model", "FAMILIES"]
