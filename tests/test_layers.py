"""Factored layers: the promises that hold for every kind, geometry and form (`cases.LAYERS`)."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from cases import LAYERS, LayerCase
from ironrank.errors import IronrankError
from ironrank.layers import (
    FACTORED,
    FORMS,
    TUCKER2,
    Factored,
    FactoredConv1d,
    FactoredConv2d,
    FactoredLinear,
    Rank,
    Tucker2Conv2d,
)
from ironrank.linalg import USV, UV, orthonormality_error

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
each = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
cores = pytest.mark.parametrize("core", [True, False], ids=["core", "no-core"])
COMBINED = {
    f"{name}-{'core' if core else 'no-core'}": (case, core)
    for name, case in LAYERS.items()
    for core in (True, False)
    if core or case.form != "tucker2"  # Tucker-2 always has one
}
each_core = pytest.mark.parametrize("case, core", COMBINED.values(), ids=COMBINED)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
SOME = ["linear-wide", "conv1d-strided-reflect", "conv2d-same", "conv3d"]
some = pytest.mark.parametrize("name", SOME)
some_of_all_forms = pytest.mark.parametrize(
    "name", [*SOME, "spatial-conv2d-strided-padded", "tucker2-conv2d-same", "tucker2-conv1d-strided-reflect"]
)


def factored(
    case: LayerCase, rank: Rank | None, core: bool = True, dtype: torch.dtype = torch.float64
) -> Factored:
    """The layer nearest to the case's dense one, with factors that are neither orthonormal nor diagonal."""
    layer = case.kind.from_dense(case.make_dense(dtype), rank or case.full, core, case.form)
    if rank is not None:
        torch.manual_seed(3)
        for factor in layer.factors():
            factor.data += 0.1 * torch.randn(factor.shape, dtype=dtype)
    return layer


def composed(layer: Factored) -> torch.Tensor:
    """The dense weight, written out."""
    if layer.form == "tucker2":
        return torch.einsum("ai,ij...,bj->ab...", layer.U, layer.S, layer.V)
    matrix = layer.U @ layer.V.mT if layer.S is None else layer.U @ layer.S @ layer.V.mT
    if layer.form == "spatial":
        n, c, high, wide = layer.weight_shape
        return torch.stack([matrix.reshape(n, wide, c, high)[:, j] for j in range(wide)], -1)
    return matrix.reshape(layer.weight_shape)


def same(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype = torch.float64) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and bool(
        (a - b).abs().max() <= TOLERANCE[dtype] * max(1.0, b.abs().max().item())
    )


def test_every_kind_of_layer_has_a_case():
    pairs = {(case.dense, case.kind) for case in LAYERS.values()}
    assert pairs == set(FACTORED.items()) | set(TUCKER2.items())
    assert {case.form for case in LAYERS.values()} == set(FORMS)


@each_core
@dtypes
def test_full_rank_equals_dense(case, core, dtype):
    dense, x = case.make_dense(dtype), case.input(dtype)
    layer = factored(case, None, core, dtype)
    assert same(layer(x), dense(x), dtype)
    assert same(layer.dense(), dense.weight, dtype)
    assert layer.rank == layer.full_rank and layer.weight_shape == dense.weight.shape


@each_core
@pytest.mark.parametrize("form", ["as it chooses", "dense", "factors"])
def test_output_and_gradients_equal_those_of_the_dense_composition(case, core, form, monkeypatch):
    if form != "as it chooses":
        monkeypatch.setattr(Factored, "_dense_is_cheaper", lambda self, p, q: form == "dense")
    layer, x = factored(case, case.low, core), case.input(torch.float64).requires_grad_()
    parameters = {"weight": composed(layer)}
    parameters |= {} if layer.bias is None else {"bias": layer.bias}
    expected = functional_call(case.make_dense(torch.float64), parameters, x)
    assert same(layer(x), expected) and same(layer.dense(), parameters["weight"])
    cotangent = torch.randn_like(expected)
    wanted = [x, *layer.parameters()]
    found = torch.autograd.grad(layer(x), wanted, cotangent)
    for gradient, reference in zip(found, torch.autograd.grad(expected, wanted, cotangent), strict=True):
        assert same(gradient, reference)


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_a_linear_layer_acts_alike_on_few_and_on_many_rows(rows):
    layer, x = FactoredLinear(30, 20, rank=4, dtype=torch.float64), torch.randn(rows, 30, dtype=torch.float64)
    assert same(layer(x), nn.functional.linear(x, layer.dense(), layer.bias))


