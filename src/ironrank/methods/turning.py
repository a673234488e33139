"""Write a layer with a core in other bases, of another rank too, and carry the optimizer's moments along.

    W = U S V^T,  or  S x_1 U x_2 V        before
    U' (n, a)   V' (m, b)                  the new orthonormal bases
    M = U'^T U  N = V'^T V                 the change of coordinates
    S' = M S N^T,  or  S x_1 M x_2 N       the core; W stays the same where U', V' span what U, V did

A core decomposed as ``S = P C Q^T`` (SVD), or ``C x_1 P x_2 Q`` (HOSVD), with orthogonal P and Q gives every truncation
at once: bases ``U P_a``, ``V Q_b`` and the leading block of C. What is dropped has the norm of the rest of C.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.linalg import full_ranks, hosvd
from ironrank.linalg.precision import HALF
from ironrank.linalg.svd import checked_svd
from ironrank.methods.moments import carry

Pair = tuple[int, int]


class Pieces(NamedTuple):
    """A core decomposed: P (a, a), C (a, b, *k), Q (b, b), directions in falling order."""

    P: Tensor
    C: Tensor
    Q: Tensor

    @property
    def spectra(self) -> tuple[Tensor, Tensor]:
        """Singular values of the core as seen from U and from V, which are the norms of the slices of C."""
        return self.C.flatten(1).norm(dim=1), self.C.transpose(0, 1).flatten(1).norm(dim=1)


@torch.no_grad()
def decompose(layer: Any) -> Pieces:
    """Decompose the core of a layer: by SVD, or by HOSVD in the channel modes.

    Args:
        layer: A factored layer with a core.

    Returns:
        The pieces.
    """
    S = layer.S.detach()
    if S.dim() == 2:
        P, s, Qt = checked_svd(S)
        return Pieces(P, torch.diag(s), Qt.mT)
    found = hosvd(
        S.double(), full_ranks(tuple(S.shape))
    )  # Gram matrices: float32 would blur small directions
    return Pieces(*(piece.to(S.dtype) for piece in (found.U, found.S, found.V)))


def turn(
    layer: Any,
    bases: tuple[Tensor, Tensor],
    change: tuple[Tensor, Tensor],
    core: Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    crossed: bool = False,
) -> None:
    """Give a layer new bases, its core in them, and carry the moments along.

    Args:
        layer: A factored layer with a core; its gradients, which are of the old shapes, are dropped.
        bases: U' and V'.
        change: M and N.
        core: S', where it is known.
        optimizer: Its optimizer, if there are moments.
        crossed: Whether U and V are trained as ``K = U S`` and ``L = V S^T``: columns of K are coordinates along V,
            and so change by N.
    """
    kind, (M, N) = type(layer.factors()), change
    if optimizer is not None:
        carry(optimizer, layer.S, M, N)
        carry(optimizer, layer.U, N=N if crossed else M)
        carry(optimizer, layer.V, N=M if crossed else N)
    new = core_in(layer, M, N) if core is None else core
    layer.set_factors(kind(bases[0], new, bases[1]))
    for factor in (layer.U, layer.S, layer.V):
        factor.grad = None


@torch.no_grad()
def core_in(layer: Any, M: Tensor, N: Tensor) -> Tensor:
    """Return the core in other coordinates: ``M S N^T``, or ``S x_1 M x_2 N``."""
    return type(layer.factors())(M, layer.S, N).dense()


@torch.no_grad()
def rebase(
    layer: Any,
    bases: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    crossed: bool = False,
) -> None:
    """Write a layer in other bases; what of W lies outside of their span is lost.

    Args:
        layer: A factored layer with a core.
        bases: U' (n, a) and V' (m, b), orthonormal.
        optimizer: Its optimizer, if there are moments.
        crossed: See `turn`.
    """
    change = bases[0].mT @ layer.U, bases[1].mT @ layer.V
    turn(layer, bases, change, None, optimizer, crossed)


@torch.no_grad()
def truncate(
    layer: Any,
    rank: Pair,
    pieces: Pieces | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    crossed: bool = False,
) -> None:
    """Cut a layer down to the leading directions of its core, which becomes diagonal, or all-orthogonal for Tucker-2.

    Args:
        layer: A factored layer with orthonormal bases and a core.
        rank: How many directions of U and of V to keep; both the same for a matrix.
        pieces: Its core decomposed, where that is at hand.
        optimizer: Its optimizer, if there are moments.
        crossed: See `turn`.
    """
    P, C, Q = decompose(layer) if pieces is None else pieces
    (a, b), change = rank, (P[:, : rank[0]].mT, Q[:, : rank[1]].mT)
    bases = layer.U @ P[:, :a], layer.V @ Q[:, :b]
    turn(layer, bases, change, C[:a, :b], optimizer, crossed)


@torch.no_grad()
def draw_spectrum(layer: Any) -> None:
    """Give a core, as seen from U, absolute normal random numbers as singular values; its directions stay.

    Args:
        layer: A factored layer with a core.
    """
    P, s, Qt = checked_svd(layer.unfoldings()[0])
    drawn = torch.randn(len(s)).abs().sort(descending=True).values.to(s)
    layer.S.copy_((P * drawn @ Qt).reshape(layer.S.shape))


def refuse_half(model: nn.Module, label: str) -> None:
    """Refuse weights held in half precision, in which bases lose orthonormality as they turn.

    Args:
        model: The model.
        label: Name of the method.

    Raises:
        IronrankError: If there are some.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype in HALF:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise IronrankError(f"{label}: '{name}' is {kind}: allowed are float32 and float64; "
                                "hold weights in float32, and train under autocast")  # fmt: skip
