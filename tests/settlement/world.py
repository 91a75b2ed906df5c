"""A chain's state whose contracts run as translated code: some ten times as fast as py-evm.

It is no second opinion on what an EVM is: `test_world.py` compares it with py-evm, call by call.
"""

from __future__ import annotations

from typing import Any

from tests.settlement.frames import Exceptional, Frame, words
from tests.settlement.outcome import Log, Outcome
from tests.settlement.translation import Program, program

MAX_CODE = 24_576
"""Bytes of a contract (EIP-170)."""
Mark = tuple[int, int, int]


class World:
    """Contracts, their storage, and a journal by which any change is undone."""

    def __init__(self, chain_id: int, time: int) -> None:
        self.chain_id, self.time, self.block = chain_id, time, 1
        self.hashes: list[bytes] = []
        """Of the blocks before, newest first."""
        self.origin = 0
        self.codes: dict[int, bytes] = {}
        self.storage: dict[tuple[int, int], int] = {}
        self.transient: dict[tuple[int, int], int] = {}
        self.logs: list[Log] = []
        self.refund = 0
        self._warm: dict[Any, bool] = dict.fromkeys(range(18), True)
        """Accounts and slots that were looked at; those of the chain itself
        (the beneficiary 0 of blocks, and 1 to 17) always were."""
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []

    def program(self, code: bytes) -> Program:
        """The translation of code."""
        return program(code)

    def hash_of(self, block: int) -> int:
        """The hash of one of the last 256 blocks, else 0."""
        depth = self.block - block - 1
        return int.from_bytes(self.hashes[depth], "big") if 0 <= depth < len(self.hashes) else 0

    def warm(self, place: Any) -> bool:
        """Whether an account or a slot was looked at before; from now on it was."""
        if place in self._warm:
            return True
        self.set(self._warm, place, True)
        return False

    def set(self, part: dict[Any, Any], key: Any, value: Any) -> None:
        """Change the state so that it can be undone; None removes."""
        self._journal.append((part, key, part.get(key)))
        if value is None:
            part.pop(key, None)
        else:
            part[key] = value

    def mark(self) -> Mark:
        """What `undo` goes back to."""
        return len(self._journal), len(self.logs), self.refund

    def undo(self, mark: Mark) -> None:
        """Go back to a mark."""
        length, logs, self.refund = mark
        while len(self._journal) > length:
            part, key, value = self._journal.pop()
            if value is None:
                part.pop(key, None)
            else:
                part[key] = value
        del self.logs[logs:]

    snapshot, restore = mark, undo

    def code(self, address: bytes) -> bytes:
        """Of a contract."""
        return self.codes.get(int.from_bytes(address, "big"), b"")

    def store(self, address: bytes, slot: int, value: int) -> None:
        """Overwrite a word."""
        self.set(self.storage, (int.from_bytes(address, "big"), slot), value)

    def call(self, sender: bytes, to: bytes, data: bytes, gas: int) -> Outcome:
        """Send data to a contract."""
        return self._run(sender, to, data, self.code(to), gas, False)

    def create(self, sender: bytes, at: bytes, code: bytes, gas: int) -> Outcome:
        """Make a contract at an address."""
        return self._run(sender, at, b"", code, gas, True)

    def _run(
        self, sender: bytes, to: bytes, data: bytes, code: bytes, gas: int, create: bool
    ) -> Outcome:
        self.logs, self.refund = [], 0
        self.origin, place = (int.from_bytes(x, "big") for x in (sender, to))
        mark = self.mark()
        frame = Frame(self, place, self.origin, data, code, gas, False, 0)
        good = False
        try:
            if create:
                frame.charge(2 * words(len(code)))
            good = frame.run()
            if create and good:
                if len(frame.output) > MAX_CODE or frame.output.startswith(b"\xef"):
                    raise Exceptional("no contract")
                frame.charge(200 * len(frame.output))
                self.set(self.codes, place, frame.output)
        except Exceptional:
            self.undo(mark)
            good, frame.gas, frame.output = False, 0, b""
        for key in list(self.transient):
            self.set(self.transient, key, None)
        used, refund = gas - frame.gas, self.refund
        return Outcome(frame.output, good, frame.undone, used, refund, tuple(self.logs))
