"""The net and the test images of a run folder, and the weakness map of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ironrank.artifact import load_model
from ironrank.data import Images
from ironrank.files import plain_json, write_json, write_tensors
from ironrank.judge.weakness import weakness
from ironrank.own import own
from ironrank.shell import folder_command
from ironrank.training.run import read_run
from ironrank.training.start import handed_on

WEAKNESS = "weakness.json"
DIRECTIONS = "weakness.safetensors"


class Opened(NamedTuple):
    """A net as trained, test images on its device, and what they are in words."""

    net: nn.Module
    images: Images
    data: str


def opened(
    folder: Path | str,
    n: int,
    *,
    which: str = "best",
    data: Path | str | None = None,
    device: str = "cpu",
    model: nn.Module | str | None = None,
) -> Opened:
    """Load what a run folder holds.

    Args:
        folder: Run folder.
        n: Number of test images, the first ones; 0 for all.
        which: "best" or "last".
        data: Folder with the data; by default the one that the run used.
        device: Where to compute.
        model: The dense module of your own, or ``MODULE:FUNCTION``, where the run's model is ``given``; a copy is used.

    Returns:
        The net, the images, and a description of them.
    """
    folder, model = Path(folder), own(model)
    run = read_run(folder)
    dataset = run.data if data is None else dataclasses.replace(run.data, folder=str(data))
    net = load_model(folder, which, model).to(device)
    images = dataset.load("test")
    images = (images.first(n) if n else images).to(device)
    return Opened(net, images, f"{run.data.name}, first {len(images)} test images")


def weakness_folder(
    folder: Path | str,
    *,
    before: Path | str | None = None,
    n: int = 200,
    which: str = "best",
    data: Path | str | None = None,
    device: str = "cpu",
    model: nn.Module | str | None = None,
    save: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Map the sensitivity of the net of a run folder.

    Args:
        folder: Run folder.
        before: Folder of a net of the same architecture whose layers are compared; by default the earlier stage of the
            run, in ``start``, if there is one.
        n: Number of test images, the first ones; 0 for all.
        which: "best" or "last".
        data: Folder with the data; by default the one that the run used.
        device: Where to compute.
        model: The dense module of your own, or ``MODULE:FUNCTION``, where the run's model is ``given``.
        save: Whether to write ``weakness.json`` and, with the directions, ``weakness.safetensors`` into the folder.
        **options: Further arguments of `ironrank.judge.weakness.weakness`.

    Returns:
        The plain values of `ironrank.judge.weakness.weakness`, and ``schema``, ``name``, ``before``, ``data``,
        ``which``, ``command``.
    """
    folder, given = Path(folder), own(model)
    net, images, what = opened(folder, n, which=which, data=data, device=device, model=given)
    start = folder / "start"
    before = start if before is None and (start / "run.json").is_file() else before
    earlier = None if before is None else load_model(handed_on(Path(before)), model=given).to(device)
    found, arrays = weakness(net, images, before=earlier, **options)
    head = {
        "schema": 1,
        "name": folder.resolve().name,
        "before": None if before is None else str(before),
        "data": what,
        "which": which,
        "command": folder_command(
            "weakness", folder, which=which, data=data, model=model, device=device, n=len(images), seed=found["seed"],
            norm=options.get("norm"), eps=options.get("eps"), before=None if before == start else before,
        ),
    }  # fmt: skip
    result = plain_json(head | found)
    if save:
        write_json(folder / WEAKNESS, result)
        write_tensors(folder / DIRECTIONS, arrays)
    return result
