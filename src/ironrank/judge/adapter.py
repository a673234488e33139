"""The AutoAttack packages: which is installed, how each is called, and what is put right around them.

What we found in pyautoattack 0.2.0:

* fewer than ten classes: APGD-T and FAB-T ask for a tenth class and end in an IndexError; the check only warns;
* FAB calls ``backward`` and leaves gradients in the parameters; every attack reseeds torch's global generator;
* Square never moves a window to the last row or column, writes into the tensor that the model returned, and in L2
  divides by zero on images less than five pixels high;
* `check_dynamic` counts in a global that is never reset, so that one finding marks all later models of the process, and
  takes away a debugger's or coverage's trace function; APGD's first look at its step size compares with a row of zeros;
* `EvaluationState` writes sets as text: a run with ``state_path`` cannot be resumed, it ends in a ValueError;
* it takes gradients apart with `view`, which fails where a net works in channels last;
* the warning about FAB-T's classes states APGD-T's number.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.attacks.losses import margin, targeted_margin
from ironrank.errors import IronrankError

PACKAGES = ("pyautoattack", "autoattack")


def installed(package: str | None) -> tuple[str, Any]:
    """Return the package that is to run.

    Args:
        package: "pyautoattack" or "autoattack"; None for the first one that is there.

    Returns:
        Its name and its module.

    Raises:
        IronrankError: If it is not installed.
    """
    for name in PACKAGES if package is None else (package,):
        with contextlib.suppress(ImportError):
            return name, importlib.import_module(name)
    raise IronrankError(
        f"autoattack needs {package or 'pyautoattack or autoattack'}, which is not installed: "
        "pip install 'ironrank[audit]'"
    )


def named(name: str) -> str:
    """Return a package's name and version, where that is known."""
    try:
        return f"{name} {version_of(name)}"
    except PackageNotFoundError:
        return name


class RowByRow(torch.autograd.Function):
    """Pixels (b, c, h, w) as they are; what comes back lies in memory row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the pixels."""
        return x.contiguous().view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient."""
        return gradients[0].contiguous()


def takes(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a model as the packages can take it: logits of their own, gradients in rows."""
    return lambda x: model(RowByRow.apply(x)).clone()


def run(module: Any, attack: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Run what is left in ``attacks_to_run`` on one batch.

    Args:
        module: The package.
        attack: Its `AutoAttack` object.
        x: Pixels (b, c, h, w).
        y: True classes (b,).

    Returns:
        Pixels (b, c, h, w), and the classes (b,) that the model names there.
    """
    if module.__name__ == "pyautoattack":
        return attack.run_standard_evaluation(x, y, batch_size=len(x))
    return attack.run_standard_evaluation(x, y, bs=len(x), return_labels=True)


def fit(attack: Any, classes: int) -> None:
    """Fit the package's attacks to the number of classes, where it is below ten.

    DLR needs a third class and its targeted form a fourth; where there is none the margin takes its place.

    Args:
        attack: An `AutoAttack` object, changed in place.
        classes: Number of classes.

    Raises:
        IronrankError: If there are fewer than two.
    """
    if classes < 2:
        raise IronrankError(f"autoattack on a model of {classes} class: at least 2 are needed")
    aimed = attack.apgd_targeted
    for part in (aimed, attack.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    if classes < 4:
        aimed.dlr_loss_targeted = lambda logits, y: targeted_margin(logits, y, aimed.y_target)
    if classes < 3:
        attack.apgd.dlr_loss = margin


@contextlib.contextmanager
def listening(module: Any) -> Iterator[io.StringIO]:
    """Collect what the package prints and logs, and clean up behind its check of dynamic models.

    Args:
        module: The package.

    Yields:
        What it says.
    """
    log, trace = io.StringIO(), sys.gettrace()
    logger, handler = logging.getLogger("auto-attack"), logging.StreamHandler(log)
    before = logger.level, logger.propagate
    checks = importlib.import_module(f"{module.__name__}.checks")
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # else an earlier model's findings would count again
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        with contextlib.redirect_stdout(log):
            yield log
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        sys.settrace(trace)
