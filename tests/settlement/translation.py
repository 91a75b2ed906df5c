"""Code of contracts as Python functions: each stretch without a jump into it is translated once.

Words on the stack become local variables, and gas that does not depend on them is charged once for
many instructions. What touches memory's size, storage or other contracts is a call of a function
in `frames`. Instructions that the Vyper compiler does not emit are refused when they are met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tests.settlement import frames

Block = Callable[[frames.Frame], int]
"""Runs on a frame; returns the place to go on at, or -1 when the frame has ended."""

_VALUES: dict[int, tuple[str, int, int, str]] = {
    # instruction: name, gas, operands, value; a is on top of the stack
    0x01: ("ADD", 3, 2, "({a} + {b}) & WORD"),
    0x02: ("MUL", 5, 2, "({a} * {b}) & WORD"),
    0x03: ("SUB", 3, 2, "({a} - {b}) & WORD"),
    0x04: ("DIV", 5, 2, "{a} // {b} if {b} else 0"),
    0x05: ("SDIV", 5, 2, "divided({a}, {b})"),
    0x06: ("MOD", 5, 2, "{a} % {b} if {b} else 0"),
    0x07: ("SMOD", 5, 2, "remainder({a}, {b})"),
    0x08: ("ADDMOD", 8, 3, "({a} + {b}) % {c} if {c} else 0"),
    0x09: ("MULMOD", 8, 3, "({a} * {b}) % {c} if {c} else 0"),
    0x0A: ("EXP", 10, 2, "power(f, {a}, {b})"),
    0x0B: ("SIGNEXTEND", 5, 2, "extended({a}, {b})"),
    0x10: ("LT", 3, 2, "1 if {a} < {b} else 0"),
    0x11: ("GT", 3, 2, "1 if {a} > {b} else 0"),
    0x12: ("SLT", 3, 2, "1 if {a} ^ SIGN < {b} ^ SIGN else 0"),
    0x13: ("SGT", 3, 2, "1 if {a} ^ SIGN > {b} ^ SIGN else 0"),
    0x14: ("EQ", 3, 2, "1 if {a} == {b} else 0"),
    0x15: ("ISZERO", 3, 1, "0 if {a} else 1"),
    0x16: ("AND", 3, 2, "{a} & {b}"),
    0x17: ("OR", 3, 2, "{a} | {b}"),
    0x18: ("XOR", 3, 2, "{a} ^ {b}"),
    0x19: ("NOT", 3, 1, "{a} ^ WORD"),
    0x1A: ("BYTE", 3, 2, "{b} >> 8 * (31 - {a}) & 255 if {a} < 32 else 0"),
    0x1B: ("SHL", 3, 2, "{b} << {a} & WORD if {a} < 256 else 0"),
    0x1C: ("SHR", 3, 2, "{b} >> {a} if {a} < 256 else 0"),
    0x1D: ("SAR", 3, 2, "signed({b}) >> min({a}, 255) & WORD"),
    0x20: ("KECCAK256", 30, 2, "hashed(f, {a}, {b})"),
    0x30: ("ADDRESS", 2, 0, "f.address"),
    0x32: ("ORIGIN", 2, 0, "f.world.origin"),
    0x33: ("CALLER", 2, 0, "f.sender"),
    0x34: ("CALLVALUE", 2, 0, "0"),
    0x35: ("CALLDATALOAD", 3, 1, "number(f.data[{a} : {a} + 32].ljust(32, ZERO), 'big')"),
    0x36: ("CALLDATASIZE", 2, 0, "len(f.data)"),
    0x38: ("CODESIZE", 2, 0, "len(f.code)"),
    0x3B: ("EXTCODESIZE", 0, 1, "code_size(f, {a})"),
    0x3F: ("EXTCODEHASH", 0, 1, "code_hash(f, {a})"),
    0x3D: ("RETURNDATASIZE", 2, 0, "len(f.returned)"),
    0x40: ("BLOCKHASH", 20, 1, "f.world.hash_of({a})"),
    0x42: ("TIMESTAMP", 2, 0, "f.world.time"),
    0x43: ("NUMBER", 2, 0, "f.world.block"),
    0x46: ("CHAINID", 2, 0, "f.world.chain_id"),
    0x54: ("SLOAD", 0, 1, "loaded(f, {a})"),
    0x59: ("MSIZE", 2, 0, "len(m)"),
    0x5A: ("GAS", 2, 0, "f.gas"),
    0x5C: ("TLOAD", 100, 1, "f.world.transient.get((f.address, {a}), 0)"),
    0xF1: ("CALL", 0, 7, "call(f, {a}, {b}, {c}, {d}, {e}, {g}, {h})"),
    0xF4: ("DELEGATECALL", 0, 6, "delegate(f, {a}, {b}, {c}, {d}, {e}, {g})"),
    0xFA: ("STATICCALL", 0, 6, "look(f, {a}, {b}, {c}, {d}, {e}, {g})"),
}
_ACTS: dict[int, tuple[str, int, int, str]] = {
    0x37: ("CALLDATACOPY", 3, 3, "copy(f, {a}, f.data, {b}, {c})"),
    0x39: ("CODECOPY", 3, 3, "copy(f, {a}, f.code, {b}, {c})"),
    0x3C: ("EXTCODECOPY", 0, 4, "copy_code(f, {a}, {b}, {c}, {d})"),
    0x3E: ("RETURNDATACOPY", 3, 3, "copy_returned(f, {a}, {b}, {c})"),
    0x53: ("MSTORE8", 3, 2, "store_byte(f, {a}, {b})"),
    0x55: ("SSTORE", 0, 2, "store(f, {a}, {b})"),
    0x5D: ("TSTORE", 100, 2, "store_transient(f, {a}, {b})"),
    0x5E: ("MCOPY", 3, 3, "move(f, {a}, {b}, {c})"),
    0xA0: ("LOG0", 375, 2, "log(f, {a}, {b})"),
    0xA1: ("LOG1", 375, 3, "log(f, {a}, {b}, {c})"),
    0xA2: ("LOG2", 375, 4, "log(f, {a}, {b}, {c}, {d})"),
    0xA3: ("LOG3", 375, 5, "log(f, {a}, {b}, {c}, {d}, {e})"),
    0xA4: ("LOG4", 375, 6, "log(f, {a}, {b}, {c}, {d}, {e}, {g})"),
}
_PURE = {*range(0x01, 0x0A), 0x0B, *range(0x10, 0x1E)}
"""Values that depend on the operands alone."""
_SEES_GAS = {0x55, 0x5A, 0xF1, 0xF4, 0xFA}
"""Before these, all earlier gas must have been charged and no later gas."""
STOP, POP, MLOAD, MSTORE, JUMP, JUMPI, JUMPDEST = 0x00, 0x50, 0x51, 0x52, 0x56, 0x57, 0x5B
PUSH0, PUSH32, DUP1, SWAP1, RETURN, REVERT, INVALID = 0x5F, 0x7F, 0x80, 0x90, 0xF3, 0xFD, 0xFE
_ENDS = {STOP, JUMP, RETURN, REVERT, INVALID}
_PLACES = "abcdegh"


class Program:
    """The code of a contract, translated as far as it was run."""

    def __init__(self, code: bytes) -> None:
        self._code = code
        self.start = _Writer(code, 0).block()
        self.blocks: dict[int, Block] = {}
        """By the place of the jump's target."""
        self._targets = {place for place, what, _ in _instructions(code, 0) if what == JUMPDEST}

    def block(self, place: int) -> Block | None:
        """What begins at a place; None if nobody may jump there."""
        if place not in self._targets:
            return None
        self.blocks[place] = made = _Writer(self._code, place).block()
        return made


