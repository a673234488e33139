"""Projections: low rank by Gram matrices, and Tucker-2; known answers, slow twins in float64, bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.linalg import (
    UV,
    Tucker2,
    channel_spectra,
    check_ranks,
    clamp,
    condition_number,
    feasible_ranks,
    full_ranks,
    hooi,
    hosvd,
    leading,
    low_rank,
    nearest_orthogonal,
    orthonormality_error,
    side_by_side,
    singular_values,
)
from ironrank.linalg.projection import gram

whole, single = torch.float64, torch.float32
dtypes = pytest.mark.parametrize("dtype", [whole, single], ids=["float64", "float32"])
KERNELS = {
    "2d": ((8, 6, 3, 3), (4, 3)),
    "1d": ((5, 7, 4), (3, 5)),
    "3d": ((4, 6, 2, 1, 2), (2, 3)),
    "pointwise": ((6, 5, 1, 1), (3, 3)),
    "matrix": ((6, 5), (3, 3)),
    "more-outputs-than-inputs-hold": ((30, 2, 3), (5, 2)),
    "more-inputs-than-outputs-hold": ((2, 30, 3), (2, 5)),
    "rank-one": ((6, 5, 3, 3), (1, 1)),
}
kernels = pytest.mark.parametrize("shape, ranks", KERNELS.values(), ids=KERNELS)
few = settings(derandomize=True, deadline=None, max_examples=40)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = whole) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=whole).to(dtype)


def planted(shape: tuple[int, ...], ranks: tuple[int, int], dtype: torch.dtype = whole) -> Tensor:
    (n, c, *k), (r1, r2) = shape, ranks
    return Tucker2(draw(n, r1, seed=1), draw(r1, r2, *k, seed=2), draw(c, r2, seed=3)).dense().to(dtype)


def matrix(n: int, m: int, decay: float, dtype: torch.dtype = single) -> Tensor:
    """A matrix with singular values 1, 2^-decay, 3^-decay, ..."""
    k = min(n, m)
    P, Q = (torch.linalg.qr(draw(size, k, seed=size))[0] for size in (n, m))
    return (P * torch.arange(1, k + 1, dtype=whole) ** -decay @ Q.mT).to(dtype)


def error(weight: Tensor, factors: Tucker2 | UV) -> float:
    """Norm of what is left, in float64."""
    return (weight.double() - type(factors)(*(f.double() for f in factors)).dense()).norm().item()


# ---- low rank


@pytest.mark.parametrize("n, m", [(40, 300), (300, 40), (30, 30), (1, 9), (9, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_low_rank_is_the_truncated_svd(n, m, decay, share):
    W, r = matrix(n, m, decay), max(1, round(share * min(n, m)))
    best = torch.linalg.svdvals(W.double())[r:].norm().item()
    factors = low_rank(W, r)
    assert factors.U.shape == (n, r) and factors.V.shape == (m, r) and factors.U.dtype == single
    assert orthonormality_error(factors.U if n <= m else factors.V) < 1e-5
    assert error(W, factors) <= best * (1 + 1e-6) + 1e-6 * W.norm().item()
    if share < 1:  # a relative bound, and below any absolute one where the spectrum is steep
        assert error(W, factors) <= best * (1 + 1e-6)


@dtypes
def test_low_rank_meets_a_matrix_of_that_rank_also_an_ill_conditioned_one(dtype):
    for cond in (1.0, 1e3):
        U, V = draw(40, 5, seed=1, dtype=dtype), draw(70, 5, seed=2, dtype=dtype)
        W = U * torch.logspace(0, -math.log10(cond), 5, dtype=dtype) @ V.mT
        lost = cond if dtype == whole else 1.0  # in float32 the Gram matrix of such a W is formed in float64
        assert error(W, low_rank(W, 5)) <= 40 * lost * torch.finfo(dtype).eps * W.norm().item()


def test_low_rank_works_on_stacks_and_on_zeros_and_under_autocast():
    W = torch.stack([matrix(8, 12, 0.5), matrix(8, 12, 2.0)])
    whole_stack = low_rank(W, 3)
    for k in range(2):
        assert torch.allclose(whole_stack.dense()[k], low_rank(W[k], 3).dense(), atol=1e-5)
    assert not low_rank(torch.zeros(4, 6), 2).dense().any()
    with torch.autocast("cpu", torch.bfloat16):
        inside = low_rank(W[0], 3)
        assert low_rank(W[0].bfloat16(), 3).U.dtype == single
    assert torch.equal(inside.V, low_rank(W[0], 3).V)


@pytest.mark.parametrize("n, m", [(40, 300), (300, 40)])
def test_a_warm_low_rank_is_no_worse_than_the_best_for_the_old_factor_and_near_the_best(n, m):
    W, r = matrix(n, m, 0.5, whole), 10
    old = low_rank(W, r)
    W = W + 0.01 * W.norm() / W.numel() ** 0.5 * draw(n, m, seed=5)
    best, warm = torch.linalg.svdvals(W)[r:].norm().item(), low_rank(W, r, start=old)
    fixed = torch.linalg.qr(old.V if n <= m else old.U)[0]
    kept = W @ fixed @ fixed.mT if n <= m else fixed @ fixed.mT @ W
    assert best <= error(W, warm) <= (W - kept).norm().item()
    assert error(W, warm) <= best * (1 + 1e-4)
    again = low_rank(W, r, start=low_rank(W, r, start=warm))
    assert error(W, again) < error(W, warm)


def test_starts_and_ranks_that_do_not_fit_are_refused():
    W = torch.ones(4, 6)
    for rank in (0, 5):
        with pytest.raises(IronrankError, match="allowed is 1 to 4"):
            low_rank(W, rank)
    with pytest.raises(IronrankError, match="a start has the rank that is asked for"):
        low_rank(W, 2, start=low_rank(W, 3))


@pytest.mark.parametrize("n, m", [(9, 30), (30, 9)])
def test_leading_vectors_span_the_leading_space(n, m):
    W = matrix(n, m, 1.0, whole)
    P = torch.linalg.svd(W, full_matrices=False)[0][:, :4]
    B = leading(W, 4)
    assert torch.allclose(B @ B.mT, P @ P.mT, atol=1e-12) and torch.allclose(
        (B.mT @ P).abs(), torch.eye(4).double()
    )


# ---- Tucker-2


def test_dense_is_the_sum_over_both_ranks():
    U, S, V = draw(3, 2, seed=1), draw(2, 4, 2, 2, seed=2), draw(5, 4, seed=3)
    expected = np.einsum("ai,ijxy,bj->abxy", *(t.numpy() for t in (U, S, V)))
    assert np.abs(Tucker2(U, S, V).dense().numpy() - expected).max() < 1e-14


@kernels
@dtypes
@pytest.mark.parametrize("project", [hosvd, hooi])
def test_a_planted_kernel_is_recovered(shape, ranks, dtype, project):
    W = planted(shape, ranks, dtype)
    found = project(W, ranks)
    assert found.S.shape == (*ranks, *shape[2:]) and found.U.dtype == dtype
    assert max(orthonormality_error(found.U), orthonormality_error(found.V)) < 20 * torch.finfo(dtype).eps
    assert error(W, found) <= 20 * torch.finfo(dtype).eps * W.norm().item()


@kernels
@dtypes
@pytest.mark.parametrize("project", [hosvd, hooi])
def test_full_ranks_change_nothing(shape, ranks, dtype, project):
    W = draw(*shape, dtype=dtype)
    assert error(W, project(W, full_ranks(shape))) <= 20 * torch.finfo(dtype).eps * W.norm().item()


def slow_hooi(weight: np.ndarray, ranks: tuple[int, int], sweeps: int) -> tuple[np.ndarray, float]:
    """The twin: HOOI by full SVDs of unfoldings written out with einsum; the kernel it gives and its error."""
    n, c = weight.shape[:2]
    W = weight.reshape(n, c, -1)

    def vectors(tensor, mode, rank):
        return np.linalg.svd(np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1))[0][:, :rank]

    U, V = vectors(W, 0, ranks[0]), vectors(W, 1, ranks[1])
    for _ in range(sweeps):
        U = vectors(np.einsum("abk,bj->ajk", W, V), 0, ranks[0])
        V = vectors(np.einsum("abk,ai->ibk", W, U), 1, ranks[1])
    kernel = np.einsum("abk,ax,bz->xzk", W, U, V)
    kernel = np.einsum("xzk,ax,bz->abk", kernel, U, V)
    return kernel.reshape(weight.shape), float(np.linalg.norm(W - kernel))


@kernels
@pytest.mark.parametrize("sweeps", [0, 1, 2, 5])
def test_projections_agree_with_the_twin(shape, ranks, sweeps):
    W = draw(*shape)
    kernel, left = slow_hooi(W.numpy(), ranks, sweeps)
    found = hooi(W, ranks, sweeps=sweeps) if sweeps else hosvd(W, ranks)
    assert np.abs(found.dense().numpy() - kernel).max() < 1e-10
    in_float32 = hooi(W.float(), ranks, sweeps=sweeps) if sweeps else hosvd(W.float(), ranks)
    assert error(W, in_float32) <= left * (1 + 1e-6)


@few
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_hooi_is_never_worse_than_hosvd_and_hosvd_obeys_its_bound(shape, shares, seed):
    full, W = full_ranks(shape), draw(*shape, seed=seed)
    ranks = feasible_ranks(
        shape, tuple(1 + int(s * (most - 1)) for s, most in zip(shares, full, strict=True))
    )
    cold, errors = hosvd(W, ranks), [error(W, hooi(W, ranks, sweeps=sweeps)) for sweeps in (1, 2, 4)]
    slack = 1e-12 * W.norm().item()
    assert errors[0] <= error(W, cold) + slack
    assert errors[1] <= errors[0] + slack and errors[2] <= errors[1] + slack
    dropped = sum(s[r:].square().sum().item() for s, r in zip(channel_spectra(W), ranks, strict=True))
    assert error(W, cold) ** 2 <= dropped * (1 + 1e-10) + slack


def test_a_warm_start_is_never_worse_than_what_it_starts_from_and_near_convergence():
    W, ranks = draw(24, 20, 3, 3), (10, 8)
    old = hooi(W, ranks, sweeps=20)
    W = W + 0.01 * draw(24, 20, 3, 3, seed=1)
    stale = Tucker2(old.U, torch.einsum("ab...,ai,bj->ij...", W, old.U, old.V), old.V)
    warm, converged = hooi(W, ranks, start=old, sweeps=1), hooi(W, ranks, sweeps=40)
    assert error(W, warm) <= error(W, stale)
    assert error(W, warm) <= error(W, hosvd(W, ranks))
    assert error(W, warm) <= error(W, converged) * (1 + 1e-4)
    moved_on = hooi(W, ranks, start=old, sweeps=1, power=True)
    assert error(W, moved_on) <= error(W, stale) and error(W, moved_on) <= error(W, hosvd(W, ranks))
    assert error(W, moved_on) <= error(W, converged) * (1 + 1e-4)
    moved = Tucker2(2 * old.U, old.S, 3 * old.V)  # a trained form need not be orthonormal
    assert torch.allclose(hooi(W, ranks, start=moved, sweeps=1).dense(), warm.dense(), atol=1e-10)
    found = hooi(W, ranks, start=moved, sweeps=1, power=True).dense()
    assert torch.allclose(found, moved_on.dense(), atol=1e-10)


@few
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_block_power_steps_never_raise_the_error(shape, shares, seed):
    full, W = full_ranks(shape), draw(*shape, seed=seed)
    ranks = feasible_ranks(
        shape, tuple(1 + int(s * (most - 1)) for s, most in zip(shares, full, strict=True))
    )
    start = hosvd(draw(*shape, seed=seed + 1), ranks)  # of another kernel
    errors = [error(W, hooi(W, ranks, start, sweeps=sweeps, power=True)) for sweeps in (1, 2, 5)]
    best_core = torch.einsum("ab...,ai,bj->ij...", W, start.U, start.V)
    assert sorted(errors, reverse=True) == pytest.approx(errors, rel=1e-9)
    assert errors[0] <= error(W, Tucker2(start.U, best_core, start.V)) * (1 + 1e-9)


@pytest.mark.parametrize("n", [40, 256, 301])
def test_a_gram_matrix_is_whole_also_where_only_half_of_it_is_multiplied(n):
    W = draw(n, 50)
    assert torch.allclose(gram(W), W @ W.mT)


def test_spectra_are_those_of_the_unfoldings():
    W = draw(12, 3, 2, 2).float()
    first, second = channel_spectra(W)
    assert torch.allclose(first, singular_values(W.flatten(1))) and len(first) == 12
    assert torch.allclose(second, singular_values(W.transpose(0, 1).flatten(1))) and len(second) == 3
    assert [len(s) for s in channel_spectra(draw(12, 2, 2))] == [4, 2]


def test_many_layers_are_projected_side_by_side():
    weights = [draw(8, 6, 3, 3, seed=k) for k in range(3)]
    found = side_by_side(lambda W: hooi(W, (3, 3)), weights)
    assert all(torch.equal(f.dense(), hooi(W, (3, 3)).dense()) for f, W in zip(found, weights, strict=True))


def test_ranks_and_starts_that_are_not_possible_are_refused():
    W = draw(8, 4, 3)
    for ranks in ((0, 1), (9, 1), (2, 5), (2, 0)):
        with pytest.raises(IronrankError, match="allowed is 1 to 8 and 1 to 4"):
            hooi(W, ranks)
    with pytest.raises(IronrankError, match=r"allowed is r1 <= 3 r2 and r2 <= 3 r1; take \(3, 1\)"):
        hosvd(W, (8, 1))
    with pytest.raises(IronrankError, match="a start has the ranks that are asked for"):
        hooi(W, (2, 2), start=hosvd(W, (2, 3)))
    with pytest.raises(IronrankError, match="sweeps=0"):
        hooi(W, (2, 2), sweeps=0)
    with pytest.raises(IronrankError, match="pass one, such as"):
        hooi(W, (2, 2), power=True)


@few
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), ranks=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_feasible_ranks_pass_the_check(shape, ranks):
    check_ranks(shape, full_ranks(shape))
    within = tuple(min(r, most) for r, most in zip(ranks, full_ranks(shape), strict=True))
    check_ranks(shape, feasible_ranks(shape, within))


# ---- the spectrum of wide and tall cores


@pytest.mark.parametrize("shape", [(3, 12), (12, 3), (1, 5)])
@pytest.mark.parametrize("centre", ["mean", "rms"])
@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5])
def test_the_clamp_works_on_unfolded_cores(shape, centre, tau):
    S = draw(*shape)
    P, s, Qt = torch.linalg.svd(S, full_matrices=False)
    c = s.mean() if centre == "mean" else s.square().mean().sqrt()
    e = tau * c / (2 + tau)
    expected = (P * s.clamp(c - e, c + e)) @ Qt
    assert torch.allclose(clamp(S, tau, centre), expected, atol=1e-10)
    assert condition_number(clamp(S.float(), tau, centre)) <= 1 + tau + 1e-5
    if tau == 0:
        assert torch.allclose(nearest_orthogonal(S, centre), expected, atol=1e-10)
