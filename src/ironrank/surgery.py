"""Surgery: replace layers of any `nn.Module` in place, by type and full name, and say what was done.

plan        which layers would become low-rank, at which rank, and why others stay
factorize   do it; the model computes nearly the same function (the same at full rank)
deploy      a copy made of plain torch layers only, each factored layer in its smaller form
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError, nearest
from ironrank.layers import FACTORED, Factored
from ironrank.ranks import keep_rank

Pattern = str | type[nn.Module]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Row:
    """One layer of a plan.

    Attributes:
        name: Full name in the model.
        kind: Class of the layer as it is.
        shape: Shape of the weight, outputs first.
        full_rank: Largest possible rank.
        rank: Rank it would get, or None where it stays as it is.
        reason: Why it stays; empty where it does not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    full_rank: int
    rank: int | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """What `factorize` would do: one row for every layer of a type that can be factored."""

    rows: tuple[Row, ...]
    core: bool = True

    @property
    def ranks(self) -> dict[str, int]:
        """The chosen rank of every layer that would be factored."""
        return {row.name: row.rank for row in self.rows if row.rank is not None}

    def __str__(self) -> str:
        """The plan as a text table."""
        head = ("layer", "kind", "shape", "rank", "of", "note")
        body = [(r.name, r.kind, "x".join(map(str, r.shape)), "-" if r.rank is None else str(r.rank),
                 str(r.full_rank), r.reason) for r in self.rows]  # fmt: skip
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
        ]
        return "\n".join(lines)


def plan(
    model: nn.Module,
    keep: float = 1.0,
    *,
    include: Iterable[Pattern] | None = None,
    exclude: Iterable[Pattern] = (),
    ranks: Mapping[str, int] | None = None,
    round_to: int = 1,
    core: bool = True,
) -> Plan:
    """Say which layers `factorize` would replace, and why it would leave others alone. Changes nothing.

    Args:
        model: Any module.
        keep: Kept fraction of each layer's full rank ``min(n, m)``, in (0, 1].
        include: Layer types, or patterns of full names such as ``"layer3.*"``; by default every layer.
        exclude: The same, for layers to leave alone.
        ranks: Rank by name pattern; it overrides ``keep`` for the layers that match.
        round_to: Round ranks from ``keep`` up to a multiple of this.
        core: Whether layers get a core S.

    Returns:
        The plan; ``print(plan)`` shows it as a table.

    Raises:
        IronrankError: If a pattern matches no layer, keep is not in (0, 1], or a rank is above the layer's.
    """
    keep_rank(keep, 1, round_to)
    include = None if include is None else list(include)
    ranks, exclude, names = dict(ranks or {}), list(exclude), [name for name, _ in _candidates(model)]
    for pattern in [*ranks, *(p for p in [*(include or []), *exclude] if isinstance(p, str))]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise IronrankError(f"no layer matches '{pattern}': {nearest(pattern, names)}")
    untouchable, rows = _untouchable(model), []
    for name, layer in _candidates(model):
        if nn.parameter.is_lazy(layer.weight):
            rows.append(Row(name, type(layer).__name__, (), 0, None, "lazy: call the model once first"))
            continue
        shape = tuple(layer.weight.shape)
        full = min(shape[0], layer.weight[0].numel())
        reason = untouchable.get(name, "") or _left_out(name, layer, include, exclude)
        rank = None if reason else _rank_of(name, full, keep, ranks, round_to)
        rows.append(Row(name, type(layer).__name__, shape, full, rank, reason))
    return Plan(tuple(rows), core)


def factorize(
    model: Net,
    keep: float = 1.0,
    *,
    include: Iterable[Pattern] | None = None,
    exclude: Iterable[Pattern] = (),
    ranks: Mapping[str, int] | None = None,
    round_to: int = 1,
    core: bool = True,
    dry_run: bool = False,
) -> Net:
    """Replace layers by factored ones in place, starting from their weights (truncated SVD).

    Args:
        model: Any module; it is changed and returned.
        keep: Kept fraction of each layer's full rank ``min(n, m)``, in (0, 1]; 1.0 keeps the function.
        include: Layer types, or patterns of full names such as ``"layer3.*"``; by default every layer.
        exclude: The same, for layers to leave alone.
        ranks: Rank by name pattern; it overrides ``keep`` for the layers that match.
        round_to: Round ranks from ``keep`` up to a multiple of this.
        core: Whether layers get a core S (``U S V^T``) or not (``U V^T``).
        dry_run: Print the plan and change nothing.

    Returns:
        The same model.

    Raises:
        IronrankError: If a pattern matches no layer, keep is not in (0, 1], or a rank is above the layer's.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> factorize(net, keep=0.5, exclude=["2"])[0].rank
        4
    """
    if isinstance(model, tuple(FACTORED)):
        raise IronrankError("a bare layer cannot be replaced in place: pass nn.Sequential(layer)")
    chosen = plan(model, keep, include=include, exclude=exclude, ranks=ranks, round_to=round_to, core=core)
    if dry_run:
        print(chosen)  # what the caller asked for
        return model
    return apply_plan(model, chosen)


