"""Slow reference twins of orthogonality baselines, Muon and the low-rank attack: numpy, float64, formulas only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from twins import Array, Loss, sign_fixed_qr, truncated


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


def polar(X: Array) -> Array:
    """The nearest matrix with orthonormal columns."""
    P, _, Qt = np.linalg.svd(X, full_matrices=False)
    return P @ Qt


def gradients(loss: Loss, weights: list[Array], biases: list[Array]) -> tuple[list[Array], list[Array]]:
    """Gradients of the loss with respect to weights and biases."""
    W, b = ([torch.tensor(v, requires_grad=True) for v in values] for values in (weights, biases))
    found = [g.numpy() for g in torch.autograd.grad(loss(W, b), [*W, *b])]
    return found[: len(W)], found[len(W) :]


@dataclass
class StiefelTwin:
    """SGD on the Stiefel manifold, along Cayley transforms or by projection; biases by plain SGD."""

    loss: Loss
    W: list[Array]
    bias: list[Array]
    curve: str  # "cayley", "qr" or "polar"
    momentum: float
    scale: float
    lr: float
    gain: float = 1.0
    iterations: int = 2

    def __post_init__(self) -> None:
        self.W = [self.laid_out(self.scale * polar(self.tall(W)), W) for W in self.W]
        self.M = [np.zeros_like(self.tall(W)) for W in self.W]

    @staticmethod
    def tall(W: Array) -> Array:
        """The matrix or its transpose, whichever is tall."""
        return W if W.shape[0] >= W.shape[1] else W.T

    @staticmethod
    def laid_out(X: Array, W: Array) -> Array:
        """A tall matrix in the orientation of W."""
        return X if W.shape[0] >= W.shape[1] else X.T

    def step(self) -> None:
        """One step of all weights and biases."""
        G, g = gradients(self.loss, self.W, self.bias)
        for k, W in enumerate(self.W):
            X = self.tall(W) / self.scale
            B = self.momentum * self.M[k] - self.tall(G[k])
            A = self.skew(X, B)
            self.M[k] = A @ X
            length = self.gain * self.lr / self.scale
            self.W[k] = self.laid_out(self.scale * self.moved(X, A, self.M[k], length), W)
            self.bias[k] = self.bias[k] - self.lr * g[k]

    def skew(self, X: Array, B: Array) -> Array:
        """The skew matrix A with A X the projection of B on the tangent space."""
        half = B @ X.T - 0.5 * X @ (X.T @ B @ X.T)
        return half - half.T

    def moved(self, X: Array, A: Array, M: Array, length: float) -> Array:
        """The end of the curve."""
        if self.curve == "polar":
            return polar(X + length * M)
        if self.curve == "qr":
            return sign_fixed_qr(X + length * M)
        length = min(length, 1 / np.linalg.norm(A))
        Y = X + length * M
        for _ in range(self.iterations):
            Y = X + length / 2 * A @ (X + Y)
        return sign_fixed_qr(Y)


def exact_cayley(X: Array, A: Array, length: float) -> Array:
    """The Cayley transform of A, by a solve."""
    identity = np.eye(len(A))
    return np.linalg.solve(identity - length / 2 * A, (identity + length / 2 * A) @ X)


def penalty(W: Array, kind: str, v: Array | None = None) -> float:
    """What the penalised methods add to the loss for one weight, before its factor."""
    s = np.linalg.svd(W, compute_uv=False)
    if v is not None:  # by power iteration
        stretch = float(np.sum((StiefelTwin.tall(W) @ v) ** 2))
        return abs(stretch - 1) if kind == "srip" else stretch / 2
    exact = {
        "so": np.sum((s**2 - 1) ** 2),
        "srip": np.abs(s**2 - 1).max(),
        "cond": np.log(s[0] / s[-1]),
        "norm": s[0] ** 2 / 2,
        "spread": np.sqrt(np.sum((s**2 - np.mean(s**2)) ** 2)),
    }
    return float(exact[kind])


@dataclass
class PenalisedTwin:
    """SGD on loss plus penalty; the gradient of the penalty by central differences."""

    loss: Loss
    W: list[Array]
    bias: list[Array]
    kind: str
    weight: float
    lr: float
    rounds: int = 1

    def __post_init__(self) -> None:
        self.v = [self.dominant(W) for W in self.W]

    def dominant(self, W: Array) -> Array | None:
        """The eigenvector that the penalty is about."""
        if self.kind not in ("srip", "norm"):
            return None
        values, vectors = np.linalg.eigh(self.operator(W))
        return vectors[:, np.abs(values).argmax()]

    def operator(self, W: Array) -> Array:
        """``X^T X``, less the identity for srip."""
        X = StiefelTwin.tall(W)
        return X.T @ X - (self.kind == "srip") * np.eye(X.shape[1])

    def step(self) -> None:
        """One step of all weights and biases."""
        G, g = gradients(self.loss, self.W, self.bias)
        for k, W in enumerate(self.W):
            v = self.v[k]
            for _ in range(self.rounds if v is not None else 0):
                v = self.operator(W) @ v
                v = v / np.linalg.norm(v)
            self.v[k] = v
            slope = differences(lambda W, v=v: penalty(W, self.kind, v), W)
            self.W[k] = W - self.lr * (G[k] + self.weight * slope)
            self.bias[k] = self.bias[k] - self.lr * g[k]


def differences(function: Callable[[Array], float], W: Array, h: float = 1e-6) -> Array:
    """The gradient of a function of a matrix, by central differences."""
    slope = np.zeros_like(W)
    for place in np.ndindex(*W.shape):
        step = np.zeros_like(W)
        step[place] = h
        slope[place] = (function(W + step) - function(W - step)) / (2 * h)
    return slope


def msign(B: Array) -> Array:
    """The orthogonal factor, by the SVD."""
    P, s, Qt = np.linalg.svd(B, full_matrices=False)
    return P @ np.diag((s > 1e-12 * s[0]).astype(float)) @ Qt


def quintic(B: Array, steps: int) -> Array:
    """Newton-Schulz, on the singular values themselves."""
    P, s, Qt = np.linalg.svd(B, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return P @ np.diag(s) @ Qt


@dataclass
class MuonTwin:
    """Muon for one weight, and AdamW or SGD for one that is no matrix of a hidden layer."""

    lr: float
    momentum: float
    decay: float
    nesterov: bool = True
    steps: int = 0  # of Newton-Schulz; 0 is exact
    wide: bool = False  # match_rms_adamw

    def run(self, W: Array, course: list[Array]) -> Array:
        """The weight after steps along these gradients."""
        B = np.zeros_like(W)
        for G in course:
            B = self.momentum * B + G
            ahead = (G + self.momentum * B if self.nesterov else B).reshape(len(W), -1)
            O = (quintic(ahead, self.steps) if self.steps else msign(ahead)).reshape(W.shape)  # noqa: E741
            n, m = ahead.shape
            factor = 0.2 * np.sqrt(max(n, m)) if self.wide else np.sqrt(max(1, n / m))
            W = W - self.lr * self.decay * W - self.lr * factor * O
        return W
