"""The run folder, and models that are rebuilt without the method that made them.

    run.json                   the exact configuration
    layout.json                architecture, which layers hold factors (form, rank), which lost channels
    model.safetensors          the weights of the best epoch by robust validation accuracy; the layout too
    last.safetensors           the weights of the last epoch; the layout too
    checkpoint.safetensors     what `--resume` needs: weights, optimizer, method state, progress
    metrics.jsonl              one line for every logged step

Only JSON and safetensors are read: loading a model runs no code that the folder holds. A net is built without memory
for its weights first; it gets some once its shapes are known to be those of the tensors in the file.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironrank import __version__
from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.files import read_tensors, write_json, write_tensors
from ironrank.layers import Factored, factored_kind, narrow, narrowed, width_of
from ironrank.models import MODELS
from ironrank.models.base import Model
from ironrank.settings import decode, encode
from ironrank.surgery import factored_layers, replace

WHICH = {"best": "model.safetensors", "last": "last.safetensors"}
Layout = dict[str, Any]


def layout_of(model: nn.Module, architecture: Model | None = None, spec: DataSpec | None = None) -> Layout:
    """Describe the structure of a model: its architecture, the layers that hold factors, those that lost channels.

    Args:
        model: The model.
        architecture: The settings that build its dense form; None for a module of the user's own.
        spec: The data that it was built for.

    Returns:
        Plain JSON values.
    """
    layers = {name: _entry(layer) for name, layer in factored_layers(model)}
    return {
        "format": 1,
        "ironrank": __version__,
        "model": encode(architecture),
        "spec": None if spec is None else list(spec),
        "layers": layers,
        "widths": {name: {"width": new, "of": old} for name, (new, old) in narrowed(model).items()},
    }


def _entry(layer: Factored) -> dict[str, Any]:
    rank = list(layer.rank) if isinstance(layer.rank, tuple) else layer.rank
    return {"kind": type(layer).__name__, "rank": rank, "core": layer.S is not None, "form": layer.form}


def build(layout: Layout) -> nn.Module:
    """Build the dense model that a layout starts from.

    Args:
        layout: From `layout_of`.

    Returns:
        The freshly initialized model.

    Raises:
        IronrankError: If the layout names no architecture: it belongs to a module of the user's own.
    """
    if not layout.get("model") or not layout.get("spec"):
        raise IronrankError(
            "the layout names no architecture: pass the dense model of your own, "
            "load_model(folder, model=...), or --model"
        )
    try:
        shape, classes, mean, std = layout["spec"]
        spec = DataSpec(tuple(shape), classes, tuple(mean), tuple(std))
        return decode(Model, layout["model"], {Model: MODELS}, "model").build(spec)
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise IronrankError(f"the layout describes no model ({reason}): it is damaged") from None


def restore(
    model: nn.Module, layout: Layout, tensors: dict[str, Tensor], where: str = "the file"
) -> nn.Module:
    """Give a dense model the structure of a layout and load the weights.

    Args:
        model: The dense model, changed in place; on the meta device it gets memory, on the CPU, once all shapes fit.
        layout: From `layout_of`.
        tensors: The ``state_dict``.
        where: Name for error messages.

    Returns:
        The same model.

    Raises:
        IronrankError: If a layer or a tensor is missing, superfluous or of another shape.
    """
    try:
        sizes = layout.get("widths", {})  # layouts of earlier versions have none
        for name, entry in layout["layers"].items():
            replace(model, name, _empty_like(model.get_submodule(name), entry, sizes.get(name)))
        for name, entry in sizes.items():
            if name not in layout["layers"]:
                _narrow(model.get_submodule(name), entry)
        _compare(model.state_dict(), tensors)
        if any(parameter.is_meta for parameter in model.parameters()):
            model.to_empty(device="cpu")
        model.load_state_dict(tensors)
    except (KeyError, AttributeError, RuntimeError, TypeError, IronrankError) as error:
        reason = " ".join(str(error).split())
        raise IronrankError(f"{where} does not fit the model: {reason[:300]}") from None
    return model


def _narrow(layer: nn.Module, entry: dict[str, list[int]]) -> None:
    if entry["of"] != width_of(layer):
        kind, width = type(layer).__name__, width_of(layer)
        raise TypeError(f"the layout narrows a width of {str(entry['of'])[:50]}, and this {kind} has {width}")
    new = entry["width"]
    if not isinstance(new, list) or not new or not all(type(number) is int for number in new):
        raise TypeError(f"the layout says width {str(new)[:50]}, which is none")
    narrow(layer, new)


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Refuse tensors of other names or shapes, by the first one that differs."""
    if other := expected.keys() ^ found.keys():
        name = min(other)
        raise TypeError(f"tensor '{name}' is {'missing' if name in expected else 'superfluous'}")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            sizes = tuple(found[name].shape), tuple(tensor.shape)
            raise TypeError(f"tensor '{name}' has shape {sizes[0]} where the layout needs {sizes[1]}")