@cache
def program(code: bytes) -> Program:
    """The translation of code, made once."""
    return Program(code)


def _instructions(code: bytes, place: int) -> Iterator[tuple[int, int, int]]:
    """(place, instruction, constant) from a place on."""
    while place < len(code):
        what = code[place]
        size = what - PUSH0 if PUSH0 <= what <= PUSH32 else 0
        constant = code[place + 1 : place + 1 + size].ljust(size, b"\0")
        yield place, what, int.from_bytes(constant, "big")
        place += 1 + size


class _Writer:
    """Writes the function of one block."""

    def __init__(self, code: bytes, start: int) -> None:
        self.code, self.start = code, start
        self.lines: list[str] = []
        self.stack: list[int | str] = []
        """The upper part of the stack: constants and names of variables."""
        self.names = self.gas = self.charged_at = 0

    def block(self) -> Block:
        self._charge()
        for place, what, constant in _instructions(self.code, self.start):
            if what == JUMPDEST and place > self.start:
                self._go(place)
                break
            self._write(what, constant)
            if what in _ENDS:
                break
        else:
            self._write(STOP, 0)  # which is not written at the end of code
        self._close_charge()
        body = "".join(f"    {line}\n" for line in self.lines)
        source = f"def block(f):\n    s, m = f.stack, f.memory\n{body}"
        made: dict[str, Any] = {}
        exec(compile(source, f"<block {self.start}>", "exec"), frames.__dict__, made)
        return made["block"]

    def _write(self, what: int, constant: int) -> None:
        if PUSH0 <= what <= PUSH32:
            self.gas += 2 if what == PUSH0 else 3
            self.stack.append(constant)
        elif DUP1 <= what < SWAP1:
            self.gas += 3
            self._reach(what - DUP1 + 1)
            self.stack.append(self.stack[DUP1 - what - 1])
        elif SWAP1 <= what < 0xA0:
            self.gas += 3
            depth = what - SWAP1 + 2
            self._reach(depth)
            self.stack[-1], self.stack[-depth] = self.stack[-depth], self.stack[-1]
        elif what in _VALUES:
            self._value(what)
        elif what in _ACTS:
            _, gas, count, act = _ACTS[what]
            self.gas += gas
            if what in _SEES_GAS:
                self._close_charge()
            self.lines.append(act.format(**self._operands(count)))
            if what in _SEES_GAS:
                self._charge()
        else:
            self._other(what)

    def _value(self, what: int) -> None:
        _, gas, count, value = _VALUES[what]
        self.gas += gas
        operands = self._operands(count)
        text = value.format(**operands)
        if what in _PURE and all(isinstance(x, int) for x in operands.values()):
            self.stack.append(eval(text, frames.__dict__))
            return
        if what in _SEES_GAS:
            self._close_charge()
        self.stack.append(self._variable(text))
        if what in _SEES_GAS:
            self._charge()

    def _other(self, what: int) -> None:
        if what == JUMPDEST:
            self.gas += 1
        elif what == POP:
            self.gas += 2
            self._operands(1)
        elif what == MLOAD:
            self.gas += 3
            (at,) = self._operands(1).values()
            self.lines.append(f"if len(m) < {at} + 32: grow(f, {at}, 32)")
            self.stack.append(self._variable(f"number(m[{at} : {at} + 32], 'big')"))
        elif what == MSTORE:
            self.gas += 3
            at, value = self._operands(2).values()
            self.lines.append(f"if len(m) < {at} + 32: grow(f, {at}, 32)")
            word = f"({value}).to_bytes(32, 'big')"
            if isinstance(value, int):
                word = repr(value.to_bytes(32, "big"))
            self.lines.append(f"m[{at} : {at} + 32] = {word}")
        elif what == JUMP:
            self.gas += 8
            (target,) = self._operands(1).values()
            self._go(target)
        elif what == JUMPI:
            self.gas += 10
            target, condition = self._operands(2).values()
            self.lines.append(f"if {condition}:")
            self._go(target, "    ")
            self._close_charge()
            self._charge()
        elif what == STOP:
            self.lines.append("return -1")
        elif what in (RETURN, REVERT):
            at, size = self._operands(2).values()
            self.lines.append(f"return ended(f, {at}, {size}, {what == REVERT})")
        elif what == INVALID:
            self.lines.append("raise Exceptional('invalid')")
        else:
            self.lines.append(f"raise NotImplementedError('instruction {what:#x}')")

    def _go(self, target: int | str, indent: str = "") -> None:
        """Leave the block, with the stack as it is."""
        if self.stack:
            self.lines.append(f"{indent}s += ({', '.join(map(str, self.stack))},)")
        self.lines.append(f"{indent}return {target}")

    def _reach(self, depth: int) -> None:
        """Take words from the real stack until `depth` are at hand."""
        while len(self.stack) < depth:
            self.stack.insert(0, self._variable("s.pop()"))

    def _operands(self, count: int) -> dict[str, int | str]:
        self._reach(count)
        taken = [self.stack.pop() for _ in range(count)]
        return dict(zip(_PLACES, taken, strict=False))

    def _variable(self, text: str) -> str:
        self.names += 1
        self.lines.append(f"v{self.names} = {text}")
        return f"v{self.names}"

    def _charge(self) -> None:
        self.charged_at, self.gas = len(self.lines), 0
        self.lines += ["", ""]

    def _close_charge(self) -> None:
        """Write what the instructions since `_charge` cost, before them."""
        charge = [f"f.gas -= {self.gas}", "if f.gas < 0: raise Exceptional('out of gas')"]
        self.lines[self.charged_at : self.charged_at + 2] = charge if self.gas else ["", ""]
