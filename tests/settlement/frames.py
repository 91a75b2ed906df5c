"""What translated blocks do to a frame: memory, storage, logs and calls, with their gas.

A frame is the run of one contract's code for one call. The names here are those that blocks use
(see `translation`). Contracts send no coins of the chain itself and create no contracts.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from coincurve import PublicKey
from eth_hash.auto import keccak as _keccak

WORD = 2**256 - 1
SIGN = 2**255
ZERO = b"\0"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ADDRESS = 2**160 - 1
MAX_DEPTH = 1_024
number = int.from_bytes


class Exceptional(Exception):
    """Code did what ends it without a result and costs all of its gas."""


class Frame:
    """The run of a contract's code."""

    __slots__ = (
        *("world", "address", "sender", "data", "code", "gas", "static", "depth"),
        *("stack", "memory", "returned", "output", "undone"),
    )

    def __init__(
        self,
        world: Any,
        address: int,
        sender: int,
        data: bytes,
        code: bytes,
        gas: int,
        static: bool,
        depth: int,
    ) -> None:
        self.world, self.address, self.sender, self.data = world, address, sender, data
        self.code, self.gas, self.static, self.depth = code, gas, static, depth
        self.stack: list[int] = []
        self.memory = bytearray()
        self.returned = self.output = b""
        self.undone = False
        """Ended by a revert."""

    def run(self) -> bool:
        """Run the code; whether its changes stay."""
        world = self.world
        mark = world.mark()
        try:
            program = world.program(self.code)
            block = program.start
            while (place := block(self)) >= 0:
                block = program.blocks.get(place) or program.block(place)
                if block is None:
                    raise Exceptional("a jump to nowhere")
            good = not self.undone
        except (Exceptional, IndexError):  # an index: too few words on the stack
            good, self.gas, self.output = False, 0, b""
        if not good:
            world.undo(mark)
        return good

    def charge(self, gas: int) -> None:
        self.gas -= gas
        if self.gas < 0:
            raise Exceptional("out of gas")

    def load(self, address: int) -> None:
        """Charge for an account that is looked at."""
        self.charge(100 if self.world.warm(address) else 2_600)

    def write(self) -> None:
        """Refuse in a call that may change nothing."""
        if self.static:
            raise Exceptional("a change in a view")


# Numbers


def signed(word: int) -> int:
    return word - 2**256 if word >= SIGN else word


def divided(a: int, b: int) -> int:
    if b == 0:
        return 0
    a, b = signed(a), signed(b)
    size = abs(a) // abs(b)
    return (size if (a < 0) == (b < 0) else -size) & WORD


def remainder(a: int, b: int) -> int:
    if b == 0:
        return 0
    a, b = signed(a), signed(b)
    size = abs(a) % abs(b)
    return (-size if a < 0 else size) & WORD


def extended(bytes_less_one: int, word: int) -> int:
    if bytes_less_one > 30:
        return word
    bits = 8 * (bytes_less_one + 1)
    low = word & ((1 << bits) - 1)
    return (low - (1 << bits)) & WORD if low >> (bits - 1) else low


