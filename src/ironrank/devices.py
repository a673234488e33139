"""Whether torch can compute somewhere."""

from __future__ import annotations

import torch

from ironrank.errors import IronrankError


def check_device(device: str) -> None:
    """Check that torch can compute on a device.

    Args:
        device: Such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        IronrankError: If it cannot.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise IronrankError(f"device={device!r}: torch cannot compute there ({reason}); take cpu") from None
