"""A table that never grows beyond a bound: what was written longest ago is forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """At most `limit` entries, in the order in which they were written."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[_K, _V] = OrderedDict()

    def get(self, key: _K) -> _V | None:
        """The entry of `key`, or None."""
        return self._entries.get(key)

    def put(self, key: _K, value: _V) -> None:
        """Write an entry; the oldest makes room for it."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self.limit:
            self._entries.popitem(last=False)

    def drop(self, key: _K) -> None:
        """Forget an entry, if there is one."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def items(self) -> Iterator[tuple[_K, _V]]:
        """Every entry, the oldest first."""
        return iter(tuple(self._entries.items()))

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)