def power(f: Frame, base: int, exponent: int) -> int:
    f.charge(50 * ((exponent.bit_length() + 7) // 8))
    return pow(base, exponent, 2**256)


keccak = lru_cache(1 << 16)(_keccak)
"""The places of a mapping's entries are hashed again and again."""


# Memory


def words(size: int) -> int:
    return (size + 31) // 32


def grow(f: Frame, at: int, size: int) -> None:
    """Have memory reach from `at` on over `size` bytes."""
    if size == 0:
        return
    if at + size > 2**32:
        raise Exceptional("out of gas")
    have, need = len(f.memory) // 32, words(at + size)
    if need > have:
        f.charge(3 * (need - have) + need * need // 512 - have * have // 512)
        f.memory += bytes(32 * (need - have))


def piece(f: Frame, at: int, size: int) -> bytes:
    grow(f, at, size)
    return bytes(f.memory[at : at + size]) if size else b""


def hashed(f: Frame, at: int, size: int) -> int:
    f.charge(6 * words(size))
    return number(keccak(piece(f, at, size)), "big")


def store_byte(f: Frame, at: int, value: int) -> None:
    grow(f, at, 1)
    f.memory[at] = value & 255


def copy(f: Frame, to: int, source: bytes, at: int, size: int) -> None:
    f.charge(3 * words(size))
    grow(f, to, size)
    if size:
        f.memory[to : to + size] = source[at : at + size].ljust(size, ZERO)


def copy_returned(f: Frame, to: int, at: int, size: int) -> None:
    if at + size > len(f.returned):
        raise Exceptional("more than was returned")
    copy(f, to, f.returned, at, size)


def move(f: Frame, to: int, at: int, size: int) -> None:
    f.charge(3 * words(size))
    grow(f, max(to, at), size)
    if size:
        f.memory[to : to + size] = f.memory[at : at + size]


# State


def loaded(f: Frame, slot: int) -> int:
    f.charge(100 if f.world.warm((f.address, slot)) else 2_100)
    return f.world.storage.get((f.address, slot), 0)


def store(f: Frame, slot: int, value: int) -> None:
    """All calls are of one transaction, so that every slot was empty before it."""
    f.write()
    if f.gas <= 2_300:
        raise Exceptional("out of gas")
    world = f.world
    before = world.storage.get((f.address, slot), 0)
    gas = 20_000 if before == 0 and value else 100
    if before and value == 0:
        world.refund += 19_900
    f.charge(gas if world.warm((f.address, slot)) else gas + 2_100)
    world.set(world.storage, (f.address, slot), value)


def store_transient(f: Frame, slot: int, value: int) -> None:
    f.write()
    f.world.set(f.world.transient, (f.address, slot), value)


def log(f: Frame, at: int, size: int, *topics: int) -> None:
    f.write()
    f.charge(375 * len(topics) + 8 * size)
    data = piece(f, at, size)
    f.world.logs.append((f.address.to_bytes(20, "big"), topics, data))


def code_size(f: Frame, address: int) -> int:
    f.load(address & ADDRESS)
    return len(f.world.codes.get(address & ADDRESS, b""))


def code_hash(f: Frame, address: int) -> int:
    f.load(address & ADDRESS)
    code = f.world.codes.get(address & ADDRESS)
    return number(keccak(code), "big") if code else 0


def copy_code(f: Frame, address: int, to: int, at: int, size: int) -> None:
    f.load(address & ADDRESS)
    copy(f, to, f.world.codes.get(address & ADDRESS, b""), at, size)


# Calls


def call(
    f: Frame, gas: int, to: int, value: int, at: int, size: int, back: int, back_size: int
) -> int:
    if value:
        raise NotImplementedError("coins of the chain itself")
    return _call(f, gas, to & ADDRESS, (at, size), (back, back_size), f.static)


def look(f: Frame, gas: int, to: int, at: int, size: int, back: int, back_size: int) -> int:
    return _call(f, gas, to & ADDRESS, (at, size), (back, back_size), True)


def delegate(f: Frame, gas: int, to: int, at: int, size: int, back: int, back_size: int) -> int:
    return _call(f, gas, to & ADDRESS, (at, size), (back, back_size), f.static, True)


def _call(
    f: Frame,
    gas: int,
    to: int,
    given: tuple[int, int],
    back: tuple[int, int],
    static: bool,
    delegated: bool = False,
) -> int:
    """Call another contract, or a function of the chain; 1 if it ended well."""
    grow(f, *given)
    grow(f, *back)
    data = piece(f, *given)
    f.load(to)
    gas = min(gas, f.gas - f.gas // 64)
    f.charge(gas)
    if f.depth == MAX_DEPTH:
        f.returned, good, left = b"", False, gas
    elif to in _BUILT_IN:
        cost, output = _BUILT_IN[to](data)
        good = cost <= gas
        f.returned, left = (output, gas - cost) if good else (b"", 0)
    else:
        place, sender = (f.address, f.sender) if delegated else (to, f.address)
        code = f.world.codes.get(to, b"")
        inner = Frame(f.world, place, sender, data, code, gas, static, f.depth + 1)
        good = inner.run()
        f.returned, left = inner.output, inner.gas
    f.gas += left
    size = min(back[1], len(f.returned))
    f.memory[back[0] : back[0] + size] = f.returned[:size]
    return int(good)


def ended(f: Frame, at: int, size: int, undone: bool) -> int:
    f.output, f.undone = piece(f, at, size), undone
    return -1


def _signer(data: bytes) -> tuple[int, bytes]:
    digest, v, r, s = (data.ljust(128, ZERO)[k : k + 32] for k in range(0, 128, 32))
    parity, limits = number(v, "big") - 27, (number(r, "big"), number(s, "big"))
    if parity not in (0, 1) or not all(0 < x < ORDER for x in limits):
        return 3_000, b""
    try:
        key = PublicKey.from_signature_and_message(r + s + bytes((parity,)), digest, hasher=None)
    except ValueError:
        return 3_000, b""
    return 3_000, bytes(12) + _keccak(key.format(compressed=False)[1:])[12:]


def _sha256(data: bytes) -> tuple[int, bytes]:
    return 60 + 12 * words(len(data)), hashlib.sha256(data).digest()


def _same(data: bytes) -> tuple[int, bytes]:
    return 15 + 3 * words(len(data)), data


_BUILT_IN = {1: _signer, 2: _sha256, 4: _same}
