"""What all factored layers share: they hold factors, act, and count their cost.

    W = U S V^T     with a core:     U (n, r), S (r, r), V (m, r)
    W = U V^T       without a core:  U (n, r), V (m, r)

    n    outputs (features or channels)
    m    inputs times kernel size: in_features, or in_channels * k_1 * ... * k_d, in the order of ``weight.flatten(1)``
    r    rank
    p    positions at which the layer acts: batch times output pixels

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
from ironrank.linalg import USV, UV, truncated_svd


class Cost(NamedTuple):
    """What a layer costs.

    Attributes:
        stored: Numbers in its parameters, as trained.
        deployed: Numbers that inference needs: the two merged factors or the dense weight, whichever is smaller.
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
    """Base of the factored layers. Sub-classes say what ``n`` and ``m`` are and how to act."""

    U: nn.Parameter
    V: nn.Parameter
    S: nn.Parameter | None
    bias: nn.Parameter | None
    _kept: dict[str, Any] | None = None  # what was built inside `ironrank.layers.frozen`

    def _hold(self, n: int, m: int, rank: int, core: bool, bias: bool, where: dict) -> None:
        if not 1 <= rank <= min(n, m):
            raise IronrankError(f"rank {rank} for a {n} x {m} weight: allowed is 1 to {min(n, m)}")
        self.U = nn.Parameter(torch.empty(n, rank, **where))
        self.V = nn.Parameter(torch.empty(m, rank, **where))
        self.register_parameter("S", nn.Parameter(torch.empty(rank, rank, **where)) if core else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(n, **where)) if bias else None)
        self.reset_parameters()

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.U.shape[1]

    @property
    def full_rank(self) -> int:
        """The largest possible rank, ``min(n, m)``."""
        return min(self.U.shape[0], self.V.shape[0])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, outputs first."""
        raise NotImplementedError

    def factors(self) -> USV | UV:
        """Return the factors as they are, with or without a core."""
        return UV(self.U, self.V) if self.S is None else USV(self.U, self.S, self.V)

    def merged(self) -> UV:
        """Return two factors ``A = U S`` (n, r) and V (m, r) of the same weight."""
        return self._once("merged", lambda: UV(self.U if self.S is None else self.U @ self.S, self.V))

    def matrix(self) -> Tensor:
        """Return the weight as a matrix (n, m)."""
        return self._once("matrix", lambda: self.merged().dense())

    def dense(self) -> Tensor:
        """Return the weight that the layer stands for, in the shape of the dense layer's weight."""
        return self.matrix().reshape(self.weight_shape)

    @torch.no_grad()
    def set_factors(self, factors: USV | UV) -> None:
        """Replace the factors, also by ones of another rank; the parameters stay the same objects.

        Args:
            factors: `USV` for a layer with a core, `UV` for one without.

        Raises:
            IronrankError: If the core is missing or superfluous, or a shape does not fit.
        """
        if isinstance(factors, USV) != (self.S is not None):
            raise IronrankError("a layer with a core takes USV factors, one without takes UV factors")
        r = factors.U.shape[-1]
        if not 1 <= r <= self.full_rank:
            raise IronrankError(f"factors of rank {r}: allowed is 1 to {self.full_rank}")
        expected = {"U": (self.U.shape[0], r), "V": (self.V.shape[0], r), "S": (r, r)}
        for name, value in factors._asdict().items():
            if value.shape != expected[name]:
                raise IronrankError(f"{name} of shape {tuple(value.shape)}: expected {expected[name]}")
        for name, value in factors._asdict().items():
            held = getattr(self, name)
            # a copy of plain layout: not the caller's storage, nor the odd strides that a column may have
            held.data = torch.empty(value.shape, dtype=held.dtype, device=held.device).copy_(value)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Set the factors to the truncated SVD of a dense weight, at the layer's rank.

        Without a core the singular values are shared evenly: ``U = P sqrt(s)``, ``V = Q sqrt(s)``.

        Args:
            weight: Dense weight, in the shape of the dense layer's.
        """
        usv = truncated_svd(weight.detach().flatten(1), self.rank)
        if self.S is not None:
            self.set_factors(usv)
            return
        root = usv.S.diagonal(dim1=-2, dim2=-1).sqrt()
        self.set_factors(UV(usv.U * root, usv.V * root))

    def reset_parameters(self) -> None:
        """Set the factors to the truncated SVD of a weight drawn as the dense layer of torch draws it."""
        fan_in = self.V.shape[0]
        weight = torch.empty(self.U.shape[0], fan_in, device=self.U.device, dtype=torch.float32)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if not weight.is_meta:
            self.set_weight(weight)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    @property
    def deploys_dense(self) -> bool:
        """Whether the dense weight is no larger than the two merged factors, ``n m <= r (n + m)``."""
        n, m = self.U.shape[0], self.V.shape[0]
        return n * m <= self.rank * (n + m)

    def deploy(self, dense: bool | None = None) -> nn.Module:
        """Return plain torch layers of the same function: one dense layer, two thin ones, or by default the smaller."""
        raise NotImplementedError

    def cost(self, positions: int) -> Cost:
        """Count parameters and multiply-adds.

        Args:
            positions: p, batch times output pixels (for a linear layer, the number of input rows).

        Returns:
            The counts; the bias is counted in the parameters, not in the multiply-adds.
        """
        n, m, r = self.U.shape[0], self.V.shape[0], self.rank
        bias = 0 if self.bias is None else n
        core = 0 if self.S is None else r * r
        deployed = min(n * m, r * (n + m))
        return Cost(
            r * (n + m) + core + bias, deployed + bias, n * m + bias, positions * deployed, positions * n * m
        )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return ``make()``; inside `ironrank.layers.frozen` the first result, of full precision, again and again."""
        if self._kept is None:
            return make()
        if name not in self._kept:
            with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
                self._kept[name] = make()
        return self._kept[name]

    def _dense_is_cheaper(self, positions: int) -> bool:
        # multiply-adds of one forward: build W = A V^T and apply it, or apply V and then A
        n, m, r = self.U.shape[0], self.V.shape[0], self.rank
        if self._kept is not None:
            return self.deploys_dense  # building is paid once
        return n * r * m + positions * n * m < positions * r * (n + m)
