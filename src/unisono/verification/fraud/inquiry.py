"""The end of a dispute: one element of one tensor, narrowed to one step and judged.

First the defender opens what the element needs whatever its terms are. A sum or maximum of more
terms than one step has is split, again and again; then the terms of one chunk are opened, and the
referee computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unisono.verification.fraud.moves import Opening
from unisono.verification.fraud.program import Program, Tensor
from unisono.verification.fraud.referee import (
    ARITHMETIC,
    Hashes,
    Layout,
    Slot,
    judge_combination,
    judge_part,
    judge_total,
    parts_of,
)
from unisono.verification.fraud.steps import Source, Step, Total, Values, Wrong

_FEW_LEAVES = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """What the referee found: whether the element is right, and why."""

    right: bool
    message: str


class Inquiry:
    """About one element; `finding` ends it."""

    def __init__(
        self, layout: Layout, hashes: Hashes, program: Program, tensor: Tensor, i: int, value: int
    ) -> None:
        if tensor.step is None:
            raise ValueError(f"'{tensor.name}' has no step to judge")
        self.layout, self.hashes, self.program, self.tensor = layout, hashes, program, tensor
        self.step: Step = tensor.step
        self.element, self.value = i, value
        length = self.step.length(i)
        self.span: tuple[int, int] | None = (0, length) if length else None
        """Terms in dispute."""
        self.asserted: Total | None = None
        """What they make, once that was said."""
        self.phase: Literal["open", "split", "part"] = "open"
        self.finding: Finding | None = None
        self.needed: tuple[Slot, ...] = ()
        """Leaves that are to be opened now."""
        self._opens, self._most_opens = 0, 0
        self._anchored: set[Slot] = set()
        self._cut: list[tuple[tuple[int, int], Total]] = []
        self._proceed()

    @property
    def parts(self) -> list[Total]:
        """What the parts shown last are asserted to make."""
        return [total for _, total in self._cut]

    @property
    def is_chunk(self) -> bool:
        """Whether the terms in dispute are few enough for one step."""
        return self.span is not None and self.span[1] - self.span[0] <= self.step.chunk

    def sources(self) -> tuple[Source, ...]:
        """What the step needs as far as it is known: the fixed part, and the terms of a chunk.

        Raises:
            Wrong: the terms that the fixed part names do not exist.
        """
        fixed = self.step.fixed(self.element)
        if self.span is None or not self.is_chunk or self._missing(fixed):
            return fixed
        return fixed + self.step.terms(self.element, *self.span, self._read(fixed))

    def open(self, openings: tuple[Opening, ...]) -> str | None:
        """Take openings in; returns what is malformed about them."""
        self._opens += 1
        if not openings or self._opens > self._most_opens:
            return "too little was opened at a time"
        for opening in openings:
            if opening.slot >= len(self.needed):
                return f"{len(self.needed)} leaves are needed"
            slot = self.needed[opening.slot]
            if slot in self.hashes.leaves:
                return "a leaf was opened twice"
            if opening.skip and slot in self._anchored:
                return "a node above that leaf was opened before"
            if opening.skip:
                self._anchored.add(slot)
            problem = self.hashes.add(slot, opening)
            if problem is not None:
                return problem
        self._proceed()
        return None

    def split(self, parts: tuple[Total, ...]) -> str | None:
        """Take the parts of the sum in dispute; returns what is malformed about them."""
        assert self.span is not None
        ranges = parts_of(*self.span, self.step.chunk)
        if len(parts) != len(ranges):
            return f"{len(ranges)} parts were to be shown"
        if self.asserted is not None:
            problem = judge_combination(self.step, parts, self.asserted)
        else:
            problem = self._judge_parts(parts)
        if problem is not None:
            self._end(problem)
        self._cut = list(zip(ranges, parts, strict=True))
        self.phase = "part"
        return None

    def choose(self, index: int) -> str | None:
        """The challenger contradicts a part; returns what is malformed about that."""
        if not 0 <= index < len(self._cut):
            return f"there are {len(self._cut)} parts to choose from"
        self.span, self.asserted = self._cut[index]
        self._proceed()
        return None

    def _missing(self, sources: tuple[Source, ...]) -> tuple[Slot, ...]:
        slots = [slot for s in sources for slot in self.layout.slots(self.program, s)]
        return tuple(dict.fromkeys(s for s in slots if s not in self.hashes.leaves))

    def _read(self, sources: tuple[Source, ...]) -> Values:
        out: list[list[int]] = []
        for source in sources:
            slots = self.layout.slots(self.program, source)
            leaves = [self.hashes.leaves[slot] for slot in slots]
            out.append(self.layout.read(self.program, source, leaves))
        return out

    def _proceed(self) -> None:
        """Ask for what the step needs next, or judge it."""
        try:
            sources = self.sources()
            missing = self._missing(sources)
        except Wrong as error:
            self._end(str(error))
            return
        if missing:
            if self.phase != "open" or not self._most_opens:
                self._opens, count = 0, len(missing)
                self._most_opens = count + 2 if count <= _FEW_LEAVES else count // 2 + 3
                self._anchored.clear()
            elif set(missing) - set(self.needed):
                self._most_opens += len(missing) + 2  # terms that the fixed part named
            self.phase, self.needed = "open", missing
            return
        if self.span is not None and not self.is_chunk:
            self.phase = "split"
            return
        count = len(self.step.fixed(self.element))
        fixed, terms = self._read(sources[:count]), self._read(sources[count:])
        if self.span is None:
            self._end(judge_total(self.step, self.element, self.value, (), fixed))
        elif self.asserted is None:
            self._end(self._judge_whole(self.span, fixed, terms))
        else:
            step, asserted = self.step, self.asserted
            self._end(judge_part(step, self.element, self.value, self.span, asserted, fixed, terms))

    def _end(self, problem: str | None) -> None:
        where = f"element {self.element} of '{self.tensor.name}' in {self.program.cell}"
        if problem is None:
            self.finding = Finding(True, f"{where} is right")
        else:
            self.finding = Finding(False, f"{where}: {problem}")

    def _judge_whole(self, span: tuple[int, int], fixed: Values, terms: Values) -> str | None:
        try:
            total = self.step.partial(self.element, self.value, *span, fixed, terms)
        except ARITHMETIC as error:
            return f"no such part can be: {error}"
        return judge_total(self.step, self.element, self.value, total, fixed)

    def _judge_parts(self, parts: tuple[Total, ...]) -> str | None:
        try:
            total = self.step.combine(parts)
        except ARITHMETIC as error:
            return f"the parts do not combine: {error}"
        fixed = self._read(self.step.fixed(self.element))
        return judge_total(self.step, self.element, self.value, total, fixed)
