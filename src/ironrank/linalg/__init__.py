"""Geometry of low-rank matrices: pure functions on tensors, batched, in float32 or better even under autocast."""

from ironrank.linalg.factors import USV, UV
from ironrank.linalg.parallel import side_by_side
from ironrank.linalg.spectrum import (
    clamp,
    condition_number,
    nearest_orthogonal,
    singular_values,
    stable_rank,
)
from ironrank.linalg.stiefel import (
    horizontal,
    normal,
    orthonormality_error,
    retract_cholesky,
    retract_polar,
    retract_qr,
    tangent,
)
from ironrank.linalg.svd import truncated_svd

__all__ = [
    "UV",
    "USV",
    "truncated_svd",
    "horizontal",
    "normal",
    "tangent",
    "retract_qr",
    "retract_cholesky",
    "retract_polar",
    "orthonormality_error",
    "clamp",
    "nearest_orthogonal",
    "condition_number",
    "singular_values",
    "stable_rank",
    "side_by_side",
]