@each_core
@pytest.mark.parametrize("rank", ["one", "low", "full"])
def test_cost_is_what_can_be_counted(case, core, rank):
    layer, x = factored(case, getattr(case, rank), core), case.input(torch.float64)
    if isinstance(layer, FactoredLinear):
        x = x.reshape(-1, x.shape[-1])  # the counter does not know products of a matrix and a single vector
    dense, plain, y = case.make_dense(torch.float64), layer.deploy(), layer(x)
    p, q = layer.positions(tuple(x.shape))
    assert p == y.numel() // layer.weight_shape[0]
    cost = layer.cost(p, q)
    assert layer.cost(p) == layer.cost(p, p)
    assert cost.stored == sum(p.numel() for p in layer.parameters())
    assert cost.dense == sum(p.numel() for p in dense.parameters())
    assert cost.deployed == sum(p.numel() for p in plain.parameters())
    assert 2 * cost.macs == operations(plain, x)
    assert 2 * cost.macs_dense == operations(dense, x)


def operations(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


@each_core
@pytest.mark.parametrize("rank", ["one", "full"])
def test_the_deployed_form_is_plain_torch_and_equal(case, core, rank):
    layer, x = factored(case, getattr(case, rank), core).eval(), case.input(torch.float64)
    plain = layer.deploy()
    assert same(plain(x), layer(x))
    assert all(type(m).__module__.startswith("torch.") and not m.training for m in plain.modules())
    assert (type(plain) is case.dense) == layer.deploys_dense
    assert same(layer.deploy(dense=True)(x), layer(x)) and same(layer.deploy(dense=False)(x), layer(x))
    assert plain(x).dtype == torch.float64 and not (
        {p.data_ptr() for p in plain.parameters()} & pointers(layer)
    )


def pointers(module: nn.Module) -> set[int]:
    return {p.data_ptr() for p in module.parameters()}


@each_core
def test_the_state_dict_holds_the_factors_and_travels(case, core):
    layer, x = factored(case, case.low, core), case.input(torch.float64)
    keys = ["U", "V", *(["S"] if core else []), *(["bias"] if layer.bias is not None else [])]
    assert list(layer.state_dict()) == keys == [name for name, _ in layer.named_parameters()]
    twin = case.kind.like(case.make_dense(torch.float64), case.low, core, form=case.form)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    clone = copy.deepcopy(layer)
    assert torch.equal(clone(x), layer(x)) and not pointers(clone) & pointers(layer)
    clone.U.data.zero_()
    assert not torch.equal(clone(x), layer(x))


@each_core
def test_a_fresh_layer_is_drawn_like_the_dense_one(case, core):
    dense = case.make_dense()
    layer = case.kind.like(dense, case.full, core, form=case.form)
    bound = dense.weight[0].numel() ** -0.5
    assert layer.dense().abs().max() <= bound * (1 + 1e-4) and layer.dense().std() > bound / 8
    assert layer.bias is None or layer.bias.abs().max() <= bound
    if core:
        assert orthonormality_error(layer.U.detach()) < 1e-5 and orthonormality_error(layer.V.detach()) < 1e-5
    else:
        assert same(layer.U.mT @ layer.U, layer.V.mT @ layer.V, torch.float32), "shared evenly"


@some_of_all_forms
def test_layers_keep_type_and_mode_of_the_dense_one(name):
    case = LAYERS[name]
    dense = case.make_dense(torch.float64).eval()
    layer = case.kind.from_dense(dense, case.one, form=case.form)
    assert not layer.training and all(p.dtype == torch.float64 for p in layer.parameters())
    assert layer.bias is None or torch.equal(layer.bias, dense.bias)
    assert f"rank={case.one}" in repr(layer)


# ---- new factors


@some
@cores
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factors_of_another_rank_keep_the_parameters(name, core, rank):
    layer, x = factored(LAYERS[name], 3, core), LAYERS[name].input(torch.float64)
    before = dict(layer.named_parameters())
    n, m = layer.U.shape[0], layer.V.shape[0]
    U, S, V = (torch.randn(shape, dtype=torch.float64) for shape in ((n, rank), (rank, rank), (m, rank)))
    layer.set_factors(USV(U, S, V) if core else UV(U, V))
    assert layer.rank == rank
    assert all(p is before[key] for key, p in layer.named_parameters())
    assert same(layer.matrix(), U @ S @ V.mT if core else U @ V.mT)
    layer(x).sum().backward()
    assert layer.U.grad.shape == (n, rank) and layer.V.grad.shape == (m, rank)


def test_factors_that_do_not_fit_are_refused():
    layer, bare = FactoredLinear(6, 4, 2), FactoredLinear(6, 4, 2, core=False)
    before = layer.dense()
    wrong = {
        "takes USV": (layer, UV(torch.ones(4, 2), torch.ones(6, 2))),
        "without takes UV": (bare, USV(torch.ones(4, 2), torch.eye(2), torch.ones(6, 2))),
        r"V of shape \(4, 2\): expected \(6, 2\)": (
            layer,
            USV(torch.ones(4, 2), torch.eye(2), torch.ones(4, 2)),
        ),
        r"S of shape \(3, 3\): expected \(2, 2\)": (
            layer,
            USV(torch.ones(4, 2), torch.eye(3), torch.ones(6, 2)),
        ),
    }
    for words, (target, factors) in wrong.items():
        with pytest.raises(IronrankError, match=words):
            target.set_factors(factors)
    assert torch.equal(layer.dense(), before)


# DEFECT layers/factored.py, set_factors: a rank above min(n, m) is accepted, though the constructor refuses it; the
# next retraction or load then fails far from the cause.
def test_factors_of_an_impossible_rank_are_refused():
    with pytest.raises(IronrankError, match="allowed is 1 to 4"):
        FactoredLinear(6, 4, 2).set_factors(USV(torch.ones(4, 5), torch.eye(5), torch.ones(6, 5)))


# DEFECT layers/factored.py, set_factors: keeps the caller's tensors where type and device fit, so that two layers given
# the same factors are tied, and a step in place changes what the caller holds. Mend: .to(held, copy=True).
def test_new_factors_are_copied():
    layer, other = FactoredLinear(6, 4, 2), FactoredLinear(6, 4, 2)
    other.set_factors(layer.factors())
    before = layer.dense()
    other.U.data.zero_()
    assert torch.equal(layer.dense(), before)


@cores
def test_set_weight_is_the_truncated_svd(core):
    torch.manual_seed(0)
    layer, W = FactoredConv2d(3, 6, 2, rank=4, core=core), torch.randn(6, 3, 2, 2)
    layer.set_weight(W)
    tail = torch.linalg.svdvals(W.flatten(1))[4:].norm()
    assert (layer.dense() - W).norm().item() == pytest.approx(tail.item(), rel=1e-5)


# ---- the door


@pytest.mark.parametrize("rank", [0, 5, -1])
def test_an_impossible_rank_is_refused(rank):
    for make in (lambda: FactoredLinear(6, 4, rank), lambda: FactoredConv2d(3, 4, 3, rank)):
        with pytest.raises(IronrankError, match=f"rank {rank} for a 4 x .* allowed is 1 to 4"):
            make()


def test_grouped_convolutions_are_refused():
    with pytest.raises(IronrankError, match="groups=2: a factored convolution needs groups=1"):
        FactoredConv2d(4, 4, 3, 1, groups=2)
    with pytest.raises(IronrankError, match="groups=4"):
        FactoredConv1d.from_conv(nn.Conv1d(4, 4, 3, groups=4), 1)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)  # fmt: skip
