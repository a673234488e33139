"""Slow reference twins: the methods once more, in float64 and numpy, straight from the formulas.

A twin shares no code with the library. It holds full matrices ``I - U U^T``, inverts explicitly, and takes the gradient
of the full weight from a plain torch net; the gradients of the factors follow by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Maps weight matrices and biases (torch, float64) to the loss.
Loss = Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]


def sign_fixed_qr(Y: Array) -> Array:
    """Q of the QR decomposition whose R has a positive diagonal."""
    Q, R = np.linalg.qr(Y)
    return Q @ np.diag(np.where(np.diag(R) < 0, -1.0, 1.0))


def into_band(S: Array, tau: float, centre: str) -> Array:
    """Singular values clipped to ``[c - e, c + e]``, ``e = tau c / (2 + tau)``."""
    P, s, Qt = np.linalg.svd(S)
    c = s.mean() if centre == "mean" else np.sqrt(np.mean(s**2))
    e = tau * c / (2 + tau)
    return P @ np.diag(np.clip(s, c - e, c + e)) @ Qt


def weight(U: Array, S: Array, V: Array) -> Array:
    """``U S V^T``."""
    return U @ S @ V.T


def tangent_projection(U: Array, V: Array, G: Array) -> Array:
    """Orthogonal projection of G on the tangent space of the rank-r matrices at ``U S V^T``."""
    PU, PV = U @ U.T, V @ V.T
    return PU @ G + G @ PV - PU @ G @ PV


def correction(S: Array, kind: str) -> Array:
    """``(S S^T)^{-1}``, or a multiple of the identity in its place."""
    r = len(S)
    if kind == "exact":
        return np.linalg.inv(S @ S.T)
    return np.eye(r) * {"scalar": r / np.trace(S @ S.T), "none": 1.0}[kind]


@dataclass
class CondLRTwin:
    """CondLR with SGD for a net whose weights are all factored, ``W_l = U_l S_l V_l^T``."""

    loss: Loss
    U: list[Array]
    S: list[Array]
    V: list[Array]
    bias: list[Array]
    tau: float
    centre: str = "mean"
    correction: str = "exact"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    buffers: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.U, self.V = [sign_fixed_qr(U) for U in self.U], [sign_fixed_qr(V) for V in self.V]
        self.S = [into_band(S, self.tau, self.centre) for S in self.S]

    def gradients(self) -> tuple[list[Array], list[Array]]:
        """Gradients of the loss with respect to the full weights and the biases."""
        W = [weight(U, S, V) for U, S, V in zip(self.U, self.S, self.V, strict=True)]
        weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in W]
        biases = [torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in self.bias]
        loss = self.loss(weights, biases)
        gradients = torch.autograd.grad(loss, [*weights, *biases])
        arrays = [g.numpy() for g in gradients]
        return arrays[: len(weights)], arrays[len(weights) :]

    def direction(self, key: str, gradient: Array, project: Array | None = None) -> Array:
        """What is subtracted, times lr; the old buffer is projected to the present tangent space before it is used."""
        if self.momentum == 0:
            return gradient
        old = self.buffers.get(key)
        if old is not None and project is not None:
            old = project @ old
        self.buffers[key] = gradient if old is None else self.momentum * old + gradient
        return gradient + self.momentum * self.buffers[key] if self.nesterov else self.buffers[key]

    def step(self) -> None:
        """One step of all layers at once, from one gradient."""
        G, gb = self.gradients()
        for k, (U, S, V) in enumerate(zip(self.U, self.S, self.V, strict=True)):
            gU, gS, gV = G[k] @ V @ S.T, U.T @ G[k] @ V, G[k].T @ U @ S
            PU, PV = np.eye(len(U)) - U @ U.T, np.eye(len(V)) - V @ V.T
            dU = self.direction(f"U{k}", PU @ gU @ correction(S, self.correction), PU)
            dV = self.direction(f"V{k}", PV @ gV @ correction(S.T, self.correction), PV)
            dS = self.direction(f"S{k}", gS)
            self.U[k] = sign_fixed_qr(U - self.lr * dU)
            self.V[k] = sign_fixed_qr(V - self.lr * dV)
            self.S[k] = into_band(S - self.lr * dS, self.tau, self.centre)
            self.bias[k] = self.bias[k] - self.lr * self.direction(f"b{k}", gb[k])


def truncated(W: Array, rank: int) -> Array:
    """Nearest matrix of a rank, by the SVD."""
    P, s, Qt = np.linalg.svd(W, full_matrices=False)
    return P[:, :rank] @ np.diag(s[:rank]) @ Qt[:rank]


def left_vectors(M: Array, rank: int) -> Array:
    """Leading left singular vectors."""
    return np.linalg.svd(M)[0][:, :rank]


@dataclass
class CSTARTwin:
    """ADMM with SGD at given forms and ranks; a weight is a matrix or a kernel (n, c, k_h, k_w)."""

    loss: Loss
    W: list[Array]
    bias: list[Array]
    ranks: list[tuple]  # (form, rank) of each layer
    rho: float
    growth: float
    rho_max: float
    every: int
    lr: float
    steps: int = 0
    V: dict[int, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.Y = [np.zeros_like(W) for W in self.W]
        self.Z = [self.project(k, W) for k, W in enumerate(self.W)]

    def project(self, k: int, W: Array) -> Array:
        """Projection of layer k's weight on its form and rank; Tucker-2 starts from its last input basis."""
        form, rank = self.ranks[k]
        if form == "dense":
            return W
        if form == "channel":
            return truncated(W.reshape(len(W), -1), rank).reshape(W.shape)
        if form == "spatial":
            n, c, high, wide = W.shape
            matrix = truncated(W.transpose(0, 3, 1, 2).reshape(n * wide, c * high), rank)
            return matrix.reshape(n, wide, c, high).transpose(0, 2, 3, 1)
        return self.alternate(k, W, rank)

    def alternate(self, k: int, W: Array, rank: tuple[int, int]) -> Array:
        """One sweep from the last basis, or two from the left vectors of the unfolding by input channels."""
        sweeps, (n, c) = 1 if k in self.V else 2, W.shape[:2]
        V = self.V.get(k, left_vectors(np.moveaxis(W, 1, 0).reshape(c, -1), rank[1]))
        for _ in range(sweeps):
            U = left_vectors(np.einsum("ncij,cs->nsij", W, V).reshape(n, -1), rank[0])
            inner = np.einsum("ncij,nr->rcij", W, U)
            V = left_vectors(np.moveaxis(inner, 1, 0).reshape(c, -1), rank[1])
        self.V[k] = V
        return np.einsum("ncij,nm,cd->mdij", W, U @ U.T, V @ V.T)

    def step(self) -> None:
        """One step of all layers; at every so many, targets, duals and rho."""
        W, b = ([torch.tensor(v, requires_grad=True) for v in values] for values in (self.W, self.bias))
        gradients = [g.numpy() for g in torch.autograd.grad(self.loss(W, b), [*W, *b])]
        for k, (form, _) in enumerate(self.ranks):
            apart = self.W[k] - self.Z[k] + self.Y[k]
            self.W[k] = self.W[k] - self.lr * (gradients[k] + (0 if form == "dense" else self.rho) * apart)
            self.bias[k] = self.bias[k] - self.lr * gradients[len(W) + k]
        self.steps += 1
        if self.steps % self.every == 0:
            rho = min(self.rho * self.growth, self.rho_max)
            for k, weight_ in enumerate(self.W):
                shifted = weight_ + self.Y[k]
                self.Z[k] = self.project(k, shifted)
                self.Y[k] = (shifted - self.Z[k]) * self.rho / rho
            self.rho = rho
