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
from unisono.verification.fraud.inquiry import Inquiry
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
from unisono.verification.fraud.referee import Hashes, Layout, sealed_roots
from unisono.verification.fraud.steps import Cell, Ref
from unisono.verification.fraud.tree import (
    HASH,
    Tree,
    decode_block,
    depth_of,
    empty_root,
    node_hash,
    per_block,
)

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
        self.tree: Literal["grid", "trace"] = "grid"
        self.depth: int = 0
        self.index: int = 0
        self.target: int = self.hop.cell_depth
        """The depth at which the descent ends."""
        self.shown: int = 0
        self.cell: Cell | None = None
        self.program: Program | None = None
        self.tensor: Tensor | None = None
        self.kept_roots: list[bytes] = []
        """Of the cell in dispute, as the grid has them."""
        self.block: tuple[int, list[int]] = (0, [])
        """The leaf that was reached: its first element's index, and its integers."""
        self.inquiry: Inquiry | None = None

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
    def previous(self) -> bytes:
        """What the next move names as its predecessor."""
        return self.moves[-1].digest(self.id) if self.moves else self.id

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

    def play(self, body: Body) -> str | None:
        """Take a move of whoever's turn it is that needs no signature here, as on a chain, which
        vouches for it; returns what is malformed about it, which convicts nobody."""
        return body_problem(body) or self._play(body)

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
        tensor, inquiry = self.tensor, self.inquiry
        step = "" if tensor is None or tensor.step is None else type(tensor.step).kind
        self.conviction = Conviction(
            party,
            self.node(party),
            reason,
            message,
            self.cell,
            "" if tensor is None else tensor.name,
            step,
            None if inquiry is None else inquiry.element,
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
            case "open" | "split" | "part", _ if self.inquiry is not None:
                return self._inquire(self.inquiry, body)
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
        # else a tree could differ from the true one where there is nothing to be chosen
        depth, first = self.depth + self.shown, self.index << self.shown
        empty = empty_root(self.target - depth)
        for i in range(count):
            if not self.exists(depth, first + i) and found[self.tree, depth, first + i] != empty:
                return "a node without leaves has another hash than such a node has"
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
        self.block = block * each, decode_block(payload, self.tensor.format)
        self.phase = "element"
        return self._choose_element(0) if len(self.block[1]) == 1 else None

    def _choose_element(self, index: int) -> str | None:
        first, values = self.block
        if not 0 <= index < len(values):
            return f"the leaf has {len(values)} elements"
        assert self.program is not None
        assert self.tensor is not None
        self.inquiry = Inquiry(
            self.layout, self.hashes, self.program, self.tensor, first + index, values[index]
        )
        return self._follow(self.inquiry)

    def _inquire(self, inquiry: Inquiry, body: Body) -> str | None:
        match inquiry.phase, body:
            case "open", Open(openings):
                problem = inquiry.open(openings)
            case "split", Split(parts):
                problem = inquiry.split(parts)
            case "part", Choose(index):
                problem = inquiry.choose(index)
            case _:
                return f"{type(body).__name__} is no move of phase '{inquiry.phase}'"
        return problem if problem is not None else self._follow(inquiry)

    def _follow(self, inquiry: Inquiry) -> None:
        """Take over where the inquiry stands."""
        self.phase, finding = inquiry.phase, inquiry.finding
        if finding is not None and finding.right:
            self._convict("challenger", "false_challenge", finding.message)
        elif finding is not None:
            self._convict("defender", "false_step", finding.message)
