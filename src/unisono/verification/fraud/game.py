"""The bisection as a state machine: bytes and times in, one conviction out.

The defender (the hop) shows, the challenger chooses: stage and position, tensor, leaf, element,
and part of a sum, until one step is left, which the referee computes. Nothing here waits, signs
or sends; `arbiter.py` binds it to a clock.

Why an honest party cannot lose: the defender's trace either is what the scalar specification
gives at every step, and then every step that can be chosen is right; or some element is not,
and then the first one (all before it are right) has right inputs and a wrong value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unisono.errors import PeerCheating
from unisono.types import NodeId
from unisono.verification.fraud.moves import (
    LEVELS,
    MOVE_SECONDS,
    SALT_BYTES,
    Block,
    Body,
    Challenge,
    Choose,
    Commit,
    Move,
    Open,
    OpenCell,
    Opening,
    Reveal,
    Split,
    Subject,
    body_problem,
    decode_move,
)
from unisono.verification.fraud.program import HopProgram, Program, Tensor
from unisono.verification.fraud.referee import (
    Hashes,
    Layout,
    Slot,
    judge_combination,
    judge_part,
    judge_total,
    parts_of,
    sealed_roots,
)
from unisono.verification.fraud.steps import Cell, Ref, Source, Step, Total, Values, Wrong
from unisono.verification.fraud.tree import HASH, Tree, decode_block, depth_of, node_hash, per_block

Party = Literal["defender", "challenger"]
Phase = Literal["commit", "descend", "choose", "cell", "block", "element", "open", "split", "part"]
Reason = Literal[
    "timeout", "equivocation", "malformed", "contradiction", "false_step", "false_challenge"
]


@dataclass(frozen=True, slots=True)
class Conviction:
    """How a game ended: which party lost, why, and where the dispute was."""

    party: Party
    node: NodeId
    reason: Reason
    message: str
    cell: Cell | None = None
    tensor: str = ""
    step: str = ""
    element: int | None = None


class Game:
    """One dispute. `now_ms` are the arbiter's milliseconds."""

    def __init__(
        self,
        subject: Subject,
        challenge: Challenge,
        now_ms: int,
    ) -> None:
        """Raises:
        PeerCheating: the subject's parts do not fit each other, or the challenge does not
            fit the subject or is not signed.
        """
        problem = subject.problem()
        if problem is not None:
            raise PeerCheating(problem)
        if not challenge.signature_is_good() or len(challenge.salt) != SALT_BYTES:
            raise PeerCheating("the challenge is malformed or not signed by whom it names")
        if challenge.claim != subject.claim.signed_bytes():
            raise PeerCheating("the challenge is about another claim")
        self.subject, self.challenge = subject, challenge
        self.id = challenge.game()
        claim, request = subject.claim, subject.request
        self.hop = HopProgram(
            subject.manifest, claim.layers, len(request.prompt), claim.positions, request.sampling
        )
        self.layout = Layout(self.hop, (*request.prompt, *subject.tokens))
        self.hashes = Hashes(sealed_roots(subject))
        self.phase: Phase = "commit"
        self.moves: list[Move] = []
        self.conviction: Conviction | None = None
        self.deadline_ms = now_ms + 1000 * MOVE_SECONDS
        self.tree, self.depth, self.index, self.target = "grid", 0, 0, self.hop.cell_depth
        self.shown = 0
        self.cell: Cell | None = None
        self.program: Program | None = None
        self.tensor: Tensor | None = None
        self.element: int | None = None
        self.value = 0
        self.span: tuple[int, int] | None = None
        """Terms of the sum in dispute."""
        self.asserted: Total | None = None
        """What they make, once that was said."""
        self._cut: list[tuple[tuple[int, int], Total]] = []
        self.needed: tuple[Slot, ...] = ()
        self._anchored: set[Slot] = set()
        self._opening, self._opens, self._most_opens = False, 0, 0
        self.kept_roots: list[bytes] = []
        self._first, self._block = 0, list[int]()

    @property
    def turn(self) -> Party:
        """Who moves next."""
        return "challenger" if self.phase in ("choose", "element", "part") else "defender"

    def node(self, party: Party) -> NodeId:
        """A party's key."""
        return self.subject.claim.node if party == "defender" else self.challenge.challenger

    @property
    def cell_in_dispute(self) -> Cell:
        """The cell that was reached."""
        assert self.cell is not None
        return self.cell

    @property
    def block(self) -> tuple[int, list[int]]:
        """The leaf that was reached: its first element's index, and its integers."""
        return self._first, self._block

    @property
    def parts(self) -> list[Total]:
        """What the parts shown last are asserted to make."""
        return [total for _, total in self._cut]

    @property
    def previous(self) -> bytes:
        """What the next move names as its predecessor."""
        return self.moves[-1].digest(self.id) if self.moves else self.id

    @property
    def step(self) -> Step:
        """The step type of the tensor in dispute."""
        assert self.tensor is not None
        assert self.tensor.step is not None
        return self.tensor.step

    def expire(self, now_ms: int) -> None:
        """End the game if the party whose turn it is took too long."""
        if self.conviction is None and now_ms > self.deadline_ms:
            self._convict(self.turn, "timeout", f"no move {len(self.moves)} came in time")

    def receive(self, data: bytes, now_ms: int) -> bool:
        """Take bytes that may be a move.

        Returns False for bytes that neither party signed as a move of now: they say nothing about
        anybody, and the clock goes on. What a party signed counts against it.
        """
        self.expire(now_ms)
        if self.conviction is not None:
            return False
        try:
            move = decode_move(data)
        except PeerCheating:
            return False
        if move.number < len(self.moves):
            return self._old(move)
        if move.number != len(self.moves) or not move.is_signed_by(self.node(self.turn), self.id):
            return False
        if move.previous != self.previous:
            return False  # an answer to another move: whoever made two of that one is at fault
        mover = self.turn
        self.moves.append(move)
        self.deadline_ms = now_ms + 1000 * MOVE_SECONDS
        problem = body_problem(move.body) or self._play(move.body)
        if problem is not None and self.conviction is None:
            self._convict(mover, "malformed", problem)
        return True

    def _old(self, move: Move) -> bool:
        before = self.moves[move.number]
        same = move.signed_bytes(self.id) == before.signed_bytes(self.id)
        if same or move.previous != before.previous:
            return False
        for party in ("defender", "challenger"):
            signed = [m.is_signed_by(self.node(party), self.id) for m in (move, before)]
            if all(signed):
                message = f"two different moves {move.number} carry its signature"
                self._convict(party, "equivocation", message)
                return True
        return False

    def _convict(self, party: Party, reason: Reason, message: str) -> None:
        tensor = self.tensor
        step = "" if tensor is None or tensor.step is None else type(tensor.step).kind
        self.conviction = Conviction(
            party,
            self.node(party),
            reason,
            message,
            self.cell,
            "" if tensor is None else tensor.name,
            step,
            self.element,
        )

    def _play(self, body: Body) -> str | None:
        """One move of whoever's turn it is; returns what is malformed about it."""
        match self.phase, body:
            case "commit", Commit(root):
                if len(root) != HASH:
                    return "a root has 32 bytes"
                self.hashes.nodes["grid", 0, 0] = root
                return self._descend()
            case "descend", Reveal(hashes):
                return self._reveal(hashes)
            case "choose", Choose(index):
                return self._choose(index)
            case "cell", OpenCell(kept, trace):
                return self._open_cell(kept, trace)
            case "block", Block(payload):
                return self._open_block(payload)
            case "element", Choose(index):
                return self._choose_element(index)
            case "open", Open(openings):
                return self._open(body)
            case "split", Split(parts):
                return self._split(parts)
            case "part", Choose(index):
                if not 0 <= index < len(self._cut):
                    return f"there are {len(self._cut)} parts to choose from"
                self.span, self.asserted = self._cut[index]
                return self._proceed()
            case _:
                return f"{type(body).__name__} is no move of phase '{self.phase}'"

    def _descend(self) -> str | None:
        """Go on below the node in dispute, or to what comes after the last."""
        while self.depth == self.target:
            if self.tree == "grid":
                bits = depth_of(self.hop.positions)
                self.cell = Cell(self.index >> bits, self.index & ((1 << bits) - 1))
                self.program = self.hop.program(self.cell)
                self.phase = "cell"
                return None
            if self.tensor is not None:
                self.phase = "block"
                return None
            assert self.program is not None
            self.tensor = self.program.tensors[self.index]
            if self._contradicts():
                return None
            if self.tensor.step is None:
                self._convict(
                    "challenger", "malformed", f"'{self.tensor.name}' was received, not computed"
                )
                return None
            self.target += depth_of(self.tensor.block_count)
        self.shown = min(LEVELS, self.target - self.depth)
        self.phase = "descend"
        return None

    def _contradicts(self) -> bool:
        """Whether the trace has another root than the grid for the tensor that was reached."""
        assert self.program is not None
        assert self.tensor is not None
        if self.tensor.name not in self.program.kept:
            return False
        grid = self.kept_roots[self.program.kept.index(self.tensor.name)]
        if grid == self.hashes.nodes["trace", self.depth, self.index]:
            return False
        self._convict(
            "defender", "contradiction", f"trace and grid differ about '{self.tensor.name}'"
        )
        return True

    def _reveal(self, hashes: bytes) -> str | None:
        count = 1 << self.shown
        if len(hashes) != count * HASH:
            return f"{count} hashes were to be shown"
        level = [hashes[k : k + HASH] for k in range(0, len(hashes), HASH)]
        depth, first = self.depth + self.shown, self.index << self.shown
        found: dict[tuple[str, int, int], bytes] = {}
        while True:
            found |= {(self.tree, depth, first + i): x for i, x in enumerate(level)}
            if len(level) == 1:
                break
            level = [node_hash(level[i], level[i + 1]) for i in range(0, len(level), 2)]
            depth, first = depth - 1, first >> 1
        if level[0] != self.hashes.nodes[self.tree, self.depth, self.index]:
            return "what was shown does not fit the node above it"
        self.hashes.nodes |= found
        self.phase = "choose"
        return None

    def exists(self, depth: int, index: int) -> bool:
        """Whether a node of the tree in dispute has a leaf below it."""
        if self.tree == "grid":
            top = self.hop.stage_depth
            if depth <= top:
                return index <= (self.hop.stages - 1) >> (top - depth)
            bits = depth_of(self.hop.positions)
            stage, within = index >> (depth - top), index & ((1 << (depth - top)) - 1)
            last = (self.hop.positions - 1) >> (bits - (depth - top))
            return stage < self.hop.stages and within <= last
        assert self.program is not None
        if self.tensor is None:
            return index <= (len(self.program.tensors) - 1) >> (self.target - depth)
        below = depth - depth_of(len(self.program.tensors))
        last = (self.tensor.block_count - 1) >> (self.target - depth)
        return index & ((1 << below) - 1) <= last

    def _choose(self, index: int) -> str | None:
        if not 0 <= index < 1 << self.shown:
            return f"{1 << self.shown} nodes were shown"
        depth, place = self.depth + self.shown, (self.index << self.shown) | index
        if not self.exists(depth, place):
            return "nothing is below that node"
        self.depth, self.index = depth, place
        return self._descend()

    def _open_cell(self, kept: bytes, trace: bytes) -> str | None:
        assert self.program is not None
        if len(kept) != HASH * len(self.program.kept) or len(trace) != HASH:
            return f"{len(self.program.kept)} roots and the trace's were to be shown"
        roots = [kept[k : k + HASH] for k in range(0, len(kept), HASH)]
        tree = Tree(list(roots))
        if tree.root != self.hashes.nodes["grid", self.depth, self.index]:
            return "the kept tensors' roots do not fit the grid"
        self.kept_roots = roots
        self.hashes.nodes["trace", 0, 0] = trace
        self.tree, self.depth, self.index = "trace", 0, 0
        self.target = depth_of(len(self.program.tensors))
        return self._descend()

    def _open_block(self, payload: bytes) -> str | None:
        assert self.program is not None
        assert self.tensor is not None
        each = per_block(self.tensor.format)
        below = self.target - depth_of(len(self.program.tensors))
        block = self.index & ((1 << below) - 1)
        slot = self.layout.slots(
            self.program, Ref(None, self.tensor.name, block * each, block * each + 1)
        )[0]
        problem = self.hashes.add(slot, Opening(0, 0, payload, b""))
        if problem is not None:
            return problem
        self._first, self._block = block * each, decode_block(payload, self.tensor.format)
        self.phase = "element"
        return self._choose_element(0) if len(self._block) == 1 else None

    def _choose_element(self, index: int) -> str | None:
        if not 0 <= index < len(self._block):
            return f"the leaf has {len(self._block)} elements"
        self.element, self.value = self._first + index, self._block[index]
        length = self.step.length(self.element)
        self.span = (0, length) if length else None
        return self._proceed()

    def sources(self) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        """What the step needs as far as it is known: `fixed`, and terms of the last chunk.

        Raises:
            Wrong: the terms that the fixed part names do not exist.
        """
        assert self.element is not None
        fixed = self.step.fixed(self.element)
        span = self.span
        if span is None or span[1] - span[0] > self.step.chunk or self.missing(fixed):
            return fixed, ()
        terms = self.step.terms(self.element, *span, self.read(fixed))
        return fixed, terms

    def missing(self, sources: tuple[Source, ...]) -> tuple[Slot, ...]:
        """Leaves of some sources that were not opened yet."""
        assert self.program is not None
        slots = [slot for s in sources for slot in self.layout.slots(self.program, s)]
        return tuple(dict.fromkeys(s for s in slots if s not in self.hashes.leaves))

    def read(self, sources: tuple[Source, ...]) -> Values:
        """The integers of sources whose leaves are known."""
        assert self.program is not None
        out: list[list[int]] = []
        for source in sources:
            slots = self.layout.slots(self.program, source)
            leaves = [self.hashes.leaves[slot] for slot in slots]
            out.append(self.layout.read(self.program, source, leaves))
        return out

    def _proceed(self) -> str | None:
        """Ask for what the step needs next, or judge it."""
        assert self.element is not None
        step, span = self.step, self.span
        try:
            fixed, terms = self.sources()
            self.needed = self.missing(fixed + terms)
        except Wrong as error:
            self._convict("defender", "false_step", str(error))
            return None
        if self.needed:
            if self.phase != "open" or not self._opening:
                self._opening, self._opens = True, 0
                self._anchored.clear()
                count = len(self.needed)
                self._most_opens = count + 2 if count <= 8 else count // 2 + 3
            self.phase = "open"
            return None
        self._opening = False
        values = self.read(fixed)
        if span is not None and span[1] - span[0] > step.chunk:
            self.phase = "split"
            return None
        if span is None:
            problem = judge_total(step, self.element, self.value, (), values)
        elif self.asserted is not None:
            problem = judge_part(
                step, self.element, self.value, span, self.asserted, values, self.read(terms)
            )
        else:
            problem = self._judge_whole(span, values, self.read(terms))
        where = f"element {self.element} of '{self._tensor_name()}' in {self.cell}"
        if problem is None:
            self._convict("challenger", "false_challenge", f"{where} is right")
        else:
            self._convict("defender", "false_step", f"{where}: {problem}")
        return None

    def _tensor_name(self) -> str:
        return "" if self.tensor is None else self.tensor.name

    def _judge_whole(self, span: tuple[int, int], fixed: Values, terms: Values) -> str | None:
        assert self.element is not None
        try:
            total = self.step.partial(self.element, self.value, *span, fixed, terms)
        except (Wrong, ArithmeticError, IndexError, ValueError) as error:
            return f"no such part can be: {error}"
        return judge_total(self.step, self.element, self.value, total, fixed)

    def _open(self, body: Open) -> str | None:
        self._opens += 1
        if not body.openings or self._opens > self._most_opens:
            return "too little was opened"
        needed = self.needed
        for opening in body.openings:
            if opening.slot >= len(needed):
                return f"{len(needed)} leaves are needed"
            slot = needed[opening.slot]
            if slot in self.hashes.leaves:
                return "a leaf was opened twice"
            if opening.skip and slot in self._anchored:
                return "a node above that leaf was opened before"
            if opening.skip:
                self._anchored.add(slot)
            problem = self.hashes.add(slot, opening)
            if problem is not None:
                return problem
        return self._proceed()

    def _split(self, parts: tuple[Total, ...]) -> str | None:
        assert self.span is not None
        assert self.element is not None
        ranges = parts_of(*self.span, self.step.chunk)
        if len(parts) != len(ranges):
            return f"{len(ranges)} parts were to be shown"
        if self.asserted is not None:
            problem = judge_combination(self.step, parts, self.asserted)
        else:
            problem = self._judge_parts(parts)
        if problem is not None:
            self._convict("defender", "false_step", problem)
            return None
        self._cut = list(zip(ranges, parts, strict=True))
        self.phase = "part"
        return None

    def _judge_parts(self, parts: tuple[Total, ...]) -> str | None:
        assert self.element is not None
        try:
            total = self.step.combine(parts)
        except (ArithmeticError, ValueError) as error:
            return f"the parts do not combine: {error}"
        fixed = self.read(self.step.fixed(self.element))
        return judge_total(self.step, self.element, self.value, total, fixed)
