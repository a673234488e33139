"""Spectral norms from above: never below the norm of the operator written out as a matrix, and close to it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ironrank.certificates.convolution import Convolution
from ironrank.certificates.gram import _by_cholesky, _by_gram_iteration, gamma, spectral_norm
from ironrank.errors import IronrankError


def svd_norm(A: Tensor) -> float:
    """The reference twin: LAPACK's singular values, of numpy."""
    return float(np.linalg.svd(A.numpy(), compute_uv=False).max())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(drawn(n, n)).Q


# ---- matrices


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (40, 60), (64, 64), (300, 260), (5, 400)])
def test_a_random_matrix_from_above_and_within_a_thousandth(shape: tuple[int, int]) -> None:
    A = drawn(*shape)
    bound, norm = spectral_norm(A), svd_norm(A)
    assert norm <= bound <= norm * 1.001


@pytest.mark.parametrize("n", [2, 50, 257])
def test_flat_and_nearly_flat_spectra(n: int) -> None:
    """What well conditioned layers have, and where the Frobenius norm alone converges slowest."""
    Q = orthogonal(n)
    for low in (1.0, 0.999, 0.9):
        A = Q @ torch.diag(torch.linspace(low, 1.0, n, dtype=torch.float64)) @ Q
        assert svd_norm(A) <= spectral_norm(A) <= 1.001


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_scale_and_rank_one(scale: float) -> None:
    A = scale * torch.outer(drawn(9), drawn(5, seed=1))
    assert svd_norm(A) <= spectral_norm(A) <= svd_norm(A) * 1.001


def test_both_ways_agree_on_one_matrix() -> None:
    A = drawn(80, 90)
    G, norm = A @ A.mT, svd_norm(A)
    for found in (_by_gram_iteration(G.unsqueeze(0), 1e-6, 0.0), _by_cholesky(G, 1e-6, 0.0)):
        assert norm**2 * (1 - 1e-12) <= found <= norm**2 * (1 + 1e-4)


def test_a_batch_gives_its_largest_also_complex_and_wide() -> None:
    A = torch.view_as_complex(drawn(30, 4, 6, 2))
    largest = max(svd_norm(matrix) for matrix in A)
    assert largest <= spectral_norm(A) <= largest * 1.001
    assert spectral_norm(A.mH) == pytest.approx(spectral_norm(A), rel=1e-3)


def test_known_is_a_floor() -> None:
    assert 5.0 <= spectral_norm(torch.eye(3), known=5.0) < 5.001
    assert 1.0 <= spectral_norm(torch.eye(3), known=0.5) < 1.001


def test_zero_is_zero() -> None:
    assert spectral_norm(torch.zeros(4, 3)) == 0.0
    assert spectral_norm(torch.zeros(300, 300)) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_bound(value: float) -> None:
    with pytest.raises(IronrankError, match="not finite"):
        spectral_norm(torch.full((2, 2), value))


def test_gamma_bounds_the_rounding_of_float32_sums() -> None:
    A, B = drawn(50, 2000).float(), drawn(2000, 50, seed=1).float()
    error = ((A @ B).double() - A.double() @ B.double()).abs()
    assert (
        error <= gamma(2000, torch.finfo(torch.float32).eps / 2) * (A.abs().double() @ B.abs().double())
    ).all()
    assert gamma(10**8, torch.finfo(torch.float32).eps) == math.inf


# ---- convolutions


def written_out(op: Convolution) -> Tensor:
    """The operator as a matrix, one unit image at a time."""
    columns = math.prod((op.inputs, *op.size))
    units = torch.eye(columns, dtype=torch.float64).reshape(columns, op.inputs, *op.size)
    return op.apply(units).flatten(1).mT


def random_operator(draw: random.Random) -> Convolution | None:
    """A small convolution of any kind, or None where the image is too small for it."""
    axes, groups = draw.choice([1, 2, 2, 3]), draw.choice([1, 1, 2])
    each = [
        (draw.randint(3, 6 if axes > 1 else 20), draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 2))
        for _ in range(axes)
    ]
    size, k, stride, dilation = zip(*each, strict=True)
    padding = tuple((draw.randint(0, 2), draw.randint(0, 2)) for _ in range(axes))
    kernel = drawn(groups * draw.randint(1, 3), draw.randint(1, 3), *k, seed=draw.randint(0, 10**6))
    mode = draw.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    op = Convolution(kernel, size, stride, padding, dilation, mode, groups)
    return op if min(op.output_size) > 0 else None


@pytest.mark.parametrize("seed", range(10))
def test_no_kind_of_convolution_has_a_norm_above_its_bound(seed: int) -> None:
    draw = random.Random(seed)
    operators = [op for op in (random_operator(draw) for _ in range(12)) if op is not None]
    assert len(operators) > 6
    for op in operators:
        norm = svd_norm(written_out(op))
        assert norm <= op.norm() <= norm * 1.01 + 1e-12, op
        assert norm <= op.norm(work=0) <= norm * 4.5 + 1e-12, op


def square(kernel: Tensor, side: int, pad: int, mode: str = "zeros", stride: int = 1) -> Convolution:
    return Convolution(kernel, (side, side), (stride,) * 2, ((pad, pad),) * 2, (1, 1), mode)


@pytest.mark.parametrize(("side", "excess"), [(12, 0.04), (24, 0.01)])
def test_the_symbol_alone_is_close_on_larger_images(side: int, excess: float) -> None:
    op = square(drawn(2, 2, 3, 3), side, pad=1)
    norm = svd_norm(written_out(op))
    assert norm <= op.norm(work=0) <= norm * (1 + excess)


@pytest.mark.parametrize("stride", [1, 2])
def test_circular_convolutions_lose_nothing(stride: int) -> None:
    op = square(drawn(3, 2, 3, 3), 8, pad=1, mode="circular", stride=stride)
    norm = svd_norm(written_out(op))
    assert norm <= op.norm(work=0) <= norm * 1.001


def test_known_norms() -> None:
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert square(ones, 6, pad=1, mode="circular").norm(work=0) == pytest.approx(9, rel=1e-3)
    assert square(ones, 6, pad=0, stride=3).norm(work=0) == pytest.approx(3, rel=1e-3)  # disjoint windows
    assert square(2 * ones[..., :1, :1], 6, pad=0, stride=2).norm() == pytest.approx(2, rel=1e-3)
    replicated = square(ones[..., :1, :1], 4, pad=1, mode="replicate")  # a corner pixel is in four places
    assert replicated.norm() == pytest.approx(2, rel=1e-3)


def test_chunks_of_frequencies_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    op = square(drawn(4, 3, 3, 3), 10, pad=1)
    whole = op.norm(work=0)
    monkeypatch.setattr("ironrank.certificates.convolution._CHUNK", 100)
    assert op.norm(work=0) == pytest.approx(whole, rel=1e-3)


def test_apply_is_the_layer_of_torch() -> None:
    layer = nn.Conv2d(
        4, 6, 3, stride=2, padding=(1, 2), dilation=2, groups=2, padding_mode="reflect"
    ).double()
    op = Convolution(layer.weight.detach(), (9, 8), (2, 2), ((1, 1), (2, 2)), (2, 2), "reflect", 2)
    x = drawn(2, 4, 9, 8)
    assert layer.bias is not None
    torch.testing.assert_close(op.apply(x), layer(x).detach() - layer.bias.detach().view(-1, 1, 1))
    assert op.output_size == tuple(layer(x).shape[2:])
