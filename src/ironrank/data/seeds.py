"""One seed for each purpose: mix a run's seed with words and counters.

Neighbouring seeds and neighbouring steps must not give related noise, so the parts are hashed, not added.
"""

from __future__ import annotations

import hashlib


def mix(seed: int, *numbers: int | str) -> int:
    """Mix a seed with counters, and with words that keep purposes apart, into a new seed.

    ``BLAKE2b("seed,number,...")``, the first 63 bits, so that it fits torch's and numpy's generators.

    Args:
        seed: The run's seed, any integer.
        numbers: Step, epoch, rank; or a word such as ``"noise"``. Their order counts.

    Returns:
        An integer in [0, 2^63), the same on every machine.

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
        >>> mix(0, "epoch", 3)
        1389811231788874807
    """
    text = ",".join(repr(part) for part in (int(seed), *numbers))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