def test_the_output_size_is_the_dense_layers(size, kernel, stride, padding, dilation, mode):
    dense = nn.Conv2d(2, 3, kernel, stride, padding, dilation, padding_mode=mode)
    layer, x = FactoredConv2d.from_conv(dense, 2), torch.randn(1, 2, *size)
    assert layer.output_size(size) == tuple(dense(x).shape[2:]) == tuple(layer(x).shape[2:])


# ---- surroundings


@each_core
def test_layers_run_in_bfloat16_and_channels_last(case, core):
    layer, x = factored(case, case.low, core, torch.float32), case.input()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - layer(x)).abs().max() <= 0.05 * layer(x).abs().max()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    if x.dim() == 4 and case.kind in (FactoredConv2d, Tucker2Conv2d):
        last = {"memory_format": torch.channels_last}
        moved = copy.deepcopy(layer).to(**last)(x.to(**last))
        assert same(moved, layer(x), torch.float32)
        if layer.padding_mode != "circular":  # torch pads this one contiguously
            assert moved.is_contiguous(**last)


def test_a_layer_can_be_made_on_no_device():
    layer = FactoredConv2d(3, 4, 3, 2, device="meta")
    assert layer.U.is_meta and layer.cost(10).stored == 2 * (4 + 27) + 4 + 4
    with torch.device("meta"):
        assert FactoredLinear(3, 4, 2).V.is_meta


@some_of_all_forms
def test_layers_and_their_deployed_form_export(name):
    layer, x = factored(LAYERS[name], LAYERS[name].low, dtype=torch.float32).eval(), LAYERS[name].input()
    exported = torch.export.export(layer, (x,))
    assert same(exported.module()(x), layer(x), torch.float32)


def test_the_deployed_form_exports_with_any_batch_size():
    layer = FactoredLinear(30, 30, 2).eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    exported = torch.export.export(layer.deploy(), (torch.randn(4, 30),), dynamic_shapes=({0: batch},))
    x = torch.randn(300, 30)
    assert same(exported.module()(x), layer(x), torch.float32)


@pytest.mark.slow
@some_of_all_forms
def test_layers_compile(name):
    layer, x = factored(LAYERS[name], LAYERS[name].low, dtype=torch.float32), LAYERS[name].input()
    assert same(torch.compile(layer)(x), layer(x), torch.float32)
