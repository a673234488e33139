"""Spread of a spectrum: its bound on the condition number, its gradient, and what leaves it alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ironrank.linalg import (
    condition_bound,
    condition_number,
    singular_values,
    spread,
    spread_gradient,
    tail_rank,
)

whole = torch.float64
SHAPES = {
    "square": (5, 5),
    "tall": (9, 4),
    "wide": (3, 8),
    "one": (1, 1),
    "row": (1, 6),
    "stack": (2, 3, 4, 4),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=whole)


def rotated(s: Tensor, n: int, m: int, seed: int) -> Tensor:
    """A matrix (n, m) of given singular values."""
    r = len(s)
    P, Q = (torch.linalg.qr(draw(k, r, seed=seed + 1000 * i))[0] for i, k in enumerate((n, m)))
    return P @ torch.diag(s) @ Q.mT


def test_known_answers():
    S = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=whole))  # squares 4, 1, 1 about their mean 2
    assert spread(S).item() == pytest.approx(6**0.5)
    torch.testing.assert_close(
        spread_gradient(S), torch.diag(S.diagonal() * torch.tensor([4.0, -2, -2]) / 6**0.5)
    )
    assert condition_bound(S).item() == pytest.approx(torch.tensor(6 / 2).sqrt().exp().item())


@shapes
def test_it_is_the_variance_of_the_squared_singular_values(shape):
    S = draw(*shape)
    squares = singular_values(S).square()
    expected = squares.var(-1, unbiased=False) * min(shape[-2:])
    torch.testing.assert_close(spread(S).square(), expected, rtol=1e-10, atol=1e-12)


def test_the_condition_number_is_bounded_over_many_matrices():
    """Proposition 2, on square, tall and wide matrices from well to badly conditioned."""
    ratios = []
    for seed in range(1000):
        r = 2 + seed % 7
        n, m = r + seed % 4, r + seed % 3
        s = torch.rand(r, generator=torch.Generator().manual_seed(seed), dtype=whole) + 10.0 ** (
            -(seed % 5) / 2
        )
        S = rotated(s, n, m, seed) if seed % 2 else draw(n, m, seed=seed)
        bound = condition_bound(S).log()
        ratios.append((condition_number(S).log() / bound).item())
    assert max(ratios) <= 1 + 1e-9
    assert max(ratios) > 0.9, "the bound is nearly met somewhere: it is put to the test"


def test_the_bound_is_met_to_first_order_by_two_values():
    S = torch.diag(torch.tensor([1 + 1e-5, 1.0], dtype=whole))
    assert (condition_number(S).log() / condition_bound(S).log()).item() == pytest.approx(1, abs=1e-4)


def test_a_singular_matrix_has_no_bound():
    assert condition_bound(torch.diag(torch.tensor([1.0, 0.0], dtype=whole))) == torch.inf


@shapes
def test_the_gradient_agrees_with_finite_differences(shape):
    S = draw(*shape, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda S: spread(S).sum(), S, eps=1e-6, atol=1e-7)
    (G,) = torch.autograd.grad(spread(S).sum(), S)
    torch.testing.assert_close(spread_gradient(S.detach()), G, rtol=1e-10, atol=1e-12)


@shapes
def test_the_gradient_along_the_matrix_is_twice_the_spread(shape):
    S = draw(*shape, seed=4)
    torch.testing.assert_close((spread_gradient(S) * S).sum((-2, -1)), 2 * spread(S), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_orthonormal_factors_change_nothing(seed):
    S = draw(4, 4, seed=seed)
    U, V = (torch.linalg.qr(draw(n, 4, seed=seed + n))[0] for n in (9, 7))
    P, Q = (torch.linalg.qr(draw(4, 4, seed=seed + 10 * k))[0] for k in (1, 2))
    torch.testing.assert_close(spread(P @ S @ Q), spread(S), rtol=1e-12, atol=0)
    torch.testing.assert_close(spread_gradient(P @ S @ Q), P @ spread_gradient(S) @ Q, rtol=1e-9, atol=1e-12)
    leaf = [factor.clone().requires_grad_() for factor in (U, S, V)]
    # on bases that stay orthonormal: the tangent part of their gradients vanishes
    W = leaf[0] @ leaf[1] @ leaf[2].mT
    squares = torch.linalg.svdvals(W)[:4].square()
    gU, _, gV = torch.autograd.grad(squares.var(unbiased=False).mul(4).sqrt(), leaf)
    for basis, gradient in ((U, gU), (V, gV)):
        assert (gradient - basis @ (basis.mT @ gradient)).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [whole, torch.float32])
@pytest.mark.parametrize(
    "S", [torch.eye(4), torch.zeros(3, 3), torch.linalg.qr(draw(5, 5))[0], torch.ones(1, 4)]
)
def test_equal_singular_values_have_no_spread_and_no_gradient(S, dtype):
    S = S.to(dtype).clone().requires_grad_()
    value = spread(S)
    value.backward()
    assert (
        value == 0 and S.grad is not None and (S.grad == 0).all() and (spread_gradient(S.detach()) == 0).all()
    )


def test_half_precision_surroundings_do_not_reach_it():
    S = draw(6, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = spread(S)
    assert inside.dtype == torch.float32 and inside == spread(S)


# ---- the rank that a tolerance leaves


def test_the_tail_stays_within_the_tolerance_and_one_rank_less_would_not():
    for seed in range(200):
        s = draw(1 + seed % 9, seed=seed).abs().sort(descending=True).values
        for tolerance in (0.0, 0.01, 0.1, 0.5, 0.99):
            r = tail_rank(s, tolerance)
            assert s[r:].norm() <= tolerance * s.norm() * (1 + 1e-12)
            assert r == 1 or s[r - 1 :].norm() > tolerance * s.norm() * (1 - 1e-12)


def test_exact_zeros_are_dropped():
    assert tail_rank(torch.tensor([2.0, 1.0, 0.0, 0.0]), 0.0) == 2
    assert tail_rank(torch.zeros(3), 0.1) == 1
