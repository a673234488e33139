r"""Exact limits on a probability of which k successes in n draws are known (Clopper and Pearson, 1934).

The lower limit at confidence 1 - alpha is the p at which k or more successes have the probability alpha, a quantile
of a beta distribution:

    sum_{i >= k} C(n, i) p^i (1 - p)^(n - i) = alpha

It is found by bisection on the sum itself, taken in logarithms, so that no special function has to be trusted. The sum
grows with p; the lower end of the last interval is returned, so that what rounding is left makes the limit smaller.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_SAFETY = 1e-6  # of alpha: the logarithms of factorials are off by 1e-9 at n = 1e6


def log_upper_tail(k: int, n: int, p: float) -> float:
    """Return the logarithm of the probability of k or more successes in n draws.

    Args:
        k: Successes, from 0 to n.
        n: Draws.
        p: Probability of a success, above 0 and below 1.

    Returns:
        The logarithm; 0 for ``k = 0``.

    Example:
        >>> round(math.exp(log_upper_tail(2, 3, 0.5)), 12)
        0.5
    """
    if k == 0:
        return 0.0
    i = torch.arange(k, n + 1, dtype=torch.float64)
    terms = _log_choose(n)[k:] + i * math.log(p) + (n - i) * math.log1p(-p)
    return torch.logsumexp(terms, 0).item()


@functools.lru_cache(maxsize=4)
def _log_choose(n: int) -> Tensor:
    i = torch.arange(n + 1, dtype=torch.float64)
    return math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)


@functools.lru_cache(maxsize=4096)
def lower_limit(k: int, n: int, alpha: float) -> float:
    """Return the lower Clopper-Pearson limit of a probability, one-sided.

    Args:
        k: Successes, from 0 to n.
        n: Draws, at least 1.
        alpha: Probability that the limit is above the truth, at most.

    Returns:
        The limit, in [0, 1).

    Example:
        >>> round(lower_limit(100, 100, 0.001), 6)  # alpha^(1 / n)
        0.933254
    """
    if k == 0:
        return 0.0
    target = math.log(alpha) - _SAFETY
    low, high = 0.0, k / n  # at k / n the tail is about a half
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-12:
        if log_upper_tail(k, n, middle) <= target:
            low = middle
        else:
            high = middle
    return low
