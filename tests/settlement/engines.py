"""What contracts can run in."""

from __future__ import annotations

from typing import Any, Protocol

from tests.settlement.outcome import Outcome
from tests.settlement.pyevm import PyEvm
from tests.settlement.world import World


class Engine(Protocol):
    """The state of a chain."""

    chain_id: int
    time: int
    block: int
    hashes: list[bytes]
    """Of the blocks before, newest first."""

    def __init__(self, chain_id: int, time: int) -> None: ...

    def snapshot(self) -> Any:
        """What `restore` goes back to, once."""
        ...

    def restore(self, kept: Any) -> None:
        """Go back to a snapshot."""
        ...

    def code(self, address: bytes) -> bytes:
        """Of a contract."""
        ...

    def store(self, address: bytes, slot: int, value: int) -> None:
        """Overwrite a word of a contract's storage."""
        ...

    def call(self, sender: bytes, to: bytes, data: bytes, gas: int) -> Outcome:
        """Send data to a contract."""
        ...

    def create(self, sender: bytes, at: bytes, code: bytes, gas: int) -> Outcome:
        """Make a contract at an address."""
        ...


class Both:
    """Both engines, which must say the same of every call: results, logs and gas."""

    def __init__(self, chain_id: int, time: int) -> None:
        vars(self)["_engines"] = PyEvm(chain_id, time), World(chain_id, time)

    def __getattr__(self, name: str) -> Any:
        first, second = (getattr(x, name) for x in self._engines)
        if not callable(first):
            assert first == second
            return first

        def both(*arguments: Any) -> Any:
            if name == "snapshot":
                return first(), second()
            if name == "restore":
                return first(arguments[0][0]), second(arguments[0][1])
            found, expected = second(*arguments), first(*arguments)
            assert found == expected, f"{name}: {found}, expected {expected}"
            return found

        return both

    def __setattr__(self, name: str, value: Any) -> None:
        for engine in self._engines:
            setattr(engine, name, value)


ENGINES: dict[str, type[Engine]] = {"py-evm": PyEvm, "translated": World, "both": Both}  # type: ignore[dict-item]
