"""What a training starts from: a fresh model, the user's own, or an earlier stage."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ironrank.artifact import WHICH, all_finite, read_layout, restore
from ironrank.attacks.base import evaluation_mode
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.files import read_tensors
from ironrank.models import Given
from ironrank.surgery import factored_layers
from ironrank.training.run import Run, read_run


def fresh(run: Run, given: nn.Module | None) -> nn.Module:
    """Return a dense model to start from: freshly built, or a copy of the user's own.

    Args:
        run: The run.
        given: The user's own module, or None.

    Returns:
        A new model.
    """
    return run.model.build(run.data.spec) if given is None else copy.deepcopy(given)


def initial_model(run: Run, start: str | None, given: nn.Module | None = None) -> nn.Module:
    """Return the model that the method of a run is handed first.

    Args:
        run: The run.
        start: Folder or file of the earlier stage; layers that it left factored stay so.
        given: The module of the user's own, where the run's model is `ironrank.models.Given`.

    Returns:
        A new model, on the CPU.

    Raises:
        IronrankError: If the earlier stage is not there or has another architecture.
    """
    model = fresh(run, given)
    if start is None:
        return model
    path = handed_on(Path(start))
    tensors, notes = read_tensors(path)
    layout = read_layout(notes, path)
    try:
        model = restore(model, layout, tensors)
    except IronrankError:
        raise IronrankError(f"start={start}: that run has another architecture than this one") from None
    return all_finite(model, f"start={start}")


def handed_on(start: Path) -> Path:
    """Return the file of the weights that an earlier training hands on.

    Args:
        start: Its folder, or the file itself.

    Returns:
        Those that `kept` names; the best ones where nothing says what run it was, or nothing else is there.
    """
    if not start.is_dir():
        return start
    try:
        file = start / WHICH[kept(read_run(start))]
    except IronrankError:  # no run.json, or settings that only the user's own code knows
        return start / WHICH["best"]
    return file if file.is_file() else start / WHICH["best"]


def kept(run: Run) -> str:
    """Return which weights of a run count, "last" or "best".

    Without an adversary the last: the best by robust validation may be those of an early epoch.
    """
    return "last" if run.objective.threat is None else "best"


def check_model(run: Run, model: nn.Module | None) -> None:
    """Refuse a module that the run does not ask for, or that is factored already.

    Args:
        run: The run.
        model: The user's own module, or None.

    Raises:
        IronrankError: If it is refused.
    """
    if model is None:
        return
    if not isinstance(run.model, Given):
        raise IronrankError(
            f"model=...: the run builds its own, {run.model.label()}; take model=Given() in the run"
        )
    if factored_layers(model):
        raise IronrankError(
            "the module given holds factors: pass the dense one, and start='folder' of ironrank.save(module, 'folder')"
        )


def check_answers(model: nn.Module, images: Images, classes: int) -> None:
    """Refuse a module that does not take the images of a data set, or gives no logits of its classes.

    Args:
        model: The module; its mode is left as it is.
        images: Images of the data set, on its device.
        classes: Their classes.

    Raises:
        IronrankError: If it is refused.
    """
    x = images.pixels(torch.arange(min(2, len(images))))
    need = f"pixels {('b', *x.shape[1:])} in [0, 1] and logits ('b', {classes}) are needed".replace("'", "")
    try:
        with evaluation_mode(model), torch.no_grad():
            logits = model(x)
    except Exception as error:  # it is the user's code: whatever it raises is reported
        said = " ".join(str(error).split())[:200]
        raise IronrankError(f"the module given does not take this data ({said}): {need}") from None
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if (
        not isinstance(logits, Tensor)
        or logits.ndim != 2
        or len(logits) != len(x)
        or logits.shape[1] < classes
    ):
        raise IronrankError(f"the module given answers {len(x)} images by {shape}: {need}")
