"""Nets of the user's own on the command line: ``MODULE:FUNCTION``, a function without arguments that returns one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ironrank.errors import IronrankError
from ironrank.models import Given


def is_named(text: str) -> bool:
    """Return whether a text has the form ``MODULE:FUNCTION``, and is no path of something that is there."""
    module, _, function = text.partition(":")
    return bool(module and function) and not Path(text).exists()


def named(text: str, what: str) -> nn.Module:
    """Import a module of the user's, call one of its functions and return the net that comes back.

    Args:
        text: ``MODULE:FUNCTION``; the dotted name of the module is looked up in the working folder too.
        what: What it is for, for error messages, such as "audit of".

    Returns:
        The net.

    Raises:
        IronrankError: If there is no such module or function, it fails, or returns something else.
    """
    module, _, function = text.partition(":")
    if not is_named(text):
        raise IronrankError(f"{what} {text!r}: MODULE:FUNCTION is needed, such as mynets:small")
    make = getattr(_imported(module, what), function, None)
    if not callable(make):
        raise IronrankError(f"{what} {text}: module '{module}' has no function '{function}'")
    try:
        net = make()
    except Exception as error:  # it is the user's code: whatever it raises is reported
        raise IronrankError(f"{what} {text}: the function raised {_line(error)}") from None
    if not isinstance(net, nn.Module):
        raise IronrankError(f"{what} {text}: it returned a {type(net).__name__}; a torch.nn.Module is needed")
    return net


def source_of(
    source: nn.Module | Path | str, model: nn.Module | str | None = None
) -> tuple[Path | None, nn.Module | None, dict[str, Any]]:
    """Find out what is to be compressed.

    Args:
        source: A dense module, ``MODULE:FUNCTION``, or a folder.
        model: The dense module of your own that the folder's net is built by, or ``MODULE:FUNCTION``.

    Returns:
        The folder, or None for a module; the module of your own, or None; settings of the run that follow from it.

    Raises:
        IronrankError: If both are a net.
    """
    if isinstance(source, nn.Module) or (isinstance(source, str) and is_named(source)):
        if model is not None:
            raise IronrankError("compress: the source is a net of your own already; leave the model out")
        return None, own(source, "compress"), {}
    given = own(model)
    return Path(source), given, {} if given is None else {"model": Given()}


def own(model: nn.Module | str | None, what: str = "--model") -> nn.Module | None:
    """Return a module of the user's own: itself, or what ``MODULE:FUNCTION`` returns."""
    return named(model, what) if isinstance(model, str) else model


def beside(source: str, method: str) -> Path:
    """Return the folder of a compressed net: beside that of the dense one, or in runs for a function's."""
    if is_named(source):
        return Path("runs", f"{source.partition(':')[2]}-{method}")
    folder = Path(source)
    return folder.with_name(f"{folder.name}-{method}")


def _imported(module: str, what: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise IronrankError(f"{what} module '{module}': {error}; name it as python -m would") from None
    except Exception as error:
        raise IronrankError(f"{what} module '{module}': importing it raised {_line(error)}") from None
    finally:
        sys.path.remove(here)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
