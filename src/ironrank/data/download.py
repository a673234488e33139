"""Fetch published files: checked against their MD5, in place only when complete.

MD5 is what the authors publish. It tells a broken transfer, not a forged file; the readers trust neither.
"""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ironrank.errors import IronrankError

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without an answer


class Source(NamedTuple):
    """A published file.

    Attributes:
        url: Where it is.
        path: Where it goes, relative to the data folder; for an archive the folder that is in it.
        md5: Its published MD5, in hex.
        archive: Whether it is a tar archive to unpack.
    """

    url: str
    path: str
    md5: str
    archive: bool = False


def download(sources: Iterable[Source], folder: Path) -> None:
    """Fetch what is not there yet.

    Args:
        sources: The files.
        folder: The data folder; made where it is missing.
    """
    for source in sources:
        target = folder / source.path
        if not target.exists():
            _place(source, target)


def _place(source: Source, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one disk.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as temporary:
            fetched = Path(temporary) / "file"
            fetch(source.url, fetched, source.md5)
            (_unpack(fetched, source) if source.archive else fetched).replace(target)
    except OSError as error:
        raise IronrankError(f"{target}: cannot be written ({error.strerror}): name another folder") from None


def fetch(url: str, path: Path, md5: str) -> None:
    """Fetch one file and check it; on failure nothing stays.

    Args:
        url: Where it is.
        path: Where it goes.
        md5: Its MD5, in hex.

    Raises:
        IronrankError: If it cannot be fetched or its MD5 differs.
    """
    partial = path.with_name(path.name + ".part")
    try:
        found = _transfer(url, partial)
        if found != md5:
            raise IronrankError(f"{url}: its MD5 is {found}, expected {md5}: try again, or fetch it by hand")
        partial.replace(path)
    except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
        raise IronrankError(f"{url}: cannot be fetched ({_reason(error)}): try again, or by hand") from None
    finally:
        partial.unlink(missing_ok=True)


def _transfer(url: str, path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open("wb") as file:
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _unpack(archive: Path, source: Source) -> Path:
    # Returns the folder that the source names, unpacked beside the archive.
    if not hasattr(tarfile, "data_filter"):
        raise IronrankError(f"{source.url}: unpacking safely needs Python 3.11.4 or newer: unpack it by hand")
    outside = archive.parent / "unpacked"
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(outside, filter="data")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise IronrankError(f"{source.url}: cannot be unpacked ({_reason(error)})") from None
    inner = outside / Path(source.path).name
    if not inner.is_dir():
        raise IronrankError(f"{source.url}: holds no folder '{inner.name}'")
    return inner
