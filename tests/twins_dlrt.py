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


def times(S: Array, M: Array, N: Array) -> Array:
    """``S x_1 M x_2 N`` of a kernel (a, b, k_h, k_w)."""
    return np.einsum("abij,ma,nb->mnij", S, M, N)


def rows(S: Array, mode: int) -> Array:
    """Unfolding of a kernel by one of its channel modes."""
    return np.moveaxis(S, mode, 0).reshape(S.shape[mode], -1)


def spread_gradient(M: Array) -> Array:
    """Gradient of ``|M M^T - a^2 I|_F`` with ``a^2 = |M|_F^2 / r``."""
    gap = M @ M.T - np.sum(M**2) / len(M) * np.eye(len(M))
    return 2 * gap @ M / np.linalg.norm(gap)


@dataclass
class RobustDLRTTwin:
    """RobustDLRT with SGD; every weight is a kernel ``S x_1 U x_2 V``, a matrix one of 1 x 1 points."""

    loss: Loss
    U: list[Array]
    S: list[Array]
    V: list[Array]
    bias: list[Array]
    matrix: list[bool]
    most: list[tuple[int, int]]
    full: list[tuple[int, int]]
    theta: float
    beta: float
    cycle: int
    least: int = 2
    lr: float = 0.1
    momentum: float = 0.0
    t: int = 0
    buffers: dict[str, Array] = field(
        default_factory=dict
    )  # of a core as a whole kernel, of a basis by its columns

    def weights(self) -> list[Array]:
        """The kernels."""
        return [times(S, U, V) for U, S, V in zip(self.U, self.S, self.V, strict=True)]

    def direction(self, key: str, gradient: Array) -> Array:
        """Momentum: ``b <- mu b + g``."""
        old = self.buffers.get(key)
        self.buffers[key] = gradient if old is None else self.momentum * old + gradient
        return self.buffers[key]

    def basis_gradients(self, k: int, G: Array) -> tuple[Array, Array]:
        """By the chain rule, from the gradient of the kernel."""
        U, S, V = self.U[k], self.S[k], self.V[k]
        return rows(G, 0) @ rows(times(S, np.eye(len(S)), V), 0).T, rows(G, 1) @ rows(
            times(S, U, np.eye(len(V.T))), 1
        ).T

    def widen(self) -> None:
        """Equations (1) to (3)."""
        G, _ = gradients(self.loss, self.weights(), self.bias)
        for k in range(len(G)):
            gU, gV = self.basis_gradients(k, G[k])
            (n, m, *size), (a, b) = G[k].shape, self.S[k].shape[:2]
            first, second = (min(n, m, 2 * a),) * 2 if self.matrix[k] else (min(n, 2 * a), min(m, 2 * b))
            first = min(first, second * int(np.prod(size)))
            U, V = (
                orthonormal(np.hstack([basis, np.linalg.svd(g - basis @ basis.T @ g)[0]]), c)
                for basis, g, c in (
                    (self.U[k], gU, first),
                    (self.V[k], gV, min(second, first * int(np.prod(size)))),
                )
            )
            self.S[k] = times(self.S[k], U.T @ self.U[k], V.T @ self.V[k])
            for key, turn in ((f"U{k}", self.U[k].T @ U), (f"V{k}", self.V[k].T @ V)):
                if key in self.buffers:
                    self.buffers[key] = self.buffers[key] @ turn
            self.U[k], self.V[k] = U, V

    def move(self) -> None:
        """Equation (4); bases move where the core is as large as it can be."""
        G, gb = gradients(self.loss, self.weights(), self.bias)
        for k, (U, S, V) in enumerate(zip(self.U, self.S, self.V, strict=True)):
            gS = times(G[k], U.T, V.T) + self.beta * spread_gradient(rows(S, 0)).reshape(S.shape)
            both = self.basis_gradients(k, G[k])
            buffer = self.direction(f"S{k}", times(gS, U, V))
            self.S[k] = S - self.lr * times(buffer, U.T, V.T)
            self.bias[k] = self.bias[k] - self.lr * self.direction(f"b{k}", gb[k])
            for name, bases, axis in (("U", self.U, 0), ("V", self.V, 1)):
                Q, key = bases[k], f"{name}{k}"
                if Q.shape[1] == self.full[k][axis] < len(Q):
                    away = np.eye(len(Q)) - Q @ Q.T
                    if key in self.buffers:
                        self.buffers[key] = away @ self.buffers[key]
                    step = self.direction(key, away @ both[axis] * S.shape[axis] / np.sum(S**2))
                    bases[k] = orthonormal(Q - self.lr * step, Q.shape[1])
            self.buffers[f"S{k}"] = times(
                times(buffer, U.T, V.T), self.U[k], self.V[k]
            )  # it lies by coordinates

    def truncate(self) -> None:
        """Equation (5)."""
        for k, S in enumerate(self.S):
            (P, s), (Q, z) = (np.linalg.svd(rows(S, mode), full_matrices=False)[:2] for mode in (0, 1))
            share = self.theta if self.matrix[k] else self.theta / np.sqrt(2)
            a, b = (
                kept(x, share, min(self.least, most), most)
                for x, most in zip((s, z), self.most[k], strict=True)
            )
            a = min(a, b * int(np.prod(S.shape[2:])))
            b = min(b, a * int(np.prod(S.shape[2:])))
            P, Q = P[:, :a], Q[:, :b]
            buffer = times(self.buffers[f"S{k}"], self.U[k].T, self.V[k].T)
            self.U[k], self.S[k], self.V[k] = self.U[k] @ P, times(S, P.T, Q.T), self.V[k] @ Q
            self.buffers[f"S{k}"] = times(times(buffer, P.T, Q.T), self.U[k], self.V[k])
            for key, turn in ((f"U{k}", P), (f"V{k}", Q)):
                if key in self.buffers:
                    self.buffers[key] = self.buffers[key] @ turn

    def step(self) -> None:
        """One step of all layers."""
        if self.t % self.cycle == 0:
            self.widen()
        self.move()
        self.t += 1
        if self.t % self.cycle == 0:
            self.truncate()
