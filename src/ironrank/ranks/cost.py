"""What a layer costs in each of its forms: stored numbers, multiply-adds, bytes.

A layer in its deployed form is a chain of plain torch layers; each holds so many weights and uses every one of them at
so many positions. With n outputs, c inputs, kernel k = k_1 x ... x k_d of K = k_1 ... k_d positions:

    form       weights of the chain                positions
    dense      n c K                               out
    channel    r c K,  r n                         out, out
    spatial    r c k_1,  r n k_2                   between, out        (two dimensions only)
    tucker2    c r_2,  r_1 r_2 K,  n r_1           into, out, out

    into, out    positions of the layer's input and output, for one example (1 x 1 for a linear layer on vectors)
    between      rows of the output times columns of the input: what the k_1 x 1 convolution leaves

Biases are the same in every form and are counted with the rest of the model.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ironrank.attacks.base import evaluation_mode
from ironrank.errors import IronrankError
from ironrank.layers.forms import FORMS, natural_form, parts

Array = NDArray[Any]


class Site(NamedTuple):
    """A layer that may become low-rank, and where it acts.

    Attributes:
        name: Full name in the model.
        shape: Shape of the weight, outputs first.
        itemsize: Bytes of a number.
        into: Positions of the input, for one example.
        between: Rows of the output times columns of the input, for a convolution in two dimensions.
        out: Positions of the output.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int = 4
    into: int = 1
    between: int = 1
    out: int = 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel size, () for a linear layer."""
        return self.shape[2:]

    def forms(self, wish: str = "auto") -> tuple[str, ...]:
        """Return the forms that this layer has under a wish; where it lacks the wished one, the channel form.

        Args:
            wish: "channel", "spatial", "tucker2", or "auto" for all.

        Returns:
            Names of forms, see `ironrank.layers.natural_form`.
        """
        check_wish(wish)
        wished = FORMS if wish == "auto" else (wish,)
        return tuple(dict.fromkeys(natural_form(form, self.shape) for form in wished))


# From a layer, a form, and ranks (k, 2) to k costs; a form of one rank reads the first column, "dense" none.
Cost = Callable[[Site, str, Array], Array]
DENSE = np.zeros((1, 2), dtype=np.int64)


def check_wish(form: str) -> None:
    """Refuse a word that names no form.

    Args:
        form: What was asked.

    Raises:
        IronrankError: If it is neither a form nor "auto".
    """
    if form not in (*FORMS, "auto"):
        raise IronrankError(f"form={form!r}: allowed is {', '.join(FORMS)}, auto")


def _terms(site: Site, form: str, ranks: Array) -> list[tuple[Any, int]]:
    if form == "dense":
        return [(np.full(len(ranks), math.prod(site.shape)), site.out)]
    rank: Any = (ranks[:, 0], ranks[:, 1]) if form == "tucker2" else ranks[:, 0]
    first, rest = parts(site.shape, form, rank)  # for all ranks at once
    return [
        (first, {"channel": site.out, "spatial": site.between, "tucker2": site.into}[form]),
        (rest, site.out),
    ]


def params(site: Site, form: str, ranks: Array) -> Array:
    """Return the weights that a layer stores in a form, for each row of ranks (k, 2).

    Example:
        >>> site = Site("conv", (64, 32, 3, 3))
        >>> params(site, "dense", DENSE), params(site, "tucker2", np.array([[8, 4]]))
        (array([18432]), array([928]))
    """
    return sum(weights for weights, _ in _terms(site, form, ranks))


def macs(site: Site, form: str, ranks: Array) -> Array:
    """Return the multiply-adds of a layer in a form for one example, for each row of ranks (k, 2)."""
    return sum(weights * positions for weights, positions in _terms(site, form, ranks))


def nbytes(site: Site, form: str, ranks: Array) -> Array:
    """Return the bytes that a layer's weights take in a form, for each row of ranks (k, 2)."""
    return site.itemsize * params(site, form, ranks)


COSTS: dict[str, Cost] = {"params": params, "macs": macs, "bytes": nbytes}


def first_of(example: Any) -> Any:
    """Return the first example of a batch, as a batch of one; of a tuple or dict of batches, of each."""
    if isinstance(example, dict):
        return {name: x[:1] for name, x in example.items()}
    return tuple(x[:1] for x in example) if isinstance(example, tuple) else example[:1]


@torch.no_grad()
def call(model: nn.Module, example: Any) -> Any:
    """Call a model in evaluation mode, without gradients.

    Args:
        model: The model.
        example: Its input, or a tuple of inputs.

    Returns:
        What it returns.
    """
    with evaluation_mode(model):
        return model(*example) if isinstance(example, tuple) else model(example)


def input_of(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Return the input of a layer that was called as ``layer(x)`` or ``layer(input=x)``.

    Args:
        args: What a hook is given.
        named: The same by name.

    Returns:
        The input.
    """
    return args[0] if args else next(iter(named.values()))


def sites(model: nn.Module, names: Iterable[str], example: Any = None) -> list[Site]:
    """Describe layers, and count the positions at which they act on the first example.

    Args:
        model: The model, dense in these layers.
        names: Full names of linear and convolution layers.
        example: Input of the model, a batch, or a tuple of them; without it positions are 1, which is enough for
            stored parameters and bytes. A layer that is called several times has the sum of its positions.

    Returns:
        One site for each name, in this order.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, named, out, name=name: found[name].append(
                _where(input_of(args, named), out, layer)
            ),
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    try:
        if example is not None:
            call(model, first_of(example))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        _site(name, layer, found[name] if example is not None else [(1, 1, 1)])
        for name, layer in layers.items()
    ]


def _site(name: str, layer: Any, calls: list[tuple[int, int, int]]) -> Site:
    positions = [sum(counts) for counts in zip(*calls, strict=True)] if calls else [0, 0, 0]
    return Site(name, tuple(layer.weight.shape), layer.weight.element_size(), *positions)


def _where(x: Tensor, out: Tensor, layer: Any) -> tuple[int, int, int]:
    n, c = layer.weight.shape[:2]
    into, after = x.numel() // c, out.numel() // n
    dims = layer.weight.ndim - 2
    return into, after // out.shape[-1] * x.shape[-1] if dims == 2 else after, after


def count_macs(model: nn.Module, example: Any) -> int:
    """Count the multiply-adds of the model for the first example, from the operations that really run.

    Args:
        model: The model.
        example: Its input, a batch, or a tuple of them.

    Returns:
        Half of torch's FLOP count.
    """
    with _in_small_operations(), FlopCounterMode(display=False) as counter:
        call(model, first_of(example))
    return counter.get_total_flops() // 2


@contextmanager
def _in_small_operations() -> Iterator[None]:
    """Let attention and recurrent layers run in operations that are counted, and not as one that is not."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for library in libraries:
        library.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


def shapes_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device; unlike after ``to("meta")``, what was shared still is."""
    held = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(p): _shape_of(p) for p in held})


def _shape_of(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def count_params(model: nn.Module) -> int:
    """Return the numbers in all parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers of a model, shared ones once; a file adds its header."""
    held = [value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)]
    tensors = {tensor.data_ptr() or id(tensor): tensor for tensor in held}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
