"""A layer written in other bases: what truncation leaves, and the optimizer's moments, which go along."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironrank.layers import factored_kind
from ironrank.linalg import hosvd, orthonormality_error, truncated_svd
from ironrank.methods.moments import carry, changed_squares
from ironrank.methods.turning import decompose, rebase, truncate
from ironrank.surgery import factorize

whole = torch.float64


def layer_of(form: str = "channel", rank=(4, 3)):
    torch.manual_seed(0)
    if form == "channel":
        return factorize(nn.Sequential(nn.Linear(9, 8, bias=False)).double(), ranks={"0": rank[0]})[0]
    dense = nn.Conv2d(5, 6, (3, 2), bias=False).double()
    return factored_kind(nn.Conv2d, form).from_dense(dense, rank, form=form)


def test_the_truncated_net_is_the_truncated_svd_of_the_core_step():
    """What the published code gets wrong: singular vectors of the core are taken by rows."""
    layer = factorize(nn.Sequential(nn.Linear(9, 8)).double(), ranks={"0": 6})[0]
    with torch.no_grad():
        layer.S.add_(0.3 * torch.randn(6, 6, dtype=whole))
    expected = truncated_svd(layer.matrix().detach(), 3).dense()
    truncate(layer, (3, 3))
    torch.testing.assert_close(layer.matrix().detach(), expected)
    assert torch.equal(layer.S.detach(), torch.diag(layer.S.detach().diagonal()))


def test_tucker_2_is_truncated_by_hosvd_of_its_core():
    layer = layer_of("tucker2", (5, 4))
    with torch.no_grad():
        layer.S.add_(0.3 * torch.randn(layer.S.shape, dtype=whole))
    kernel = layer.dense().detach()
    pieces = decompose(layer)
    truncate(layer, (3, 2), pieces)
    torch.testing.assert_close(layer.dense().detach(), hosvd(kernel, (3, 2)).dense())
    assert max(orthonormality_error(layer.U.detach()), orthonormality_error(layer.V.detach())) < 1e-12
    dropped = (layer.dense().detach() - kernel).square().sum()
    first, second = pieces.spectra
    torch.testing.assert_close(pieces.C[:3, :2].square().sum() + dropped, kernel.square().sum())
    assert dropped <= first[3:].square().sum() + second[2:].square().sum() + 1e-12


@pytest.mark.parametrize("form", ["channel", "tucker2"])
def test_bases_that_span_more_leave_the_weight_as_it_is(form):
    layer = layer_of(form)
    before = layer.dense().detach()
    grown = [
        torch.linalg.qr(torch.cat([b.detach(), torch.randn(len(b), 2, dtype=whole)], 1))[0]
        for b in (layer.U, layer.V)
    ]
    rebase(layer, (grown[0], grown[1]))
    torch.testing.assert_close(layer.dense().detach(), before)
    assert layer.U.shape[1] == 6 and layer.U.grad is None


def test_moments_of_a_tucker_2_core_are_projected_with_the_bases():
    layer = layer_of("tucker2")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(2, 5, 6, 6, dtype=whole)).square().sum().backward()
    optimizer.step()
    kind = type(layer.factors())
    full = kind(layer.U, optimizer.state[layer.S]["momentum_buffer"], layer.V).dense().detach()
    U, V = (torch.linalg.qr(torch.randn(n, r, dtype=whole))[0] for n, r in ((6, 5), (5, 2)))
    rebase(layer, (U, V), optimizer)
    expected = torch.einsum("ncij,na,cb->abij", full, U, V)
    found = optimizer.state[layer.S]["momentum_buffer"]
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous() and optimizer.state[layer.U]["momentum_buffer"].shape == (6, 5)


# ---- moments through a change of basis


def test_moments_are_projected_with_the_bases():
    torch.manual_seed(0)
    layer = factorize(nn.Sequential(nn.Linear(9, 8, bias=False)).double(), ranks={"0": 4})[0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(5, 9, dtype=whole)).square().sum().backward()
    optimizer.step()
    before = {name: optimizer.state[getattr(layer, name)]["momentum_buffer"].clone() for name in "USV"}
    full = layer.U.detach() @ before["S"] @ layer.V.detach().mT
    K, L = before["U"] @ layer.V.detach().mT, before["V"] @ layer.U.detach().mT
    U, V = (torch.linalg.qr(torch.randn(n, 6, dtype=whole))[0] for n in (8, 9))
    rebase(layer, (U, V), optimizer, crossed=True)
    after = {name: optimizer.state[getattr(layer, name)]["momentum_buffer"] for name in "USV"}
    torch.testing.assert_close(after["S"], U.mT @ full @ V)
    torch.testing.assert_close(after["U"], K @ V)
    torch.testing.assert_close(after["V"], L @ U)
    assert all(after[name].shape == getattr(layer, name).shape for name in "USV")
    pieces = decompose(layer)
    full = layer.U.detach() @ after["S"] @ layer.V.detach().mT
    truncate(layer, (3, 3), pieces, optimizer)
    torch.testing.assert_close(
        optimizer.state[layer.S]["momentum_buffer"], layer.U.detach().mT @ full @ layer.V.detach()
    )


def test_second_moments_are_variances_in_the_new_coordinates():
    """Against the variance of many independent gradients that are themselves written in the new coordinates."""
    torch.manual_seed(0)
    v = torch.rand(3, 4, dtype=whole)
    M, N = (torch.linalg.qr(torch.randn(k, k, dtype=whole))[0] for k in (3, 4))
    many = torch.randn(40000, 3, 4, dtype=whole) * v.sqrt()
    torch.testing.assert_close(
        changed_squares(v, M, N), (M @ many @ N.mT).square().mean(0), rtol=0.05, atol=0.01
    )
    flip = torch.tensor([[0.0, -1, 0], [1, 0, 0]], dtype=whole)  # permuted, one sign changed, one dropped
    torch.testing.assert_close(changed_squares(v, flip), v[[1, 0]])
    grown = changed_squares(v, torch.eye(5, 3, dtype=whole))
    torch.testing.assert_close(grown[:3], v)
    torch.testing.assert_close(grown[3:], v.mean().expand(2, 4)), "new directions take the mean"


def test_an_optimizer_without_moments_is_left_alone():
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    carry(optimizer, p, torch.ones(2, 3))
    assert not optimizer.state
