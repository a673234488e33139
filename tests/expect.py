"""What tests expect of a mistake: one line that says what is wrong."""

from __future__ import annotations

from ironrank.errors import IronrankError


class refuses:  # read as a verb: `with refuses("epochs"):`
    """Expect an IronrankError of one line that holds all the words.

    Args:
        *words: Parts of the message.
    """

    def __init__(self, *words: str) -> None:
        self.words = words

    def __enter__(self) -> refuses:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        assert kind is IronrankError, f"{kind}: {error}"
        assert "\n" not in str(error)
        for word in self.words:
            assert word in str(error), f"{word!r} not in {error}"
        return True
