"""Slow reference twins of orthogonality baselines, Muon and the low-rank attack: numpy, float64, formulas only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twins import Array, truncated


@dataclass
class LowRankPGDTwin:
    """Projected gradient ascent of rank r, one sample (c, h, w) at a time."""

    gradient: Callable[[Array], Array]
    norm: str
    eps: float
    rank: int
    step_size: float

    def run(self, x: Array, steps: int) -> Array:
        """The pixels after so many steps from x."""
        change = np.zeros_like(x)
        for _ in range(steps):
            G = self.gradient(np.clip(x + change, 0, 1))
            direction = np.sign(G) if self.norm == "Linf" else G / np.linalg.norm(G)
            change = change + self.step_size * direction
            if self.norm == "Linf":
                change = np.clip(change, -self.eps, self.eps)
            change = np.clip(x + change, 0, 1) - x
            change = np.stack([truncated(channel, self.rank) for channel in change])
            change = change * min(1.0, self.eps / self.size(change))
        return np.clip(x + change, 0, 1)

    def size(self, change: NDArray[np.float64]) -> float:
        """The norm of a change."""
        return float(np.abs(change).max() if self.norm == "Linf" else np.linalg.norm(change))
