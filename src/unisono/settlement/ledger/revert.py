"""Why a contract said no: the data of a revert as words."""

from __future__ import annotations

from unisono.errors import TransactionRefused

_ERROR = bytes.fromhex("08c379a0")  # Error(string)
_PANIC = bytes.fromhex("4e487b71")  # Panic(uint256)
_LONGEST = 512


class Reverted(TransactionRefused):
    """A contract reverted. `data` is what it gave as the reason."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"the contract refused: {revert_reason(data)}")
        self.data = data


def revert_reason(data: bytes) -> str:
    """The reason in a revert's data: Solidity's and Vyper's `Error(string)` as its text, `Panic`
    by number, anything else in hexadecimal; cut to 512 characters, without control characters."""
    if not data:
        return "it gave no reason"
    if data[:4] == _ERROR and (text := _string(data[4:])) is not None:
        return text
    if data[:4] == _PANIC and len(data) == 36:
        return f"panic {int.from_bytes(data[4:])}"
    return "0x" + data[: _LONGEST // 2].hex()


def _string(data: bytes) -> str | None:
    """The ABI form of one string: offset 32, length, bytes."""
    if len(data) < 64 or int.from_bytes(data[:32]) != 32:
        return None
    length = int.from_bytes(data[32:64])
    if length > len(data) - 64:
        return None
    text = data[64 : 64 + min(length, _LONGEST)].decode("utf-8", "replace")
    return "".join(c for c in text if c.isprintable())
