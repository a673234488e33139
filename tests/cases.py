"""What the generic tests loop over: one entry for every kind of layer, attack, objective and method.

A member without an entry fails `test_every_..._has_a_case`. Run as a program, this file is one of several processes
that train together (see `test_methods`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ironrank.attacks import (
    APGD,
    FGSM,
    FGSMRS,
    FMN,
    NFGSM,
    PGD,
    Attack,
    LowRankPGD,
    Noise,
    SpectralAttack,
    Square,
)
from ironrank.data import MNIST, DataSpec
from ironrank.layers import FORMS, FactoredLinear, Rank, factored_kind, full_rank, narrowed
from ironrank.linalg import condition_number, feasible_ranks, orthonormality_error
from ironrank.methods import (
    CSTAR,
    DLRT,
    SVD,
    UV,
    Cayley,
    CondLR,
    Dense,
    Method,
    Projected,
    RobustDLRT,
    SoftOrthogonal,
    Spectral,
)
from ironrank.methods.admm_filters import ADMMFilters
from ironrank.methods.magnitude import Magnitude
from ironrank.methods.scores import Scores
from ironrank.methods.svd_prune import SVDPrune
from ironrank.models import LeNet5
from ironrank.objectives import Clean, Distill, Free, Madry, Mart, Memory, Objective, Trades
from ironrank.optim import SGD, Optimizer
from ironrank.ranks import parse_budget
from ironrank.surgery import deploy, factored_layers, layers_with_core
from ironrank.training import Run, train

# ---- layers: what a dense layer is made with, and the shape of an input


class LayerCase(NamedTuple):
    kind: type
    dense: type[nn.Module]
    arguments: tuple
    options: dict[str, Any]
    shape: tuple[int, ...]
    form: str = "channel"

    @property
    def full(self) -> Rank:
        return full_rank(tuple(self.make_dense().weight.shape), self.form)

    @property
    def low(self) -> Rank:
        """About half the full rank."""
        if isinstance(self.full, int):
            return max(1, self.full // 2)
        halves = max(1, self.full[0] // 2), max(1, self.full[1] // 2)
        return feasible_ranks(tuple(self.make_dense().weight.shape), halves)

    @property
    def one(self) -> Rank:
        return 1 if isinstance(self.full, int) else (1, 1)

    def make_dense(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(1)
        return self.dense(*self.arguments, **self.options, dtype=dtype)

    def input(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def _linear(shape: tuple[int, ...], n: int, m: int, **options: Any) -> LayerCase:
    return LayerCase(FactoredLinear, nn.Linear, (m, n), options, shape)


def _conv(
    dims: int,
    size: tuple[int, ...],
    kernel: Any,
    n: int = 6,
    batch: int | None = 2,
    form: str = "channel",
    **options: Any,
) -> LayerCase:
    dense = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    shape = (*([] if batch is None else [batch]), 3, *size)
    return LayerCase(factored_kind(dense, form), dense, (3, n, kernel), options, shape, form)


_CHANNEL: dict[str, LayerCase] = {
    "linear-wide": _linear((4, 9), 5, 9),
    "linear-tall": _linear((4, 5), 9, 5),
    "linear-square-no-bias": _linear((4, 6), 6, 6, bias=False),
    "linear-one-output": _linear((4, 6), 1, 6),
    "linear-sequence": _linear((2, 3, 9), 5, 9),
    "linear-unbatched": _linear((9,), 5, 9),
    "conv1d": _conv(1, (11,), 3),
    "conv1d-strided-reflect": _conv(1, (11,), 4, stride=2, padding=3, padding_mode="reflect"),
    "conv1d-same-dilated": _conv(1, (11,), 3, padding="same", dilation=2, bias=False),
    "conv1d-unbatched-circular": _conv(1, (11,), 3, batch=None, padding=1, padding_mode="circular"),
    "conv2d": _conv(2, (7, 8), 3),
    "conv2d-strided-padded": _conv(2, (7, 8), (3, 2), stride=(2, 1), padding=(1, 2)),
    "conv2d-same": _conv(2, (7, 8), (3, 5), padding="same"),
    "conv2d-valid-no-bias": _conv(2, (7, 8), 3, padding="valid", bias=False),
    "conv2d-same-reflect": _conv(2, (7, 8), (3, 5), padding="same", padding_mode="reflect"),
    "conv2d-circular": _conv(2, (7, 8), 3, padding=(1, 2), padding_mode="circular"),
    "conv2d-replicate-strided": _conv(2, (7, 8), 3, stride=2, padding=1, padding_mode="replicate"),
    "conv2d-valid-reflect": _conv(2, (7, 8), 3, padding="valid", padding_mode="reflect"),
    "conv2d-dilated": _conv(2, (9, 8), 3, dilation=(2, 3), padding=2),
    "conv2d-pointwise": _conv(2, (4, 4), 1, n=5),
    "conv2d-unbatched": _conv(2, (7, 8), 3, batch=None, padding=1, padding_mode="replicate"),
    "conv2d-many-filters": _conv(2, (7, 8), 2, n=40),
    "conv3d": _conv(3, (4, 5, 6), 2),
    "conv3d-strided-dilated": _conv(3, (5, 6, 7), (2, 3, 2), stride=(1, 2, 1), dilation=(2, 1, 1), padding=1),
    "conv3d-same-circular": _conv(3, (4, 5, 6), 3, padding="same", padding_mode="circular", bias=False),
}


def _other_forms() -> dict[str, LayerCase]:
    """Every convolution of the list above once more in each other form that it has."""
    return {
        f"{form}-{name}": case._replace(form=form, kind=factored_kind(case.dense, form))
        for name, case in _CHANNEL.items()
        for form in FORMS[1:]
        if case.dense is not nn.Linear and "pointwise" not in name
        if form != "spatial" or case.dense is nn.Conv2d
    }


LAYERS: dict[str, LayerCase] = _CHANNEL | _other_forms()

# ---- attacks: small enough to validate with

ATTACK_CASES: dict[str, Attack] = {
    "fgsm": FGSM(eps=0.1),
    "fgsm-rs": FGSMRS(eps=0.1),
    "n-fgsm": NFGSM(eps=0.1),
    "pgd": PGD(eps=0.1, steps=2, restarts=2),
    "low-rank-pgd": LowRankPGD(eps=0.1, rank=2, steps=2),
    "apgd": APGD(eps=0.1, steps=5, targets=2),
    "fmn": FMN(eps=0.1, steps=5),
    "square": Square(eps=0.1, queries=5),
    "noise": Noise(eps=0.1, draws=5),
    "spectral": SpectralAttack(eps=0.1, directions=2, steps=2),
}

# ---- objectives: made for a radius, and what each is at radius 0


class ObjectiveCase(NamedTuple):
    make: Callable[..., Objective]  # takes eps and settings of the objective
    clean_at_zero: bool = True  # whether it is the clean cross-entropy at eps 0
    passes: int = 1  # training forwards of the model with the batch, running statistics being updated in one

    def memory(self, model: nn.Module) -> Memory:
        """A teacher of the model's form, and nothing carried over."""
        teacher = deepcopy(model).eval().requires_grad_(False)
        for parameter in teacher.parameters():
            parameter.copy_(parameter.flip(0))
        return Memory(teacher=teacher)


def _attacked(kind: type[Objective], **settings: Any) -> Callable[..., Objective]:
    return lambda eps=0.1, **more: kind(attack=PGD(eps=eps, steps=3, keep="last"), **(settings | more))


OBJECTIVE_CASES: dict[str, ObjectiveCase] = {
    "clean": ObjectiveCase(lambda eps=0.0, **settings: Clean(**settings)),
    "madry": ObjectiveCase(_attacked(Madry)),
    "trades": ObjectiveCase(_attacked(Trades), passes=2),
    "mart": ObjectiveCase(_attacked(Mart), clean_at_zero=False, passes=2),
    "free": ObjectiveCase(lambda eps=0.1, **settings: Free(eps=eps, replays=2, **settings)),
    "distill": ObjectiveCase(_attacked(Distill), clean_at_zero=False, passes=2),
    "distill-adaad": ObjectiveCase(_attacked(Distill, style="adaad"), clean_at_zero=False),
    "madry-awp": ObjectiveCase(_attacked(Madry, awp=0.01), clean_at_zero=False, passes=2),
    "trades-awp": ObjectiveCase(_attacked(Trades, awp=0.01), clean_at_zero=False, passes=4),
}

GRAY = DataSpec((1, 28, 28), 10, (0.0,), (1.0,))

# ---- methods: at full rank, at low rank, and what each claims to hold after every step


class MethodCase(NamedTuple):
    full: Method
    low: Method
    holds: Callable[[nn.Module, Any], None]
    moves_at_init: bool = False  # whether `init` may change the function, to enter the constraint set
    bounded: bool = (
        False  # whether weights cannot grow, so that a large learning rate does not make them infinite
    )
    cuts_at_prepare: bool = False  # whether it drops more than rank before training
    turns: bool = False  # whether factors are decomposed, and may turn where singular values are close


