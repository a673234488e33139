"""Measurements: paired times of training steps, memory by kind, latency.

The paired harness and the counters depend on torch only; `bench_train_step` compares CondLR with dense
training.
"""

from ironrank.bench.latency import latency
from ironrank.bench.main import main_train_step
from ironrank.bench.memory import StepMemory, activation_bytes, bytes_of, step_memory
from ironrank.bench.paired import PairedTimes, compare
from ironrank.bench.table import as_markdown
from ironrank.bench.train_step import bench_train_step

__all__ = [
    "PairedTimes",
    "StepMemory",
    "activation_bytes",
    "as_markdown",
    "bench_train_step",
    "bytes_of",
    "compare",
    "latency",
    "main_train_step",
    "step_memory",
]
