"""Typed access to the answers of a vendor library; what is not of the wanted kind is None."""

from __future__ import annotations

from typing import Any

from willitrun_probe.roots import clean

_SENTINELS = frozenset({2**64 - 1, 2**32 - 1, 2**63 - 1, 2**31 - 1, 0xFFFF, -1})
"""All bits set is how C libraries write "not available"."""


class Answers:
    """The answers about one device, by key."""

    def __init__(self, answers: Any) -> None:
        self._answers: dict[str, Any] = answers if isinstance(answers, dict) else {}

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def values(self, key: str) -> list[Any]:
        """Return the values of an answer; empty when it failed."""
        answer = self._answers.get(key)
        return answer if isinstance(answer, list) else []

    def code(self, key: str) -> int | None:
        """Return the code of a failed answer; None when it succeeded or was never asked."""
        answer = self._answers.get(key)
        return answer if isinstance(answer, int) else None

    def text(self, key: str) -> str | None:
        """Return a string answer, cleaned; None when there is none."""
        values = self.values(key)
        return clean(values[0]) or None if values and isinstance(values[0], str) else None

    def integers(self, key: str) -> list[int]:
        """Return the integer values of an answer; empty when one of them is no integer."""
        values = self.values(key)
        return values if all(isinstance(value, int) and not isinstance(value, bool) for value in values) else []

    def integer(self, key: str) -> int | None:
        """Return an integer answer that is no sentinel."""
        values = self.integers(key)
        return values[0] if values and values[0] not in _SENTINELS and abs(values[0]) < 2**63 else None

    def positive(self, key: str) -> int | None:
        """Return an integer answer above zero that is no sentinel."""
        value = self.integer(key)
        return value if value is not None and 0 < value < 2**31 * 2**31 else None
