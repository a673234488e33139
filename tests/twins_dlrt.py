"""Slow reference twins of the methods whose ranks adapt: numpy and float64, on full matrices and kernels, SGD.

A twin shares no code with the library. It holds bases and cores, takes the gradient of the full weights from a plain
torch net, and lets gradients of factors follow by the chain rule. Momentum is kept as a full weight-shaped array where
it belongs to a core: to change bases is then to project it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Loss = Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]


def gradients(loss: Loss, weights: list[Array], biases: list[Array]) -> tuple[list[Array], list[Array]]:
    """Gradients of the loss with respect to the full weights and the biases."""
    W, b = ([torch.tensor(v, requires_grad=True) for v in values] for values in (weights, biases))
    found = [g.numpy() for g in torch.autograd.grad(loss(W, b), [*W, *b])]
    return found[: len(W)], found[len(W) :]


def orthonormal(Y: Array, columns: int) -> Array:
    """Orthonormal columns that span the first so many columns of Y, one after the other (Gram-Schmidt, twice)."""
    Q = np.zeros((len(Y), 0))
    for y in Y.T[:columns]:
        for _ in range(2):
            y = y - Q @ (Q.T @ y)
        Q = np.column_stack([Q, y / np.linalg.norm(y)])
    return Q


def kept(s: Array, theta: float, least: int, most: int) -> int:
    """Smallest rank whose tail is within the tolerance, inside the limits."""
    rank = next(r for r in range(len(s) + 1) if np.linalg.norm(s[r:]) <= theta * np.linalg.norm(s))
    return min(max(rank, least), most, len(s))


@dataclass
class DLRTTwin:
    """DLRT with SGD for a net whose weights are all matrices ``W_l = U_l S_l V_l^T``."""

    loss: Loss
    U: list[Array]
    S: list[Array]
    V: list[Array]
    bias: list[Array]
    theta: float
    most: list[int]
    least: int = 2
    lr: float = 0.1
    momentum: float = 0.0
    # K and L: as maps from and to the whole space, B V^T and B U^T; S: U B V^T
    buffers: dict[str, Array] = field(default_factory=dict)

    def direction(self, key: str, gradient: Array) -> Array:
        """Momentum: ``b <- mu b + g``."""
        old = self.buffers.get(key)
        self.buffers[key] = gradient if old is None else self.momentum * old + gradient
        return self.buffers[key]

    def weights(self) -> list[Array]:
        """``U S V^T``."""
        return [U @ S @ V.T for U, S, V in zip(self.U, self.S, self.V, strict=True)]

    def step(self) -> None:
        """One step of all layers at once: K and L from one gradient, S and biases from a second one."""
        G, _ = gradients(self.loss, self.weights(), self.bias)
        for k, (U, S, V) in enumerate(zip(self.U, self.S, self.V, strict=True)):
            PU, PV = U @ U.T, V @ V.T  # what is carried is seen from the present bases
            for key, project in ((f"K{k}", lambda B, PV=PV: B @ PV), (f"L{k}", lambda B, PU=PU: B @ PU)):
                if key in self.buffers:
                    self.buffers[key] = project(self.buffers[key])
            K = U @ S - self.lr * self.direction(f"K{k}", G[k] @ V @ V.T) @ V
            L = V @ S.T - self.lr * self.direction(f"L{k}", G[k].T @ U @ U.T) @ U
            r = min(*G[k].shape, 2 * len(S))
            self.U[k], self.V[k] = orthonormal(np.hstack([K, U]), r), orthonormal(np.hstack([L, V]), r)
            self.S[k] = self.U[k].T @ U @ S @ V.T @ self.V[k]
        G, gb = gradients(self.loss, self.weights(), self.bias)
        for k, (U, S, V) in enumerate(zip(self.U, self.S, self.V, strict=True)):
            PU, PV = U @ U.T, V @ V.T
            if f"S{k}" in self.buffers:
                self.buffers[f"S{k}"] = PU @ self.buffers[f"S{k}"] @ PV
            for key, P in ((f"K{k}", PV), (f"L{k}", PU)):
                self.buffers[key] = self.buffers[key] @ P
            S = S - self.lr * U.T @ self.direction(f"S{k}", PU @ G[k] @ PV) @ V
            self.bias[k] = self.bias[k] - self.lr * self.direction(f"b{k}", gb[k])
            P, s, Qt = np.linalg.svd(S)
            r = kept(s, self.theta, self.least, self.most[k])
            self.U[k], self.S[k], self.V[k] = U @ P[:, :r], np.diag(s[:r]), V @ Qt[:r].T
            PU, PV = self.U[k] @ self.U[k].T, self.V[k] @ self.V[k].T
            self.buffers[f"S{k}"] = PU @ self.buffers[f"S{k}"] @ PV
