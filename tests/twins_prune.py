"""Slow reference twins of the methods that remove filters or singular values, in float64 and numpy.

They share no code with the library. The net of the filter twins has one hidden layer, whose units are the filters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from twins import Array, Loss


def gradients(loss: Loss, W: list[Array], b: list[Array]) -> tuple[list[Array], list[Array]]:
    """Gradients of the loss with respect to weights and biases."""
    weights, biases = ([torch.tensor(v, requires_grad=True) for v in values] for values in (W, b))
    found = [g.numpy() for g in torch.autograd.grad(loss(weights, biases), [*weights, *biases])]
    return found[: len(W)], found[len(W) :]


def top(values: Array, k: int) -> Array:
    """1 for the k largest, 0 for the others; among equals the first."""
    mask = np.zeros(len(values))
    mask[np.argsort(-values, kind="stable")[:k]] = 1
    return mask


@dataclass
class ADMMFiltersTwin:
    """ADMM with SGD on the units of the hidden layer: rows (w_i, b_i) of the first layer."""

    loss: Loss
    W: list[Array]
    b: list[Array]
    kept: int
    rho: float
    growth: float
    rho_max: float
    every: int
    lr: float
    steps: int = 0

    def __post_init__(self) -> None:
        self.Y = np.zeros_like(self.filters())
        self.Z = self.project(self.filters())

    def filters(self) -> Array:
        """Matrix (n, m + 1), a row for each unit: its weights and its bias."""
        return np.concatenate([self.W[0], self.b[0][:, None]], 1)

    def project(self, F: Array) -> Array:
        """Zeros in all rows but the longest."""
        return top(np.linalg.norm(F, axis=1), self.kept)[:, None] * F

    def step(self) -> None:
        """One step, and at every so many the targets, the dual and rho."""
        gW, gb = gradients(self.loss, self.W, self.b)
        pull = self.rho * (self.filters() - self.Z + self.Y)
        gW[0], gb[0] = gW[0] + pull[:, :-1], gb[0] + pull[:, -1]
        self.W = [W - self.lr * g for W, g in zip(self.W, gW, strict=True)]
        self.b = [b - self.lr * g for b, g in zip(self.b, gb, strict=True)]
        self.steps += 1
        if self.steps % self.every == 0:
            F, rho = self.filters(), min(self.rho * self.growth, self.rho_max)
            self.Z = self.project(F + self.Y)
            self.Y = (self.Y + F - self.Z) * self.rho / rho
            self.rho = rho


@dataclass
class ScoresTwin:
    """Scores of the hidden units, whose outputs are the columns of the second layer."""

    loss: Loss
    W: list[Array]
    b: list[Array]
    kept: int
    rate: float
    momentum: float

    def __post_init__(self) -> None:
        size = np.linalg.norm(self.W[0], axis=1)
        self.s, self.v = size / size.max(), np.zeros(len(size))

    def step(self) -> float:
        """One step of the scores; returns the loss of the net with the units that are on."""
        masked = [self.W[0], self.W[1] * top(self.s, self.kept)]
        gW, _ = gradients(self.loss, masked, self.b)
        g = (gW[1] * self.W[1]).sum(0)
        self.v = self.momentum * self.v + g
        self.s = self.s - self.rate * self.v
        tensors = [[torch.tensor(v) for v in values] for values in (masked, self.b)]
        return float(self.loss(*tensors))


@dataclass
class SVDPruneTwin:
    """SVD training with SGD: ``W_l = U_l diag(s_l) V_l^T``, gradients of the penalties worked out by hand."""

    loss: Loss
    U: list[Array]
    s: list[Array]
    V: list[Array]
    b: list[Array]
    orthogonality: float
    sparsity: float
    hoyer: bool
    lr: float

    def step(self) -> None:
        """One step of all layers."""
        gW, gb = gradients(
            self.loss, [U * s @ V.T for U, s, V in zip(self.U, self.s, self.V, strict=True)], self.b
        )
        for k, G in enumerate(gW):
            U, s, V = self.U[k], self.s[k], self.V[k]
            gU, gV = G @ V * s, G.T @ U * s
            gs = np.einsum("ni,nm,mi->i", U, G, V)
            gU, gV = gU + self.orthogonality * self.apart(U), gV + self.orthogonality * self.apart(V)
            self.U[k], self.V[k] = U - self.lr * gU, V - self.lr * gV
            self.s[k] = s - self.lr * (gs + self.sparsity * self.spread(s))
            self.b[k] = self.b[k] - self.lr * gb[k]

    def apart(self, B: Array) -> Array:
        """Gradient of ``|B^T B - I|^2 / r^2``."""
        r = B.shape[1]
        return 4 * B @ (B.T @ B - np.eye(r)) / r**2

    def spread(self, s: Array) -> Array:
        """Gradient of ``|s|_1 / |s|_2``, or of ``|s|_1``."""
        size = np.linalg.norm(s)
        return np.sign(s) / size - np.abs(s).sum() * s / size**3 if self.hoyer else np.sign(s)

    def ranks(self, energy: float) -> list[int]:
        """How many singular values stay."""
        found = []
        for U, scale, V in zip(self.U, self.s, self.V, strict=True):
            s = np.linalg.svd(U * scale @ V.T, compute_uv=False)[: len(scale)]
            squares, dropped = np.sort(s**2), 0
            while dropped < len(s) - 1 and squares[: dropped + 1].sum() <= energy * squares.sum():
                dropped += 1
            found.append(len(s) - dropped)
        return found