def _empty_like(layer: nn.Module, entry: dict[str, Any], narrower: Any) -> Factored:
    if isinstance(layer, Factored):  # given again by a caller whose model is factored already
        raise TypeError("the model given already holds factors; pass the dense one")
    form = entry.get("form", "channel")  # layouts of earlier versions know no other one
    kind = factored_kind(type(layer), form)
    if kind.__name__ != entry["kind"]:
        raise TypeError(f"the layout says {entry['kind']} where the model has {type(layer).__name__}")
    if narrower is not None:
        _narrow(layer, narrower)
    rank = tuple(entry["rank"]) if isinstance(entry["rank"], list) else entry["rank"]
    if not all(isinstance(r, int) for r in (rank if isinstance(rank, tuple) else (rank,))):
        raise TypeError(f"the layout says rank {rank}, which is no number")
    return kind.like(layer, rank, entry["core"], fresh=False, form=form)


def save_model(path: Path, model: nn.Module, layout: Layout) -> None:
    """Write weights and layout into one safetensors file, atomically.

    Args:
        path: The file.
        model: The model.
        layout: From `layout_of`.
    """
    write_tensors(path, model.state_dict(), {"layout": json.dumps(layout)})


def load_model(folder: Path | str, which: str = "best", model: nn.Module | None = None) -> nn.Module:
    """Load a trained model from a run folder, or from one of its safetensors files.

    Args:
        folder: A run folder or a ``.safetensors`` file made by this package.
        which: "best" or "last", for a folder.
        model: The dense model, where the layout names no architecture of this package; it stays as it is.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        IronrankError: If the folder holds no such model, or the file is damaged.
    """
    path = _file(folder, which)
    tensors, notes = read_tensors(path)
    layout = read_layout(notes, path)
    if model is None:
        with torch.device("meta"):
            model = build(layout)
    else:
        model = copy.deepcopy(model)
    return all_finite(restore(model, layout, tensors, str(path)), str(path)).eval()


def of_ones_own(folder: Path | str) -> bool:
    """Return whether a folder, or its safetensors file, is of a module of the user's own: it names no architecture."""
    path = _file(folder, "best")
    return not read_layout(read_tensors(path)[1], path).get("model")


def _file(folder: Path | str, which: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        return path
    if which not in WHICH:
        raise IronrankError(f"which={which!r}: allowed is {', '.join(WHICH)}")
    return path / WHICH[which]


def all_finite(model: nn.Module, where: str) -> nn.Module:
    """Refuse weights with which nothing can be computed.

    Args:
        model: The model.
        where: What it was read from.

    Returns:
        The same model.

    Raises:
        IronrankError: If a weight is infinite or not a number.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise IronrankError(
                f"{where}: weights of '{name}' are not finite; train again or take another file"
            )
    return model


def read_layout(notes: dict[str, str], path: Path) -> Layout:
    """Return the layout kept in the header of a safetensors file.

    Args:
        notes: The header's notes.
        path: The file, for error messages.

    Returns:
        The layout.

    Raises:
        IronrankError: If there is none.
    """
    try:
        layout = json.loads(notes["layout"])
    except (KeyError, ValueError, RecursionError):
        layout = None
    parts = [layout.get("layers"), layout.get("widths", {})] if isinstance(layout, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise IronrankError(f"{path} carries no layout: it was not written by ironrank, or is damaged")
    if layout.get("format") != 1:
        raise IronrankError(f"{path} has layout format {layout.get('format')}: this version reads format 1")
    return layout


def save(model: nn.Module, folder: Path | str) -> Path:
    """Save any factorized model: ``layout.json`` and ``model.safetensors``.

    Load it with ``load_model(folder, model=dense)``, where ``dense`` is the same network before it was factorized.

    Args:
        model: The model.
        folder: Where to; made if needed.

    Returns:
        The folder.
    """
    layout = layout_of(model)
    save_model(Path(folder) / WHICH["best"], model, layout)
    write_json(Path(folder) / "layout.json", layout)
    return Path(folder)
