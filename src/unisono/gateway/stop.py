"""Where an answer ends because of its words."""

from __future__ import annotations

from collections.abc import Iterable


class StopMatcher:
    """Finds stop strings in text that arrives in pieces.

    The match that is complete first wins, and of those that are complete at the same
    character, the longest: so the result does not depend on how the text was cut into
    pieces. Text that may be the beginning of a match is held back until that is decided.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in dict.fromkeys(stops) if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None so far."""
        return self._matched

    def push(self, text: str) -> str:
        """Take the next piece and return the text that is now certain to be in the answer."""
        if self._matched is not None:
            return ""
        self._held += text
        match = self._first_match()
        if match is not None:
            start, self._matched = match
            decided, self._held = self._held[:start], ""
            return decided
        keep = self._open_length()
        cut = len(self._held) - keep
        decided, self._held = self._held[:cut], self._held[cut:]
        return decided

    def flush(self) -> str:
        """The text has ended: return what was held back for a match that did not come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self) -> tuple[int, str] | None:
        """Start and string of the match that is complete first."""
        found: list[tuple[int, int, str]] = []
        for stop in self._stops:
            start = self._held.find(stop)
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _open_length(self) -> int:
        """Length of the longest tail that is a proper beginning of a stop string."""
        for length in range(min(len(self._held), self._longest - 1), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
