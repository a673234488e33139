"""Weights that stand still for a while: what is built from factors is built once, and no parameter has a gradient.

An attack of k steps calls the same weights k times or more. Inside `frozen` a factored layer builds ``U S``, or its
dense weight, at the first call only, in full precision, and then takes the form that is cheaper without the price of
building it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from ironrank.layers.factored import Factored


@contextmanager
def frozen(model: Callable) -> Iterator[None]:
    """Let no parameter need a gradient, and each factored layer build its weights once, while this lasts.

    The parameters must not change meanwhile.

    Args:
        model: A module; any other callable is left alone.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from ironrank.layers import FactoredLinear
        >>> layer = FactoredLinear(8, 4, rank=2)
        >>> with frozen(layer):
        ...     layer.merged().U is layer.merged().U, layer.U.requires_grad
        (True, False)
        >>> layer.merged().U is layer.merged().U, layer.U.requires_grad
        (False, True)
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    layers = [(module, module._kept) for module in modules if isinstance(module, Factored)]
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    learned = [p for p in parameters if p.requires_grad and p.is_leaf]  # others belong to someone's graph
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        for layer, _ in layers:
            layer._kept = {} if layer._kept is None else layer._kept
        yield
    finally:
        for layer, kept in layers:
            layer._kept = kept
        for parameter in learned:
            parameter.requires_grad_(True)
