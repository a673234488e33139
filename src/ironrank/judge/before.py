"""What a training began with: the earlier stage, or the first weights, drawn again from the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ironrank.artifact import WHICH, load_model
from ironrank.data import mix
from ironrank.judge.evaluate import describe_layer
from ironrank.surgery import weighted_layers
from ironrank.training.run import Run, read_run
from ironrank.training.start import handed_on, initial_model


def before(folder: Path | str) -> dict[str, Any]:
    """Describe the layers of the net that the method of a run was handed first.

    Args:
        folder: The run folder.

    Returns:
        ``what`` it was, in words, and ``layers``: ``name``, ``shape``, ``rank``, ``cond`` and ``singular_values`` of
        each. A run whose earlier stage is gone, or whose net nobody can build, raises an `IronrankError`.
    """
    folder = Path(folder)
    run = read_run(folder)
    what, model = _first(folder, run)
    kept = ("name", "kind", "shape", "rank", "full_rank", "cond", "singular_values")
    layers = (describe_layer(name, layer) for name, layer in weighted_layers(model))
    return {"what": what, "layers": [{key: layer[key] for key in kept} for layer in layers]}


def _first(folder: Path, run: Run) -> tuple[str, nn.Module]:
    if (folder / "start" / WHICH["best"]).is_file() or isinstance(run.start, Run):
        method = read_run(folder / "start").method.name
        return f"earlier stage ({method})", load_model(handed_on(folder / "start"))
    if run.start is not None:
        return f"net it started from ({Path(run.start).name})", load_model(handed_on(Path(run.start)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(run.seed, "init"))
        return "first weights, drawn from the seed", initial_model(run, None)
