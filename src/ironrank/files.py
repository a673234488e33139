"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ironrank.errors import IronrankError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a temporary file in the same folder and move that to ``path``.

    Args:
        path: Where the file shall be.
        write: Writes the whole file to the path it is given.

    Raises:
        IronrankError: If the folder cannot be written to; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise IronrankError(f"cannot write {path}: {error.strerror}; choose another folder") from None
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise IronrankError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers that JSON does not know become null.

    Args:
        path: Where the file shall be.
        value: Dicts, lists, text and numbers.
    """
    write_text(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def plain_json(value: Any) -> Any:
    """Return the value with what JSON cannot say replaced: infinities and NaN by null, tuples by lists."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        IronrankError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IronrankError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise IronrankError(f"{path} is damaged: not JSON ({error}); restore it or run again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Args:
        path: Where the file shall be.
        tensors: Tensors by name, on any device.
        notes: Text kept in the file's header.
    """
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        ready[name] = tensor.clone() if tensor.data_ptr() in seen else tensor  # tied tensors are stored twice
        seen.add(tensor.data_ptr())
    write_atomically(path, lambda temporary: save_file(ready, temporary, dict(notes or {})))


def read_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.
        device: Where the tensors go.

    Returns:
        The tensors by name, and the notes of the header.

    Raises:
        IronrankError: If it is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise IronrankError(f"no file {path}: train first, or name the right run folder")
    try:
        with safe_open(path, "pt", device=device) as opened:
            names = list(opened.keys())
            return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise IronrankError(
            f"{path} is damaged or no safetensors file ({error}); restore it or train again"
        ) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file such as ``metrics.jsonl``.

    Args:
        path: The file; a missing one counts as empty.

    Returns:
        One dict a line.

    Raises:
        IronrankError: If a line is damaged.
    """
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise IronrankError(f"{path} is damaged: not JSON ({error}); train again") from None
    if not all(isinstance(line, dict) for line in lines):
        raise IronrankError(f"{path} is damaged: a line is no JSON object; train again")
    return lines
