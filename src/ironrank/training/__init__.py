"""Training: the one loop, its runs and its checkpoints."""

from ironrank.training.loop import initial_model, train
from ironrank.training.run import FAMILIES, Run, decode_run

__all__ = ["train", "Run", "decode_run", "initial_model", "FAMILIES"]
