"""An audit of what a command line names: what is left out is taken from the run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from ironrank.attacks.threat import check_radius
from ironrank.data import DATASETS, Dataset
from ironrank.errors import IronrankError, nearest
from ironrank.judge.audit import audit
from ironrank.judge.targets import open_target
from ironrank.own import own
from ironrank.shell import command_line


def audit_named(
    what: Path | str,
    *,
    dataset: str | None = None,
    data: Path | str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    out: Path | str | None = None,
    model: nn.Module | str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Audit what a command line names; what is left out is taken from the run, where there is one.

    Args:
        what: A run folder, a ``.onnx`` file, or ``"module:function"``.
        dataset: Name of the data set; by default that of the run.
        data: Folder with its files; by default that of the run.
        norm: ``Linf`` or ``L2``; by default that of the run's validation attack, or ``Linf``.
        eps: Radius, pixel units; by default that of the run's validation attack.
        out: Folder of the audit; by default the run folder, or NAME-audit.
        model: The dense module of your own, or ``MODULE:FUNCTION``, where a run folder's model is ``given``.
        **options: Further arguments of `audit`.

    Returns:
        What `audit` returns.

    Raises:
        IronrankError: If something is neither given nor known.
    """
    target = open_target(what, model=own(model))
    run = target.run
    if eps is None and run is None:
        raise IronrankError(f"audit of {what}: a radius is needed, such as --eps 8/255")
    chosen = _dataset(what, dataset, data, run.data if run else None)
    if run is not None:
        eps, norm = (run.validate.eps if eps is None else eps), norm or run.validate.norm
    assert eps is not None
    check_radius(norm or "Linf", eps)
    folder = Path(out) if out else Path(what) if Path(what).is_dir() else Path(f"{target.name}-audit")
    command = command_line(
        "audit", what, dataset=chosen.name, data=data, norm=norm or "Linf", eps=eps,
        **{options.get("level") or "quick": True}, n=options.get("n"), seed=options.get("seed") or 0,
        twin=options.get("twin"), model=model, out=out,
        device=None if (device := options.get("device")) in (None, "cpu") else device,
    )  # fmt: skip
    return audit(target, chosen, norm=norm or "Linf", eps=eps, out=folder, command=command, **options)


def _dataset(what: Path | str, name: str | None, folder: Path | str | None, known: Dataset | None) -> Dataset:
    if name is not None and name not in DATASETS:
        raise IronrankError(f"data set '{name}': {nearest(name, list(DATASETS))}")
    if name is None and known is None:
        raise IronrankError(f"audit of {what}: a data set is needed, such as --dataset mnist")
    place: dict[str, Any] = {} if folder is None else {"folder": str(folder)}
    if known is not None and name in (None, known.name):
        return dataclasses.replace(known, **place)
    assert name is not None
    return DATASETS[name](**place)
