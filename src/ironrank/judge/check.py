"""A sanity test and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """What one sanity test found; it is passed where the value is at most the limit.

    Attributes:
        name: Name of the test, as the verdict states it.
        value: What was measured; infinite where the test could not be made.
        limit: The largest value that passes.
        text: One sentence that says what was measured.
    """

    name: str
    value: float
    limit: float
    text: str

    @property
    def passed(self) -> bool:
        """Whether the value is a number and at most the limit."""
        return self.value <= self.limit

    def plain(self) -> dict[str, Any]:
        """Return it as audit.json states it."""
        return {"name": self.name, "passed": self.passed, "value": self.value, "limit": self.limit,
                "text": self.text}  # fmt: skip


def check_of(plain: dict[str, Any]) -> Check:
    """Return the test that `Check.plain` wrote; a value that is null was infinite."""
    value = float("inf") if plain["value"] is None else plain["value"]
    return Check(plain["name"], value, plain["limit"], plain["text"])
