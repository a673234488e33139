"""How far an accuracy on n images can be trusted: Wilson's interval and Newcombe's rule for a difference."""

from __future__ import annotations

import math

Z = 1.959964  # 97.5 % quantile of the normal distribution: two-sided 95 %


def wilson(p: float, n: int, z: float = Z) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    ``(p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)``; unlike ``p ± z sqrt(p (1 - p) / n)`` it is
    right near 0 and 1, where robust accuracies live (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Args:
        p: The measured proportion, in [0, 1].
        n: The number of images, at least 1.
        z: The quantile; the default gives 95 %.

    Returns:
        Lower and upper limit, in [0, 1].

    Example:
        >>> [round(x, 3) for x in wilson(0.5, 100)]
        [0.404, 0.596]
    """
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def exceeds(higher: float, lower: float, n_higher: int, n_lower: int) -> bool:
    """Return whether one accuracy lies above another by more than the noise of n images.

    Newcombe's interval of a difference of proportions, built from the two Wilson intervals, lies above zero:
    ``d > sqrt((p - l)² + (u - q)²)`` for the higher p >= l and the lower q <= u (Newcombe 1998, Stat. Med.
    17:873, method 10). It takes the samples as independent; the same images behind both make it cautious.

    Args:
        higher: The accuracy that should be the higher one, in [0, 1].
        lower: The other one, in [0, 1].
        n_higher: Images behind the first.
        n_lower: Images behind the second.

    Returns:
        True where the difference is more than noise.

    Example:
        >>> exceeds(0.52, 0.50, 100, 100), exceeds(0.52, 0.50, 10_000, 10_000)
        (False, True)
    """
    low, high = wilson(higher, n_higher)[0], wilson(lower, n_lower)[1]
    return higher - lower > math.hypot(higher - low, high - lower)
