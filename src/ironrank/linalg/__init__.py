"""Geometry of low-rank matrices and kernels: pure functions on tensors, in float32 or better even under autocast."""

from ironrank.linalg.factors import USV, UV
from ironrank.linalg.parallel import side_by_side
from ironrank.linalg.power import dominant, power_step, stretch
from ironrank.linalg.projection import leading, low_rank
from ironrank.linalg.sign import newton_schulz, orthogonal_factor
from ironrank.linalg.spectrum import (
    clamp,
    condition_number,
    nearest_orthogonal,
    singular_values,
    stable_rank,
    tail_rank,
)
from ironrank.linalg.spread import condition_bound, spread, spread_gradient
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
from ironrank.linalg.tucker import (
    Tucker2,
    channel_spectra,
    check_ranks,
    feasible_ranks,
    full_ranks,
    hooi,
    hosvd,
)

__all__ = [
    "UV",
    "USV",
    "Tucker2",
    "truncated_svd",
    "low_rank",
    "leading",
    "dominant",
    "power_step",
    "stretch",
    "hosvd",
    "hooi",
    "channel_spectra",
    "full_ranks",
    "feasible_ranks",
    "check_ranks",
    "horizontal",
    "normal",
    "tangent",
    "retract_qr",
    "retract_cholesky",
    "retract_polar",
    "orthonormality_error",
    "clamp",
    "nearest_orthogonal",
    "orthogonal_factor",
    "newton_schulz",
    "condition_number",
    "singular_values",
    "stable_rank",
    "tail_rank",
    "spread",
    "spread_gradient",
    "condition_bound",
    "side_by_side",
]
