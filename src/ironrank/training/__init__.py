"""Training: the one loop, its runs and its checkpoints."""

from ironrank.training.loop import train
from ironrank.training.run import FAMILIES, Run, decode_run

__all__ = ["train", "Run", "decode_run", "FAMILIES"]
