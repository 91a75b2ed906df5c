"""What calls come to."""

from __future__ import annotations

from dataclasses import dataclass

Log = tuple[bytes, tuple[int, ...], bytes]


@dataclass(frozen=True)
class Outcome:
    """What a call came to. Functions are named as py-evm's are."""

    output: bytes
    good: bool
    reverted: bool
    """Undone by the contract itself, which gives a reason in `output`."""
    gas: int
    refund: int
    logs: tuple[Log, ...]

    def get_gas_used(self) -> int:
        return self.gas

    def get_gas_refund(self) -> int:
        return self.refund

    def get_log_entries(self) -> tuple[Log, ...]:
        """Address, topics and data of each."""
        return self.logs
