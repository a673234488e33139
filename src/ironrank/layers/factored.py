"""What all factored layers share: they hold factors, act, and count their cost.

    W = U S V^T             with a core:     U (n, r), S (r, r), V (m, r)
    W = U V^T               without a core:  U (n, r), V (m, r)
    W = S x_1 U x_2 V       Tucker-2:        U (n, r1), S (r1, r2, *k), V (c, r2)

    n    outputs (features or channels)
    m    inputs times kernel size: in_features, or in_channels * k_1 * ... * k_d, in the order of ``weight.flatten(1)``;
         in the spatial form n and m are n k_w and c k_h
    r    rank
    p    positions at which the layer acts: batch times output pixels
    q    positions at which its first thin layer acts, see `ironrank.layers.forms`

U, S and V are ordinary parameters with these names in the ``state_dict``. A layer knows nothing of training: what
keeps U and V orthonormal is a method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers.forms import (
    Rank,
    Shape,
    check_form,
    from_matrix,
    full_rank,
    layout_of,
    matrix_shape,
    parts,
    to_matrix,
)
from ironrank.linalg import USV, UV, Tucker2, truncated_svd
from ironrank.linalg.precision import thin_qr

# Multiply-adds in the time that one float32 number takes to memory and back, on CPUs: 280 GFLOP/s over 17 GB/s.
_TRAFFIC = 64


class Cost(NamedTuple):
    """What a layer costs.

    Attributes:
        stored: Numbers in its parameters, as trained.
        deployed: Numbers that inference needs: the merged factors or the dense weight, whichever is smaller.
        dense: Numbers of the layer that it stands for.
        macs: Multiply-adds of the deployed form at the given positions.
        macs_dense: Multiply-adds of the dense layer there.
    """

    stored: int
    deployed: int
    dense: int
    macs: int
    macs_dense: int


class Factored(nn.Module):
    """Base of the factored layers, and all that concerns ``U S V^T``. Sub-classes say how to act."""

    U: nn.Parameter
    V: nn.Parameter
    S: nn.Parameter | None
    bias: nn.Parameter | None
    form: str = "channel"
    replaced: int = 0  # how often `set_factors` was called: whoever remembers factors has to look again
    _kept: dict[str, Any] | None = None  # what was built inside `ironrank.layers.frozen`

    def _hold(self, rank: Any, core: bool, bias: bool, where: dict) -> None:
        """Make the parameters; `weight_shape` and ``form`` are known by now."""
        check_form(self.form, self.weight_shape)
        shapes = self._shapes(rank)
        for name in ("U", "V"):
            self.register_parameter(name, nn.Parameter(torch.empty(shapes[name], **where)))
        self.register_parameter("S", nn.Parameter(torch.empty(shapes["S"], **where)) if core else None)
        outputs = self.weight_shape[0]
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs, **where)) if bias else None)
        self.reset_parameters()

    def _shapes(self, rank: Any) -> dict[str, Shape]:
        """Return the shapes of the factors at a rank, or refuse it."""
        n, m = matrix_shape(self.weight_shape, self.form)
        if not (isinstance(rank, int) and 1 <= rank <= min(n, m)):
            raise IronrankError(f"rank {rank} for a {n} x {m} weight: allowed is 1 to {min(n, m)}")
        return {"U": (n, rank), "V": (m, rank), "S": (rank, rank)}

    @classmethod
    def like(
        cls, dense: Any, rank: Any, core: bool = True, fresh: bool = True, form: str | None = None
    ) -> Factored:
        """Return a factored layer with the sizes, device, type and mode of a dense one; what is frozen stays frozen.

        Args:
            dense: The dense layer.
            rank: r, or (r1, r2) for Tucker-2.
            core: Whether there is a core S.
            fresh: Whether to draw its weights; without, they are what the memory holds.
            form: Low-rank form; by default that of the class.

        Returns:
            The factored layer.
        """
        device = dense.weight.device if fresh else torch.device("meta")
        layer = cls._of_sizes(dense, rank, core, form or cls.form, device)
        layer = layer if fresh else layer.to_empty(device=dense.weight.device)
        if hasattr(dense, "full_width"):
            layer.full_width = dense.full_width
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(getattr(dense, "bias" if name == "bias" else "weight").requires_grad)
        return layer.train(dense.training)

    @classmethod
    def _of_sizes(cls, dense: Any, rank: Any, core: bool, form: str, device: torch.device) -> Factored:
        raise NotImplementedError

    @classmethod
    def from_dense(cls, dense: Any, rank: Any, core: bool = True, form: str | None = None) -> Factored:
        """Return the factored layer near a dense one (see `set_weight`); the bias is copied.

        Args:
            dense: The dense layer.
            rank: r, or (r1, r2) for Tucker-2.
            core: Whether there is a core S.
            form: Low-rank form; by default that of the class.

        Returns:
            The factored layer, on the same device, of the same type and mode.
        """
        layer = cls.like(dense, rank, core, fresh=False, form=form)
        layer.set_weight(dense.weight)
        if layer.bias is not None:
            layer.bias.data.copy_(dense.bias.data)
        return layer

    @property
    def rank(self) -> Rank:
        """The rank r, or the pair (r1, r2) of a Tucker-2 layer."""
        return self.U.shape[1]

    @property
    def full_rank(self) -> Rank:
        """The largest possible rank, ``min(n, m)``, or a pair."""
        return full_rank(self.weight_shape, self.form)

    @property
    def weight_shape(self) -> Shape:
        """The shape of the dense weight, outputs first."""
        raise NotImplementedError

    def factors(self) -> USV | UV | Tucker2:
        """Return the factors as they are, with or without a core."""
        return UV(self.U, self.V) if self.S is None else USV(self.U, self.S, self.V)

    def merged(self) -> UV:
        """Return two factors ``A = U S`` (n, r) and V (m, r) of the same matrix; not for Tucker-2."""
        return self._once("merged", lambda: UV(self.U if self.S is None else self.U @ self.S, self.V))

    def matrix(self) -> Tensor:
        """Return the weight as the matrix (n, m) of which U spans the columns."""
        return self._once("matrix", lambda: self.merged().dense())

    def dense(self) -> Tensor:
        """Return the weight that the layer stands for, in the shape of the dense layer's weight."""
        return from_matrix(self.matrix(), self.weight_shape, self.form)

    def unfoldings(self) -> tuple[Tensor, Tensor]:
        """Return the core as seen from U and from V, each with as many rows as the basis has columns.

        ``S`` and ``S^T`` of a matrix; the unfoldings by both channel modes, ``S_(1)`` (r1, r2 K) and ``S_(2)``
        (r2, r1 K), of Tucker-2. With orthonormal bases the first has the singular values of `matrix`.

        Returns:
            The two matrices; the layer has a core.
        """
        assert self.S is not None
        return self.S, self.S.mT

    @torch.no_grad()
    def set_factors(self, factors: USV | UV | Tucker2) -> None:
        """Replace the factors, also by ones of another rank; the parameters stay the same objects.

        Args:
            factors: `USV` for a layer with a core, `UV` for one without, `Tucker2` for a Tucker-2 layer.

        Raises:
            IronrankError: If the core is missing or superfluous, or a shape does not fit.
        """
        if type(factors) is not type(self.factors()):
            raise IronrankError(
                "a layer with a core takes USV factors, one without takes UV factors, a Tucker-2 layer takes Tucker2"
            )
        expected = self._shapes(self._rank_of(factors))
        for name, value in factors._asdict().items():
            if value.shape != expected[name]:
                raise IronrankError(f"{name} of shape {tuple(value.shape)}: expected {expected[name]}")
        for name, value in factors._asdict().items():
            held = getattr(self, name)
            # a copy of plain layout: not the caller's storage, nor the odd strides that a column may have
            held.data = held.new_empty(value.shape).to(memory_format=layout_of(held)).copy_(value)
        self.replaced += 1

    def _rank_of(self, factors: Any) -> Rank:
        return factors.U.shape[-1]

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Set the factors to the truncated SVD of a dense weight, at the layer's rank.

        Without a core the singular values are shared evenly: ``U = P sqrt(s)``, ``V = Q sqrt(s)``.

        Args:
            weight: Dense weight, in the shape of the dense layer's.
        """
        usv = truncated_svd(to_matrix(weight.detach(), self.form), self.U.shape[1])
        if self.S is not None:
            self.set_factors(usv)
            return
        root = usv.S.diagonal(dim1=-2, dim2=-1).sqrt()
        self.set_factors(UV(usv.U * root, usv.V * root))

    @torch.no_grad()
    def orthonormalize(self) -> None:
        """Bring U and V to orthonormal columns and what they lose into the core; the function stays the same.

        ``U = Q R``, ``V = P T``: ``S <- R S T^T``, or ``R T^T`` where there was no core.
        """
        (Q, R), (P, T) = (thin_qr(basis) for basis in (self.U, self.V))
        core = R @ T.mT if self.S is None else R @ self.S.to(R) @ T.mT
        if self.S is None:
            self.S = nn.Parameter(core.to(self.U), requires_grad=self.U.requires_grad)
        self.set_factors(USV(Q, core, P))

    def reset_parameters(self) -> None:
        """Set the factors to those nearest to a weight drawn as the dense layer of torch draws it."""
        weight = torch.empty(self.weight_shape, device=self.U.device, dtype=torch.float32)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if not weight.is_meta:
            self.set_weight(weight)
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def deploys_dense(self) -> bool:
        """Whether the dense weight has no more numbers than the merged factors, ``n m <= r (n + m)`` for a matrix."""
        return math.prod(self.weight_shape) <= sum(parts(self.weight_shape, self.form, self.rank))

    def deploy(self, dense: bool | None = None) -> nn.Module:
        """Return plain torch layers of the same function: one dense layer, thin ones, or by default the smaller."""
        raise NotImplementedError

    def positions(self, shape: Shape) -> tuple[int, int]:
        """Return the positions (p, q) for inputs of a shape: those of the output, and those of the first thin layer."""
        raise NotImplementedError

    def cost(self, p: int, q: int | None = None) -> Cost:
        """Count parameters and multiply-adds; ``layer.cost(*layer.positions(x.shape))`` counts them for a batch.

        Args:
            p: Positions of the output: batch times output pixels (for a linear layer, the number of input rows).
            q: Positions of the first thin layer; by default p, which is right for the channel form, and for the others
                where the output is as large as the input.

        Returns:
            The counts; the bias is counted in the parameters, not in the multiply-adds.
        """
        full, (a, b) = math.prod(self.weight_shape), parts(self.weight_shape, self.form, self.rank)
        bias = 0 if self.bias is None else self.weight_shape[0]
        stored = sum(factor.numel() for factor in self.factors())
        macs = p * full if self.deploys_dense else (p if q is None else q) * a + p * b
        return Cost(stored + bias, min(full, a + b) + bias, full + bias, macs, p * full)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return ``make()``; inside `ironrank.layers.frozen` the first result, of full precision, again and again."""
        if self._kept is None:
            return make()
        if name not in self._kept:
            with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
                self._kept[name] = make()
        return self._kept[name]

    def _dense_is_cheaper(self, p: int, q: int) -> bool:
        # One forward: build the dense weight and apply it, or apply the thin layers. By multiply-adds, and by the
        # traffic of the hidden activations, which decides where a layer has few channels.
        full, (a, b) = math.prod(self.weight_shape), parts(self.weight_shape, self.form, self.rank)
        build = 0 if self._kept is not None else self._macs_to_build()  # kept: building is paid once
        return build + p * full < q * a + p * b + _TRAFFIC * self._hidden(p, q)

    def _hidden(self, p: int, q: int) -> int:
        """Count the numbers between the thin layers."""
        return q * self.U.shape[1]

    def _macs_to_build(self) -> int:
        return math.prod(self.weight_shape) * self.U.shape[1]
