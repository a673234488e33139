"""Pixels as PNG inside a page: written with zlib alone, the same bytes for the same pixels."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np

from ironrank.errors import IronrankError

PREFIX = "data:image/png;base64,"
WIDEST = 96  # pixels; larger images are thinned out
LONGEST = 400_000  # characters of one picture
_PICTURE = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9+/]+={0,2}")


def uri(pixels: np.ndarray) -> str:
    """Return an image as a data URI.

    Args:
        pixels: uint8 (1, h, w), grey, or (3, h, w), colours.

    Returns:
        Text for the ``src`` of an image.
    """
    channels, height, width = pixels.shape
    rows = np.ascontiguousarray(pixels.transpose(1, 2, 0)).reshape(height, width * channels)
    lines = np.concatenate(
        [np.zeros((height, 1), np.uint8), rows], axis=1
    )  # each row begins with its filter: none
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = (_chunk(b"IHDR", head), _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)), _chunk(b"IEND", b""))
    return PREFIX + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode("ascii")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def checked(where: str, value: object) -> str:
    """Return a data URI that stands in a file, if it is a PNG of a size that a page can carry.

    Args:
        where: What is read, for the error message.
        value: The text.

    Returns:
        The same text.

    Raises:
        IronrankError: If it is anything else.
    """
    if not isinstance(value, str) or len(value) > LONGEST or not _PICTURE.fullmatch(value):
        raise IronrankError(
            f"{where}: a PNG as data URI of at most {LONGEST} characters is needed; make it again"
        )
    return value


def thinned(images: np.ndarray) -> tuple[np.ndarray, int]:
    """Keep every k-th pixel of large images, so that none is wider or higher than a page needs.

    Args:
        images: (..., h, w).

    Returns:
        (..., h', w') and k.
    """
    step = -(-max(images.shape[-2:]) // WIDEST)
    return images[..., ::step, ::step], step


def tones(pixels: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 1] as bytes."""
    return (255 * np.nan_to_num(pixels).clip(0, 1)).round().astype(np.uint8)


def signed(change: np.ndarray, largest: float) -> np.ndarray:
    """Return a change as bytes: grey where there is none, white and black at the largest one up and down."""
    return tones(0.5 + 0.5 * change / largest if largest > 0 else np.full_like(change, 0.5))