def apply_plan(model: Net, chosen: Plan) -> Net:
    """Replace the layers that a plan names; the model is changed and returned.

    Args:
        model: The module that the plan was made for.
        chosen: The plan.

    Returns:
        The same model.

    Raises:
        IronrankError: If a layer has weights that are not finite.
    """
    for name, rank in chosen.ranks.items():
        layer: Any = model.get_submodule(name)
        if not bool(torch.isfinite(layer.weight).all()):
            raise IronrankError(f"layer '{name}' has weights that are not finite: nothing to factorize")
        factored: Any = FACTORED[type(layer)]
        make = factored.from_linear if isinstance(layer, nn.Linear) else factored.from_conv
        new = make(layer, rank, chosen.core)
        for key, parameter in new.named_parameters():  # what was frozen stays frozen
            parameter.requires_grad_(getattr(layer, "bias" if key == "bias" else "weight").requires_grad)
        replace(model, name, new)
    return model


def deploy(model: nn.Module, dense: bool | None = None) -> nn.Module:
    """Return a copy in which every factored layer is plain torch layers: two thin ones, or one dense where smaller.

    Args:
        model: A model, or a factored layer itself.
        dense: True for dense layers everywhere (the merged-weight twin), False for thin pairs everywhere.

    Returns:
        A copy with the same function and no class of this package but what the model itself is made of.
    """
    if isinstance(model, Factored):
        return model.deploy(dense)
    twin = copy.deepcopy(model)
    done: dict[Factored, nn.Module] = {}  # a layer that is shared stays shared
    for name, layer in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(layer, Factored):
            done[layer] = done[layer] if layer in done else layer.deploy(dense)
            replace(twin, name, done[layer])
    return twin


def factored_layers(model: nn.Module) -> list[tuple[str, Factored]]:
    """Return the factored layers of a model with their full names, in the order of the model."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Factored)]


def weighted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return all linear and convolution layers, dense or factored, with their full names."""
    kinds: tuple[type[nn.Module], ...] = (Factored, *FACTORED)
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]


def weight_matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the weight of every linear and convolution layer as a detached matrix (n, m), with full names."""
    found = []
    for name, layer in weighted_layers(model):
        weight: Any = layer.matrix() if isinstance(layer, Factored) else layer.weight
        found.append((name, weight.detach().flatten(1)))
    return found


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one with this full name.

    Args:
        model: The model, changed in place.
        name: Full name of the layer to replace.
        layer: The new one.
    """
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    # each name of a shared module counts, so that sharing is seen
    for name, layer in model.named_modules(remove_duplicate=False):
        if name and isinstance(layer, tuple(FACTORED)):
            yield name, layer


def _left_out(name: str, layer: nn.Module, include: list[Pattern] | None, exclude: list[Pattern]) -> str:
    if include is not None and not any(_matches(name, layer, pattern) for pattern in include):
        return "not included"
    return "excluded" if any(_matches(name, layer, pattern) for pattern in exclude) else ""


def _matches(name: str, layer: nn.Module, pattern: Pattern) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else isinstance(layer, pattern)


def _rank_of(name: str, full: int, keep: float, ranks: Mapping[str, int], round_to: int) -> int:
    given = [rank for pattern, rank in ranks.items() if fnmatchcase(name, pattern)]
    if not given:
        return keep_rank(keep, full, round_to)
    if not 1 <= given[-1] <= full:
        raise IronrankError(f"rank {given[-1]} for layer '{name}': allowed is 1 to {full}, its full rank")
    return given[-1]


def _untouchable(model: nn.Module) -> dict[str, str]:
    """Return, for layers that must stay as they are, the reason."""
    owners = Counter(id(p) for _, module in model.named_modules(remove_duplicate=False)
                     for p in module.parameters(recurse=False))  # fmt: skip
    reasons = {}
    for name, layer in _candidates(model):
        if type(layer) not in FACTORED:
            reasons[name] = f"{type(layer).__name__} is a sub-class that may use its weight otherwise"
        elif "weight" not in layer._parameters:
            reasons[name] = "its weight is parametrized"
        elif any(owners[id(p)] > 1 for p in layer.parameters(recurse=False)):
            reasons[name] = "tied: its weight is shared with another layer"
        elif getattr(layer, "groups", 1) != 1:
            reasons[name] = f"grouped convolution (groups={layer.groups}): each group has a matrix of its own"
        elif any(
            (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
        ):
            reasons[name] = "it carries hooks"
        elif user := _reads_weight(model, name):
            reasons[name] = f"{user} reads its weight instead of calling it"
    return reasons


def _reads_weight(model: nn.Module, name: str) -> str:
    """Return the class of an enclosing module whose code reads ``.weight`` or ``.bias`` of the layer, or nothing."""
    parts = name.split(".")
    for depth in range(len(parts)):
        kind: Any = type(model.get_submodule(".".join(parts[:depth])))
        if kind.__module__.startswith("torch.nn.modules.container"):
            continue
        path = "".join(
            r"(?:\[[^\]]*\]|\.\w+)" if part.isdigit() else rf"\.{re.escape(part)}" for part in parts[depth:]
        )
        if re.search(rf"\bself{path}\.(weight|bias)\b", _forward_source(kind)):
            return kind.__name__
    return ""


@functools.cache
def _forward_source(kind: Any) -> str:
    """Return the source of all methods of a class but its construction, empty where there is none to read."""
    if kind is nn.Module:
        return ""
    texts = []
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        if (
            name.startswith(("__", "reset", "_reset", "init", "_init"))
            or member.__module__ == "torch.nn.modules.module"
        ):
            continue
        try:
            texts.append(inspect.getsource(member))
        except (OSError, TypeError):
            continue
    return "\n".join(texts)