def holds_nothing(model: nn.Module, method: Any) -> None:
    """Dense: no layer is factored."""
    assert not factored_layers(model)


def holds_rank(model: nn.Module, method: Any) -> None:
    """Two free factors: the rank stays."""
    layers = factored_layers(model)
    assert layers
    assert all(layer.S is None for _, layer in layers)
    for _, layer in layers:
        s = torch.linalg.svdvals(layer.matrix().detach().double())
        assert (s[layer.rank :] < 1e-5 * s[0]).all()


def holds_band(model: nn.Module, method: Any) -> None:
    """CondLR: orthonormal bases, and ``cond <= 1 + tau`` of core and weight."""
    layers = factored_layers(model)
    assert layers
    for name, layer in layers:
        assert orthonormality_error(layer.U.detach()) <= 1e-5
        assert orthonormality_error(layer.V.detach()) <= 1e-5
        assert condition_number(layer.unfoldings()[0].detach()) <= 1 + method.tau_of(name) + 1e-5
        assert condition_number(layer.matrix().detach(), layer.U.shape[1]) <= 1 + method.tau_of(name) + 1e-5


def holds_orthonormal(model: nn.Module, method: Any) -> None:
    """The Stiefel manifold: every weight that the method takes has one singular value, its scale."""
    assert method.layers(model)
    for _, X in method.weights(model):
        assert orthonormality_error(X.detach() / method.scale) <= 1e-5


def holds_budget(model: nn.Module, method: Any) -> None:
    """CSTAR: dense until the end, and then within the budget."""
    if factored_layers(model):
        before, after = (sum(p.numel() for p in deploy(model, dense=d).parameters()) for d in (True, None))
        assert after <= parse_budget(method.budget).limit(before)


def holds_filters(model: nn.Module, method: Any) -> None:
    """Filter pruning: plain layers, within the budget once filters are gone."""
    holds_nothing(model, method)
    dense = LeNet5(width=0.1).build(GRAY) if hasattr(model, "conv1") else small_net()
    before, after = (sum(p.numel() for p in net.parameters()) for net in (dense, model))
    assert after == before if not narrowed(model) else after <= parse_budget(method.budget).limit(before)


def holds_adaptive(model: nn.Module, method: Any) -> None:
    """DLRT, RobustDLRT: orthonormal bases, and ranks that their gradients can at most double."""
    layers = layers_with_core(model)
    assert layers
    for _, layer in layers:
        assert orthonormality_error(layer.U.detach()) <= 1e-5
        assert orthonormality_error(layer.V.detach()) <= 1e-5
    for (most, *_), (_, layer) in zip(
        (high for _, high in method.bounds(model).values()), layers, strict=True
    ):
        assert layer.U.shape[1] <= 2 * most


def holds_spectrum(model: nn.Module, method: Any) -> None:
    """SVD training: diagonal cores, and bases that are nearly orthonormal; after pruning within the budget."""
    layers = [layer for _, layer in factored_layers(model)]
    assert layers and all(torch.equal(layer.S, layer.S.diagonal().diag()) for layer in layers)
    assert all(orthonormality_error(basis.detach()) < 1 for layer in layers for basis in (layer.U, layer.V))
    if method.budget and any(layer.rank < layer.full_rank for layer in layers):
        before, after = (sum(p.numel() for p in deploy(model, dense=d).parameters()) for d in (True, None))
        assert after <= parse_budget(method.budget).limit(before)


_ALL = {"keep": 1.0, "first": "full-rank", "last": "full-rank"}

