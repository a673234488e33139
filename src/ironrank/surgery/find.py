"""Find layers by full name, and put others in their place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ironrank.layers import FACTORED, Factored


def candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the dense layers of a type that can be factored; each name of a shared one counts, so that it is seen."""
    for name, layer in model.named_modules(remove_duplicate=False):
        if name and isinstance(layer, tuple(FACTORED)):
            yield name, layer


def factored_layers(model: nn.Module) -> list[tuple[str, Factored]]:
    """Return the factored layers of a model with their full names, in the order of the model."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Factored)]


def layers_with_core(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the factored layers that hold a core, with their full names."""
    return [(name, layer) for name, layer in factored_layers(model) if layer.S is not None]


def trained_cores(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the factored layers whose core is trained, with their full names: what is frozen is left alone."""
    return [(name, layer) for name, layer in layers_with_core(model) if layer.S.requires_grad]


def weighted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return all linear and convolution layers, dense or factored, with their full names."""
    kinds: tuple[type[nn.Module], ...] = (Factored, *FACTORED)
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]


def last_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the last linear or convolution layer; none where there is but one layer."""
    layers = weighted_layers(model)
    return list(layers[-1][1].parameters()) if len(layers) > 1 else []


def weight_matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the weight of every linear and convolution layer as a detached matrix, with full names.

    A factored layer gives the matrix that it holds in its form, see `ironrank.layers.Factored.matrix`; a dense one
    gives (n, m), outputs first.
    """
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
