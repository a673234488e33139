"""Files that are there whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

from ironrank.errors import IronrankError


def write_text(path: Path | str, content: str) -> Path:
    """Write a text file: first beside its place under another name, then moved there in one step.

    Args:
        path: Where to; missing folders are made.
        content: The text, written as UTF-8.

    Returns:
        The path.

    Raises:
        IronrankError: If the file cannot be written; an older file at that place is left as it was.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("x", encoding="utf-8", newline="\n") as file:
            file.write(content)
        draft.replace(target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise IronrankError(
            f"cannot write '{target}': {reason}; choose a path in a writable folder"
        ) from None
    finally:
        _forget(draft)
    return target


def _forget(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:
        return