METHOD_CASES: dict[str, MethodCase] = {
    "dense": MethodCase(Dense(), Dense(), holds_nothing),
    "svd": MethodCase(SVD(**_ALL), SVD(keep=0.5), holds_rank),
    "uv": MethodCase(UV(**_ALL), UV(keep=0.5), holds_rank),
    "condlr": MethodCase(CondLR(**_ALL), CondLR(keep=0.5), holds_band, moves_at_init=True),
    "cstar": MethodCase(
        CSTAR(budget="params=1x"),
        CSTAR(budget="params=2x", rho=0.1, every=2, choose=2),
        holds_budget,
        turns=True,
    ),
    "cayley": MethodCase(
        Cayley(gain=10), Cayley(scale=2.0, first="free"), holds_orthonormal, moves_at_init=True, bounded=True
    ),
    "projected": MethodCase(
        Projected(gain=10),
        Projected(retraction="polar", exclude=("3",)),
        holds_orthonormal,
        moves_at_init=True,
        bounded=True,
    ),
    "soft-orthogonal": MethodCase(SoftOrthogonal(), SoftOrthogonal(kind="srip"), holds_nothing),
    "spectral": MethodCase(Spectral(), Spectral(kind="norm"), holds_nothing),
    "magnitude": MethodCase(
        Magnitude(budget="params=1x"), Magnitude(budget="params=1.5x"), holds_filters, cuts_at_prepare=True
    ),
    "dlrt": MethodCase(DLRT(**_ALL), DLRT(keep=0.75), holds_adaptive, turns=True),
    "robust-dlrt": MethodCase(
        RobustDLRT(**_ALL), RobustDLRT(keep=0.75, cycle=3, tolerance=0.05), holds_adaptive, turns=True
    ),
    "admm-filters": MethodCase(
        ADMMFilters(budget="params=1x"), ADMMFilters(budget="params=2x", rho=0.1, every=2), holds_filters
    ),
    "svd-prune": MethodCase(
        SVDPrune(energy=0.0, sparsity=0.0),
        SVDPrune(budget="params=2x", steps=4, rate=1.0),
        holds_spectrum,
        turns=True,
    ),
    "scores": MethodCase(
        Scores(budget="params=1x", steps=2), Scores(budget="params=1.5x", steps=3), holds_filters
    ),
}

# ---- a problem that every method can learn in a moment


def small_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A net of one convolution and two linear layers for 1 x 6 x 6 images and 3 classes."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.LeakyReLU(0.1),
        nn.Linear(10, 3),
    ]
    return nn.Sequential(*layers).to(dtype)


def small_batch(dtype: torch.dtype = torch.float32, n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class is the direction in which they are brightest."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn((n, 1, 6, 6), generator=generator, dtype=dtype)
    return x, (x.flatten(1) @ torch.randn((36, 3), generator=generator, dtype=dtype)).argmax(1)


@dataclass
class Fit:
    """A method at work on the small problem, without the training loop; ``begun`` is False for an attached one."""

    method: Method
    optimizer: Optimizer
    dtype: torch.dtype = torch.float32
    begun: bool = True
    given: nn.Module | None = None

    def __post_init__(self) -> None:
        self.x, self.y = small_batch(self.dtype)
        self.model = self.method.prepare(small_net(self.dtype) if self.given is None else self.given)
        self.built = self.optimizer.build(self.method.groups(self.model))
        self.state = self.method.init(self.model) if self.begun else {}
        self.t = 0

    def backward(self) -> torch.Tensor:
        self.built.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.x), self.y) + self.method.penalty(
            self.model, self.state
        )
        loss.backward()
        return loss.detach()

    def step(self) -> float:
        loss = self.method.step(self.model, self.built, self.state, self.backward, self.t)
        self.t += 1
        return loss.item()


# ---- a whole run, in a fraction of a second


def tiny_run(folder: str, **change: Any) -> Run:
    """LeNet5 at a tenth of its width on the small MNIST folder: 2 epochs of 4 steps."""
    whole = {
        "data": MNIST(folder=folder, validation=0.25),
        "model": LeNet5(width=0.1),
        "optimizer": SGD(lr=0.1, momentum=0.3),
        "epochs": 2,
        "batch_size": 15,
        "validate": FGSM(eps=0.1),
        "log_every": 2,
    }
    return Run(**(whole | change))


def with_validation(run: Run, fraction: float) -> Run:
    """The same run with another fraction of the training images held out."""
    return replace(run, data=replace(run.data, validation=fraction))


def join_and_train(rank: int, world: int, meeting: str, folder: str, out: str) -> None:
    """Train with every method, as one of several processes; then once more with the second process late."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    for name, case in METHOD_CASES.items():
        dist.barrier()
        train(tiny_run(folder, method=case.low, epochs=1), Path(out) / name)
    train(tiny_run(folder, epochs=1, clip=0.02), Path(out) / "clipped")
    time.sleep(0.5 * rank)
    try:
        train(tiny_run(folder, epochs=1), Path(out) / "late")
    except Exception as error:
        (Path(out) / f"error-{rank}.txt").write_text(str(error))
    else:
        dist.destroy_process_group()


if __name__ == "__main__":
    join_and_train(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
