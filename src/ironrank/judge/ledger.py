"""What an audit has found so far: one small file for each attack on each block of images.

Each file is whole or not there, so that an interrupted audit goes on where it stopped, and several processes can
share the work: a block belongs to the process that first made its claim. The folder carries the question; one that
holds another question is refused.

    audit.partial/question.json           what was asked
    audit.partial/0003-pgd-ce.safetensors what one attack did to one block
    audit.partial/0003.claim              a process works on this block
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.files import read_json, read_tensors, write_json, write_tensors

PARTIAL, ANSWER, SURVIVORS = "audit.partial", "audit.json", "audit.safetensors"
Entry = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and plain values


class Ledger:
    """Entries by block and name, in memory, and in a folder if there is one.

    Args:
        folder: Where the entries are kept; None for memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._entries: dict[tuple[int, str], Entry] = {}

    def get(self, block: int, name: str) -> Entry | None:
        """Return an entry, or None where there is none yet."""
        key = (block, name)
        path = self._path(block, name)
        if key not in self._entries and path is not None and path.is_file():
            tensors, notes = read_tensors(path)
            self._entries[key] = tensors, json.loads(notes.get("notes", "{}"))
        return self._entries.get(key)

    def put(self, block: int, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Entry:
        """Keep an entry.

        Args:
            block: Number of the block.
            name: Name of the attack, or of what else was done.
            tensors: Tensors by name, at least one.
            notes: Plain values.

        Returns:
            The entry.
        """
        entry = {key: tensor.cpu() for key, tensor in tensors.items()}, dict(notes)
        path = self._path(block, name)
        if path is not None:
            write_tensors(path, entry[0], {"notes": json.dumps(entry[1])})
        self._entries[block, name] = entry
        return entry

    def has(self, block: int, name: str) -> bool:
        """Return whether there is an entry."""
        path = self._path(block, name)
        return (block, name) in self._entries or (path is not None and path.is_file())

    def claim(self, block: int) -> bool:
        """Return whether this process may work on a block: true for the first that asks."""
        if self.folder is None:
            return True
        try:
            (self.folder / f"{block:04d}.claim").open("x").close()
        except FileExistsError:
            return False
        return True

    def forget_claims(self) -> None:
        """Let every block be claimed again: no other process is at work."""
        for path in self.folder.glob("*.claim") if self.folder else ():
            path.unlink(missing_ok=True)

    def _path(self, block: int, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{block:04d}-{name}.safetensors"


def open_ledger(out: Path | None, question: dict[str, Any]) -> Ledger:
    """Open the ledger of a folder, fresh or half filled.

    Args:
        out: The folder of the audit; None for memory only.
        question: What is asked, as plain JSON values.

    Returns:
        The ledger.

    Raises:
        IronrankError: If the folder is a file, or holds the audit of another question.
    """
    if out is None:
        return Ledger()
    if out.exists() and not out.is_dir():
        raise IronrankError(f"{out} is a file: name a folder for the audit (--out)")
    there = out / PARTIAL / "question.json"
    if there.is_file():
        _same(out, read_json(there), question)
    else:
        write_json(there, question)
    ledger = Ledger(out / PARTIAL)
    ledger.forget_claims()
    return ledger


def answered(out: Path | None, question: dict[str, Any]) -> dict[str, Any] | None:
    """Return the finished audit of a folder, or None where there is none.

    Args:
        out: The folder; None for none.
        question: What is asked.

    Returns:
        The content of audit.json.
    """
    there = None if out is None else out / ANSWER
    if out is None or there is None or not there.is_file():
        return None
    answer = read_json(there)
    _same(out, answer.get("question", {}) if isinstance(answer, dict) else {}, question)
    return answer


def finish(out: Path, answer: dict[str, Any], survivors: Mapping[str, Tensor]) -> None:
    """Write audit.safetensors and audit.json, and remove what was kept on the way.

    Args:
        out: The folder of the audit.
        answer: The result.
        survivors: For each attack, by name, which images it left standing.
    """
    write_tensors(out / SURVIVORS, survivors, {"question": json.dumps(answer["question"])})
    write_json(out / ANSWER, answer)
    shutil.rmtree(out / PARTIAL, ignore_errors=True)


def _same(out: Path, old: Any, new: dict[str, Any]) -> None:
    old = old if isinstance(old, dict) else {}
    names = [key for key in new if old.get(key) != json.loads(json.dumps(new[key]))]
    if names:
        raise IronrankError(
            f"{out} holds another audit (it differs in {', '.join(names)}): choose another folder (--out)"
        )
