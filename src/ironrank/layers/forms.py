"""The low-rank forms of a weight (n, c, *k), as numbers: sizes, ranks and counts, without a layer.

    form       held as                                      acts as                                        rank
    channel    matrix (n, c k_1 ... k_d) = U S V^T          k_1 x ... x k_d into r channels, 1 x 1         r
    spatial    matrix (n k_w, c k_h) = U S V^T              k_h x 1 into r channels, 1 x k_w out of them   r
    tucker2    kernel U (n, r1), S (r1, r2, *k), V (c, r2)  1 x 1, k_1 x ... x k_d, 1 x 1                  (r1, r2)

A linear or 1 x 1 layer has the channel form only (n, c): the others come down to it. The spatial form is one of
two-dimensional convolutions; where the kernel is one column wide, it comes down to the channel form as well.

Multiply-adds are counted at two numbers of positions: ``p`` at the output, and ``q`` where the first thin layer acts.
That is the same place in the channel form; in the spatial form it is output rows times input columns, since the first
layer strides along rows only; in the Tucker-2 form it is the input.

Source of the spatial form: Jaderberg, Vedaldi, Zisserman, "Speeding up convolutional neural networks with low rank
expansions", 2014, scheme 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.linalg import full_ranks

FORMS = ("channel", "spatial", "tucker2")
Rank = int | tuple[int, int]
Shape = tuple[int, ...]


def check_form(form: str, shape: Shape) -> None:
    """Refuse a form that a weight of this shape cannot have.

    Args:
        form: Name of the form.
        shape: Shape of the weight, outputs first.

    Raises:
        IronrankError: If the name is unknown, or the shape has not the dimensions that the form needs.
    """
    if form not in FORMS:
        raise IronrankError(f"form={form!r}: allowed is {', '.join(FORMS)}")
    if form == "spatial" and len(shape) != 4:
        raise IronrankError("form='spatial' is for two-dimensional convolutions: take 'channel' or 'tucker2'")
    if form == "tucker2" and len(shape) < 3:
        raise IronrankError("form='tucker2' is for convolutions: take 'channel'")


def natural_form(form: str, shape: Shape) -> str:
    """Return the form that a weight gets where ``form`` is asked for: "channel" where it has not that one.

    Args:
        form: "channel", "spatial" or "tucker2".
        shape: Shape of the weight, outputs first.

    Returns:
        The form: "channel" for linear and 1 x 1 layers, and in place of "spatial" for kernels that are not of two
        dimensions, or one column wide.

    Example:
        >>> [natural_form("spatial", shape) for shape in ((8, 4), (8, 4, 3), (8, 4, 3, 3))]
        ['channel', 'channel', 'spatial']
    """
    size = shape[2:]
    lacks = form == "spatial" and (len(size) != 2 or size[1] == 1)
    return "channel" if lacks or math.prod(size) == 1 else form


def matrix_shape(shape: Shape, form: str) -> tuple[int, int]:
    """Return (n, m) of the matrix that ``U S V^T`` stands for in the channel or the spatial form."""
    if form == "spatial":
        n, c, high, wide = shape
        return n * wide, c * high
    return shape[0], math.prod(shape[1:])


def to_matrix(weight: Tensor, form: str) -> Tensor:
    """Return a weight as the matrix of the channel or the spatial form."""
    ordered = weight.permute(0, 3, 1, 2) if form == "spatial" else weight
    return ordered.reshape(matrix_shape(tuple(weight.shape), form))


def from_matrix(matrix: Tensor, shape: Shape, form: str) -> Tensor:
    """Return the weight of a matrix of the channel or the spatial form; the inverse of `to_matrix`."""
    if form == "spatial":
        n, c, high, wide = shape
        return matrix.reshape(n, wide, c, high).permute(0, 2, 3, 1)
    return matrix.reshape(shape)


def full_rank(shape: Shape, form: str) -> Rank:
    """Return the largest possible rank: one number, or two for Tucker-2.

    Example:
        >>> [full_rank((16, 8, 3, 3), form) for form in FORMS]
        [16, 24, (16, 8)]
    """
    return full_ranks(shape) if form == "tucker2" else min(matrix_shape(shape, form))


def parts(shape: Shape, form: str, rank: Rank) -> tuple[int, int]:
    """Count the numbers of the merged thin layers: those of the first, and those of the rest.

    Args:
        shape: Shape of the weight, outputs first.
        form: "channel", "spatial" or "tucker2".
        rank: r, or (r1, r2) for Tucker-2.

    Returns:
        Two counts (a, b): the layer stores ``a + b`` numbers, without bias, and takes ``q a + p b`` multiply-adds.

    Example:
        >>> parts((16, 8, 3, 3), "channel", 4), parts((16, 8, 3, 3), "tucker2", (4, 2))
        ((288, 64), (16, 136))
    """
    if isinstance(rank, tuple):
        (r1, r2), size = rank, math.prod(shape[2:])
        return shape[1] * r2, r1 * r2 * size + shape[0] * r1
    n, m = matrix_shape(shape, form)
    return rank * m, rank * n


def layout_of(factor: Tensor) -> torch.memory_format:
    """Return the memory format of a factor: a core of four dimensions may have been put into channels_last."""
    last = factor.dim() == 4 and factor.stride(1) == 1 < math.prod(factor.shape[2:])
    return torch.channels_last if last else torch.contiguous_format
