"""The low-rank forms of a matrix.

    W = U V^T      two factors
    W = U S V^T    two bases and a core

    W (..., n, m)    n outputs, m inputs
    U (..., n, r)    V (..., m, r)    S (..., r, r), not diagonal in general

There is one orientation everywhere: rows of ``W`` are outputs.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class UV(NamedTuple):
    """Two factors ``W = U V^T``: U (..., n, r), V (..., m, r)."""

    U: Tensor
    V: Tensor

    def dense(self) -> Tensor:
        """Return ``U V^T`` (..., n, m)."""
        return self.U @ self.V.mT


class USV(NamedTuple):
    """Two bases and a core ``W = U S V^T``: U (..., n, r), S (..., r, r), V (..., m, r)."""

    U: Tensor
    S: Tensor
    V: Tensor

    def dense(self) -> Tensor:
        """Return ``U S V^T`` (..., n, m)."""
        return self.U @ self.S @ self.V.mT

    def merged(self) -> UV:
        """Return the same matrix as two factors, ``(U S) V^T``."""
        return UV(self.U @ self.S, self.V)
