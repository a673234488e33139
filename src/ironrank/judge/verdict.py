"""The verdict of an audit: a robust accuracy with its interval, or the name of the test that forbids one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ironrank.judge.check import Check
from ironrank.judge.interval import wilson

ROBUST, NOT_PROVEN = "robust", "not proven"


def verdict_of(
    standing: int, n: int, attacks: int, checks: Sequence[Check], more: int = 0, probe: int = 0
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Say what an audit came to.

    Args:
        standing: Images that no attack broke.
        n: Images.
        attacks: Attacks whose worst case that is, on all images.
        checks: The sanity tests.
        more: Attacks beside these that ran on the first images only.
        probe: How many images that are.

    Returns:
        The verdict with ``kind``, ``text`` and ``failed``; and the robust accuracy with ``accuracy``, ``interval`` and
        ``attacks``, or None where a test failed.

    Example:
        >>> verdict_of(90, 100, 12, [])[0]["text"]
        'robust accuracy 90.0 % (worst case over 12 attacks, 100 images, 95 % interval [82.6, 94.5])'
        >>> verdict_of(90, 100, 12, [Check("noise", 0.3, 0.02, "noise broke 30 of 100 images")])[0]["text"]
        'not proven: noise (noise broke 30 of 100 images)'
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        others = f"; also failed: {', '.join(check.name for check in failed[1:])}" if failed[1:] else ""
        text = f"{NOT_PROVEN}: {failed[0].name} ({failed[0].text}){others}"
        return {"kind": NOT_PROVEN, "text": text, "failed": [check.name for check in failed]}, None
    accuracy = standing / n
    low, high = wilson(accuracy, n)
    against = f"{attacks} attacks" + (f" and {more} more on the first {probe}" if more else "")
    text = (
        f"robust accuracy {100 * accuracy:.1f} % (worst case over {against}, {n} images, "
        f"95 % interval [{100 * low:.1f}, {100 * high:.1f}])"
    )
    robust = {"accuracy": accuracy, "interval": [low, high], "attacks": attacks + more}
    return {"kind": ROBUST, "text": text, "failed": []}, robust
