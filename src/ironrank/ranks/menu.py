"""The menu of a layer: every form and rank worth having, what it costs, and what it loses.

    error    squared Frobenius norm of what the projection drops, in the layer's metric, times the layer's factor
    energy   squared Frobenius norm of the whole weight, in the same measure

Where inputs make the metric, that of a form may be an approximation; its errors are then scaled so that the whole
weight has the energy that it has in the exact one, and forms and layers can be compared.

For a matrix form the projection is the truncated singular value decomposition, and the error of rank r is the sum
of the squared singular values from r + 1 on (Eckart, Young 1936). For Tucker-2 it is the truncated HOSVD: with the
bases U_1, U_2 of both channel modes complete, the core ``G = W x_1 U_1^T x_2 U_2^T`` has the norm of W, and keeping
(r_1, r_2) keeps exactly the block ``G[:r_1, :r_2]``. So one decomposition gives the error of every pair of ranks,
as a cumulative sum. HOOI sweeps from there can only lower it, so it is an upper bound, and never above the usual
bound, the sum of both tails.

An option that costs no less than another one and loses no less is left out; so is what costs as much as the dense
layer, or stores as many numbers, since it would be deployed as one. A rank that is given costs what is deployed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.layers.forms import Rank, full_rank, to_matrix
from ironrank.linalg.precision import full_precision
from ironrank.linalg.tucker import check_ranks
from ironrank.ranks.cost import DENSE, Array, Cost, Site, params


class Option(NamedTuple):
    """One form of a layer.

    Attributes:
        form: "dense", "channel", "spatial" or "tucker2".
        rank: r, or (r_1, r_2) for Tucker-2; None for dense.
        cost: In the unit of the budget.
        error: What the projection drops.
    """

    form: str
    rank: Rank | None
    cost: float
    error: float


class Menu(NamedTuple):
    """The options of a layer: dearer and better from one to the next.

    Attributes:
        name: Full name of the layer.
        energy: Squared norm of the weight, in the measure of the errors.
        dense: Cost of the dense layer.
        options: At least one.
    """

    name: str
    energy: float
    dense: float
    options: tuple[Option, ...]

    def kept(self, option: Option) -> float:
        """Return the share of the energy that an option keeps."""
        return 1.0 if self.energy == 0 else 1.0 - option.error / self.energy


@full_precision
@torch.no_grad()
def matrix_errors(W: Tensor) -> Array:
    """Return what the best approximation of each rank drops, from rank 0 to the full rank.

    The squared singular values are eigenvalues of the smaller Gram matrix, in float64.

    Args:
        W: Matrix (n, m).

    Returns:
        Squared norms (min(n, m) + 1,), falling; the last is 0.
    """
    W = W.detach().double()
    W = W if W.shape[0] <= W.shape[1] else W.mT
    squares = torch.linalg.eigvalsh(W @ W.mT).clamp(min=0)  # smallest first
    return np.append(squares.cumsum(0).flip(0).cpu().numpy(), 0.0)


@full_precision
@torch.no_grad()
def tucker_errors(W: Tensor) -> Array:
    """Return what the truncated HOSVD in the two channel modes drops, for every pair of ranks.

    Args:
        W: Kernel (n, c, k_1, ..., k_d).

    Returns:
        Squared norms (n + 1, c + 1), falling along both axes; entry (r_1, r_2).
    """
    W = W.detach().double().flatten(2)
    first, second = W.flatten(1), W.transpose(0, 1).flatten(1)
    U1, U2 = (torch.linalg.eigh(X @ X.mT).eigenvectors.flip(1) for X in (first, second))
    core = torch.einsum("nck,nr,cs->rsk", W, U1, U2).square().sum(2)
    kept = np.zeros((W.shape[0] + 1, W.shape[1] + 1))
    kept[1:, 1:] = core.cumsum(0).cumsum(1).cpu().numpy()
    return np.maximum(kept[-1, -1] - kept, 0.0)


def allowed(full: int, min_rank: int = 1, round_to: int = 1) -> Array:
    """Return the ranks that are at least ``min_rank`` and multiples of ``round_to``, and the full one.

    Example:
        >>> allowed(10, min_rank=2, round_to=4)
        array([ 4,  8, 10])
    """
    ranks = np.arange(1, full + 1)
    return ranks[((ranks >= min_rank) & (ranks % round_to == 0)) | (ranks == full)]


def menu(
    site: Site,
    weight: Tensor,
    cost: Cost = params,
    form: str = "auto",
    *,
    min_rank: int = 1,
    round_to: int = 1,
    rank: Rank | None = None,
    factor: float = 1.0,
    roots: Any = None,
) -> Menu:
    """Make the menu of a layer.

    Args:
        site: The layer.
        weight: Its weight (n, c, k_1, ..., k_d), outputs first.
        cost: What an option costs.
        form: Wished form, or "auto" for the cheapest of all.
        min_rank: Smallest rank, in Tucker-2 of each mode.
        round_to: Ranks are multiples of this, or full.
        rank: A rank that is given: it is then the only option of its form, and dense is none.
        factor: Factor on the layer's errors, such as its sensitivity.
        roots: Square roots of input second moments by form, which make the metric; see `ironrank.ranks.Moments`.

    Returns:
        The menu.

    Raises:
        IronrankError: If min_rank or round_to is below 1, or the given rank is none of the layer's.

    Example:
        >>> made = menu(Site("fc", (4, 4)), torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
        >>> [(option.form, option.rank, option.cost, round(option.error, 6)) for option in made.options]
        [('channel', 1, 8.0, 14.0), ('dense', None, 16.0, 0.0)]
    """
    if min_rank < 1 or round_to < 1:
        raise IronrankError(f"min_rank={min_rank}, round_to={round_to}: both must be at least 1")
    dense, found, energy = float(cost(site, "dense", DENSE)[0]), [], 0.0
    given = {} if rank is None else _given(site, form, rank)
    for kind in given or site.forms(form):
        tilted = weight if roots is None else roots[kind].tilt(weight)
        errors = tucker_errors(tilted) if kind == "tucker2" else matrix_errors(to_matrix(tilted, kind))
        if roots is not None and errors.flat[0] > 0:
            # each form measures in a metric of its own
            errors = errors * (roots.energy(weight) / errors.flat[0])
        energy = max(energy, float(errors.flat[0]) * factor)
        pairs = _pairs(site, kind, min_rank, round_to) if rank is None else given[kind]
        lost = factor * (errors[pairs[:, 0], pairs[:, 1]] if kind == "tucker2" else errors[pairs[:, 0]])
        found += _pareto(kind, pairs, _deployed(site, cost, kind, pairs), lost)
    if rank is None:
        found = [option for option in found if option.cost < dense] + [Option("dense", None, dense, 0.0)]
    return Menu(site.name, energy, dense, tuple(_best(found)))


def least(site: Site, cost: Cost, form: str = "auto", *, min_rank: int = 1, round_to: int = 1) -> float:
    """Return the cost of the cheapest option of a layer, which its shape decides.

    Args:
        site: The layer.
        cost: What an option costs.
        form: Wished form, or "auto" for the cheapest of all.
        min_rank: Smallest rank, in Tucker-2 of each mode.
        round_to: Ranks are multiples of this, or full.

    Returns:
        The cost of the first option of its `menu`, without a decomposition.

    Example:
        >>> least(Site("fc", (4, 4)), params)
        8.0
    """
    pairs = {kind: _pairs(site, kind, min_rank, round_to) for kind in site.forms(form)}
    dense = float(cost(site, "dense", DENSE)[0])
    return min(dense, *(float(_deployed(site, cost, kind, rows).min()) for kind, rows in pairs.items()))


def _deployed(site: Site, cost: Cost, kind: str, pairs: Array) -> Array:
    """Return what rows of ranks cost (k,): as the dense layer, where they store as many numbers."""
    as_dense = params(site, kind, pairs) >= math.prod(site.shape)
    return np.where(as_dense, cost(site, "dense", DENSE), cost(site, kind, pairs))


def _pairs(site: Site, kind: str, min_rank: int, round_to: int) -> Array:
    """Return all allowed ranks as rows (k, 2); a matrix form has its rank twice."""
    full = full_rank(site.shape, kind)
    if isinstance(full, int):
        ranks = allowed(full, min_rank, round_to)
        return np.stack([ranks, ranks], 1)
    points = math.prod(site.kernel)
    axes = [allowed(most, min_rank, round_to) for most in full]
    first, second = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
    feasible = (first <= points * second) & (second <= points * first)  # more is idle in any core
    return np.stack([first, second], 1)[feasible]


def _given(site: Site, form: str, rank: Rank) -> dict[str, Array]:
    """Return a given rank as a row (1, 2), by each form under a wish in which the layer can have it.

    Raises:
        IronrankError: If there is none; it says why of the first.
    """
    found, refused = {}, []
    for kind in site.forms(form):
        try:
            found[kind] = _row(site, kind, rank)
        except IronrankError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def _row(site: Site, kind: str, rank: Rank) -> Array:
    if kind == "tucker2" and not isinstance(rank, int):
        check_ranks(site.shape, (rank[0], rank[1]))
        return np.array([rank])
    full = full_rank(site.shape, kind)
    most = full if isinstance(full, int) else min(full)
    if not isinstance(rank, int) or not 1 <= rank <= most:
        raise IronrankError(f"rank {rank} for layer '{site.name}' in {kind} form: allowed is 1 to {most}")
    return np.array([(rank, rank)])


def _pareto(kind: str, pairs: Array, costs: Array, errors: Array) -> list[Option]:
    """Return the options that no other one beats, cheapest first; vectorized, since Tucker-2 has n c of them."""
    order = np.lexsort((errors, costs))
    best = np.minimum.accumulate(errors[order])
    keep = order[np.append(True, best[1:] < best[:-1])]
    return [
        Option(kind, (int(r), int(s)) if kind == "tucker2" else int(r), float(costs[i]), float(errors[i]))
        for i, (r, s) in zip(keep, pairs[keep], strict=True)
    ]


def _best(options: list[Option]) -> list[Option]:
    """Return the options that no other one beats, of all forms together."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.cost, option.error)):
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept
