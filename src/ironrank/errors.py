"""The one exception that a user's mistake raises: a single line that says what to do."""

from __future__ import annotations


class IronrankError(ValueError):
    """A mistake at the door: what was asked, what is allowed, what to do, in one line.

    The command line prints the message and exits with code 2; a library user catches it as a ``ValueError``.
    """


def nearest(word: str, allowed: list[str]) -> str:
    """Return a hint that names the allowed words, the nearest first.

    Args:
        word: What was asked.
        allowed: What may be asked.

    Returns:
        ``did you mean 'x'? allowed: a, b, x``; without a near match only the list.

    Example:
        >>> nearest("condrl", ["dense", "condlr"])
        "did you mean 'condlr'? allowed: condlr, dense"
    """
    import difflib

    match = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    hint = f"did you mean '{match[0]}'? " if match else ""
    return f"{hint}allowed: {', '.join(sorted(allowed))}"
