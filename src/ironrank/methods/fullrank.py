"""What methods about dense weights share: which layers they take, and their weights as tall matrices.

A weight (n, c, *k) is the matrix (n, c K), outputs first. Whichever side is larger becomes the rows:

    X (a, b), a >= b    W^T of a wide W (fewer outputs than inputs), W of a tall one

so that ``X^T X = I`` says that the rows of a wide W, or the columns of a tall one, are orthonormal: all singular values
of W are 1 in both cases. For a convolution these are the singular values of the matrix, not of the map on images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers import Factored
from ironrank.methods.base import Method
from ironrank.settings import setting
from ironrank.surgery import weighted_layers

ENDS = ("taken", "free")


@dataclass(frozen=True, kw_only=True)
class FullRank(Method):
    """Base of the methods that hold the weights of dense layers to something.

    Attributes:
        exclude: Name patterns of layers to leave alone.
        first: The first layer: "taken" like the others, or "free".
        last: The last layer.
    """

    exclude: tuple[str, ...] = setting((), "name patterns of layers to leave alone")
    first: str = setting("taken", "whether the first layer is taken", choices=ENDS)
    last: str = setting("taken", "whether the last layer is taken", choices=ENDS)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Leave the model as it is.

        Args:
            model: A model with dense layers.

        Returns:
            The same model.

        Raises:
            IronrankError: If there is no layer to take.
        """
        if not self.layers(model):
            raise IronrankError(
                f"{self.label()}: the model has no layer to take: allowed are linear layers and convolutions without "
                "groups, dense, not excluded, whose weight is trained; choose another method, or exclude less"
            )
        return model

    def layers(self, model: nn.Module) -> list[tuple[str, Any]]:
        """Return the layers that the method takes, with their full names.

        Args:
            model: The model.

        Returns:
            Dense linear layers and convolutions without groups, whose weight is a trained parameter; one that several
            layers share counts once.
        """
        found = list(_candidates(model))
        ends = zip((self.first, self.last), (found[:1], found[-1:]), strict=True)
        free = {name for end, rows in ends if end == "free" for name, _ in rows}
        return [row for row in found if row[0] not in free and not self._excludes(row[0])]

    def _excludes(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def weights(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        """Return the weights of the layers that the method takes, as tall matrices that autograd follows.

        Args:
            model: The model.

        Returns:
            Names and matrices X (a, b), a >= b.
        """
        return [(name, tall(layer.weight)) for name, layer in self.layers(model)]


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    trained, seen = {id(p) for p in model.parameters() if p.requires_grad}, set()
    for name, found in weighted_layers(model):
        layer: Any = found
        if isinstance(layer, Factored) or getattr(layer, "groups", 1) > 1:
            continue
        if id(layer.weight) in trained and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            yield name, layer


def tall(weight: Tensor) -> Tensor:
    """Return a weight (n, c, *k) as a matrix (a, b) with a >= b; see the top of this file."""
    matrix = weight.flatten(1)
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT


def as_weight(X: Tensor, weight: Tensor) -> Tensor:
    """Return a tall matrix in the shape of the weight that it was made of by `tall`."""
    n = weight.shape[0]
    matrix = X if X.shape == (n, weight[0].numel()) else X.mT
    return matrix.reshape(weight.shape)
