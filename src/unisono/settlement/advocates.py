"""How a party of `fraud/parties.py` speaks before the court of a chain.

An advocate keeps an off-chain `Game` in step with what the chain logged, asks its party what to do
there, and writes the answer as a call of the court. It neither waits nor sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from eth_abi.abi import decode

from unisono.errors import PeerCheating
from unisono.settlement.claims import SettlementClaim, sampling_words
from unisono.settlement.exhibits import Exhibits
from unisono.types import EvmAddress
from unisono.verification.fraud.attention_steps import Rotation
from unisono.verification.fraud.descriptors import WORD, Descriptors, variant_of
from unisono.verification.fraud.game import Game, Party
from unisono.verification.fraud.layer_steps import Boundary
from unisono.verification.fraud.moves import (
    SALT_BYTES,
    Block,
    Body,
    Challenge,
    Choose,
    Commit,
    OpenCell,
    Reveal,
    Split,
    Subject,
)
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.referee import parts_of
from unisono.verification.fraud.steps import CHUNK, Cell, Step
from unisono.verification.fraud.tree import HASH, depth_of, per_block
from unisono.wire.identity import Identity

COMMIT, CHOOSE, REVEAL, ELEMENT, CELL, PART, BLOCK, PROVE, DECIDED = 0, 1, 2, 3, 4, 5, 6, 8, 10
"""Phases of the contract: even ones are the defender's turn."""
GRID, TRACE, TENSOR = 0, 1, 2
_TENSOR_WORDS = 12


class State(NamedTuple):
    """The contract's struct: all of a game. The contract keeps its hash."""

    claim: bytes
    facts: bytes
    challenger: EvmAddress
    defender: EvmAddress
    bond: int
    phase: int
    moves: int
    deadline: int
    """Seconds since the Unix epoch, on the chain's clock."""
    challenger_lost: bool
    stages: int
    positions: int
    tree: int
    depth: int
    branch: int
    """Place of the node in dispute, at its depth."""
    shown: int
    target: int
    node: bytes
    grid: bytes
    trace: bytes
    stage: int
    position: int
    seen_start: int
    variant: int
    tensors: int
    kept: bytes
    kept_at: int
    place: int
    tensor: bytes
    size: int
    width: int
    kind: int
    element: int
    asserted: int
    start: int
    stop: int
    totals: int
    total: tuple[int, ...]
    parts: bytes

    def decided(self, challenger_lost: bool) -> State:
        """The state after a log `Decided`."""
        return self._replace(phase=DECIDED, challenger_lost=challenger_lost)

    @property
    def turn(self) -> Party | None:
        """Who moves next; None of a decided game."""
        if self.phase == DECIDED:
            return None
        return "challenger" if self.phase % 2 else "defender"


class Appeal(NamedTuple):
    """A call of the court or its judge: a function and its arguments."""

    function: str
    arguments: tuple[object, ...]
    contract: Literal["court", "judge"] = "court"
    data: bytes = b""
    """The call as bytes, where somebody wrote it already; there are no arguments then."""


@dataclass(frozen=True)
class Case:
    """What both sides know before the first move."""

    subject: Subject
    claim: SettlementClaim
    descriptors: Descriptors

    def model(self) -> tuple[int, ...]:
        """The words of the model's leaf."""
        c = self.subject.manifest.config
        return c.layer_count, c.hidden_size, c.kv_head_count, c.head_size, c.vocabulary_size

    def facts(self) -> tuple[object, ...]:
        """The contract's struct."""
        c, (layers, hidden, kv_heads, head_size, vocabulary) = self.claim, self.model()
        return (
            *(c.program, c.rows_in, c.rows_out, c.sequence, c.sampling),
            *(c.layer_start, c.layer_stop, layers, c.prompt, c.positions),
            *(hidden, kv_heads, head_size, vocabulary),
        )

    def sampling(self) -> tuple[object, ...]:
        """The contract's struct."""
        size = self.subject.manifest.config.vocabulary_size
        return sampling_words(self.subject.request.sampling, size)

    def opening(self) -> Appeal:
        """The challenger's call that begins a game; its bond must be approved before."""
        leaf = self.descriptors.model()
        words, signature = self.claim.words(), self.claim.signature
        return Appeal("open", (words, signature, self.model(), leaf.place, leaf.path))

    def settling(self, state: State) -> Appeal:
        """Anybody's call that pays what a game came to."""
        return Appeal("settle", (state, self.claim.words()))

    def descriptor(self, variant: int, place: int) -> tuple[object, ...]:
        """A tensor's descriptor in the contract's parts: constant words, inputs, parameters."""
        words = _words(self.descriptors.tensor(variant, place).payload)
        root = words[10].to_bytes(WORD, "big")
        constant = (*words[:10], root, words[11])
        middle = _TENSOR_WORDS + words[11]
        parameters = tuple(x - (1 << 256) if x >> 255 else x for x in words[middle:])
        return constant, tuple(words[_TENSOR_WORDS:middle]), parameters

    def game(self) -> Game:
        """The game off chain, whose moves nobody signs: the chain vouches for them."""
        nobody = Identity.generate()
        signed = self.subject.claim.signed_bytes()
        challenge = Challenge(signed, nobody.node_id, nobody.node_id, bytes(SALT_BYTES))
        return Game(self.subject, challenge.signed_by(nobody), 0)


class Advocate:
    """Follows one game for a party."""

    party: Literal["defender", "challenger"]

    def __init__(self, case: Case, state: State) -> None:
        """`state` is that of the log `Opened`."""
        self.case, self.state = case, state
        self.game = case.game()

    def hear(self, state: State, shown: bytes) -> None:
        """Take in a log `Moved`.

        Raises:
            PeerCheating: the chain took a move that the game off chain refuses; the two differ.
        """
        before, self.state = self.state, state
        if state.phase == DECIDED:
            return
        if before.phase == CHOOSE and before.shown == 0:
            return  # a program of one tensor: off chain there is nothing to choose
        if self.game.inquiry is None or self._inquires:
            self._play(_body(self.game, before, state, shown))

    def _play(self, body: Body) -> None:
        problem = self.game.play(body)
        if problem is not None:
            raise PeerCheating(f"the chain took a move that is none: {problem}")

    def appeal(self) -> Appeal | None:
        """This party's next call; None if it is not its turn."""
        if self.state.turn != self.party:
            return None
        return self._appeal()

    _inquires = False
    """Whether it plays the end of the game off chain too, where leaves are opened."""

    def _appeal(self) -> Appeal:
        raise NotImplementedError


class Defence(Advocate):
    """The hop's side."""

    party = "defender"
    _inquires = True

    def __init__(self, case: Case, state: State, defender: Defender) -> None:
        super().__init__(case, state)
        self.defender = defender

    def _appeal(self) -> Appeal:
        if self.state.phase == PROVE:
            return self._prove()
        state, case = self.state, self.case
        match self.defender.body(self.game):
            case Commit(root):
                return Appeal("commit", (state, root))
            case Reveal(hashes):
                return Appeal("reveal", (state, _cut(hashes)))
            case OpenCell(kept, trace):
                header = case.descriptors.header(variant_of(self.game.hop, _cell(state)))
                words, sampling = tuple(_words(header.payload)), case.sampling()
                proof = words, header.place, header.path
                return Appeal("cell", (state, case.facts(), sampling, *proof, _cut(kept), trace))
            case Block(payload):
                return Appeal("show", (state, payload))
            case body:
                raise PeerCheating(f"no call of the court is a {type(body).__name__}")

    def _prove(self) -> Appeal:
        state, game = self.state, self.game
        self._open()
        step, i = step_of(game, state), state.element
        exhibits = Exhibits(self.defender.holdings, game.layout, _cell(state))
        descriptor = self.case.descriptor(state.variant, state.place)
        if isinstance(step, Boundary):
            arguments = (state, self.case.facts(), *descriptor, exhibits.fixed(step, i))
            return Appeal("prove_boundary", arguments, "judge")
        if isinstance(step, Rotation):
            tensor, _, parameters = descriptor
            arguments = state, self.case.facts(), tensor, parameters
            return Appeal("prove_rotation", arguments, "judge")
        head = (state, self.case.facts(), self.case.sampling(), *descriptor)
        if game.conviction is None and game.phase == "split":
            body = self.defender.body(game)
            assert isinstance(body, Split)
            parts = tuple(x for part in body.parts for x in part)
            data = exhibits.fixed(step, i) if not state.totals else b""
            return Appeal("prove", (*head, parts, data), "judge")
        start, stop = (state.start, state.stop) if state.totals else (0, step.length(i))
        # a part of a dot product follows from its terms alone
        data = b"" if state.totals and step.chunk == CHUNK else exhibits.fixed(step, i)
        data += exhibits.chunk(step, i, start, stop) if stop else b""
        return Appeal("prove", (*head, (), data), "judge")

    def _play(self, body: Body) -> None:
        if isinstance(body, Split):
            self._open()
        super()._play(body)

    def _open(self) -> None:
        """Open in the own game, move by move, what the judge sees at once."""
        while self.game.conviction is None and self.game.phase == "open":
            super()._play(self.defender.body(self.game))


class Prosecution(Advocate):
    """The challenger's side."""

    party = "challenger"

    def __init__(self, case: Case, state: State, challenger: Challenger) -> None:
        super().__init__(case, state)
        self.challenger = challenger
        self._shown = b""
        """What the last move on the chain showed."""

    def hear(self, state: State, shown: bytes) -> None:
        super().hear(state, shown)
        self._shown = shown

    def _appeal(self) -> Appeal:
        state, game = self.state, self.game
        match state.phase:
            case _ if state.phase == CHOOSE and state.shown == 0:
                return self._name(0, 0, (state.node,))
            case _ if state.phase == CHOOSE:
                index = self._choice()
                place = game.index << game.shown | index
                path = _path_in(game, place)
                if state.tree == TRACE and state.depth + state.shown == state.target:
                    return self._name(index, place, path)
                return Appeal("choose", (state, index, path))
            case _ if state.phase == ELEMENT:
                return Appeal("contradict", (state, self._choice(), self._shown))
            case _:
                parts = _integers(self._shown)
                return Appeal("choose_part", (state, self._part(parts), parts))

    def _choice(self) -> int:
        body = self.challenger.body(self.game)
        assert isinstance(body, Choose)
        return body.index

    def _name(self, index: int, place: int, path: tuple[bytes, ...]) -> Appeal:
        state, case = self.state, self.case
        leaf = case.descriptors.tensor(state.variant, place)
        proof = (*case.descriptor(state.variant, place), leaf.place, leaf.path)
        kept = tuple(self.game.kept_roots)
        return Appeal("choose_tensor", (state, index, path, case.facts(), *proof, kept))

    def _part(self, shown: tuple[int, ...]) -> int:
        """The first part that is not what this party's numbers make."""
        state, game, holdings = self.state, self.game, self.challenger.holdings
        step = step_of(game, state)
        ranges = parts_of(state.start, state.stop, step.chunk)
        each = len(shown) // len(ranges)
        for index, span in enumerate(ranges):
            own = holdings.total(
                game.layout, _cell(state), step, state.element, state.asserted, span
            )
            if own != shown[index * each : (index + 1) * each]:
                return index
        return 0


def step_of(game: Game, state: State) -> Step:
    """The step in dispute."""
    step = game.hop.program(_cell(state)).tensors[state.place].step
    assert step is not None
    return step


def _cell(state: State) -> Cell:
    return Cell(state.stage, state.position)


def _body(game: Game, before: State, after: State, shown: bytes) -> Body:
    """A logged move as the game off chain has it."""
    match before.phase:
        case _ if before.phase == COMMIT:
            return Commit(after.grid)
        case _ if before.phase == REVEAL:
            return Reveal(b"".join(_hashes(shown)))
        case _ if before.phase == CHOOSE:
            return Choose(_reached(before, after) - (before.branch << before.shown))
        case _ if before.phase == CELL:
            return OpenCell(b"".join(_hashes(shown)), after.trace)
        case _ if before.phase == BLOCK:
            return Block(shown)
        case _ if before.phase == ELEMENT:
            return Choose(after.element % per_block(f"i{before.width}"))
        case _ if before.phase == PART:
            ranges = parts_of(before.start, before.stop, step_of(game, before).chunk)
            return Choose(ranges.index((after.start, after.stop)))
        case _:
            step = step_of(game, after)
            ranges = parts_of(after.start, after.stop, step.chunk)
            parts = _integers(shown)
            each = len(parts) // len(ranges)
            return Split(tuple(parts[k : k + each] for k in range(0, len(parts), each)))


def _reached(before: State, after: State) -> int:
    """The place of the node that was chosen, in the tree that was descended before."""
    if after.phase == CELL:
        return after.stage << depth_of(after.positions) | after.position
    return after.place if after.tree != before.tree else after.branch


def _path_in(game: Game, place: int) -> tuple[bytes, ...]:
    """A node that was shown, and its siblings up to the node in dispute."""
    nodes, depth = game.hashes.nodes, game.depth + game.shown
    siblings = [nodes[game.tree, depth - k, (place >> k) ^ 1] for k in range(game.shown)]
    return nodes[game.tree, depth, place], *siblings


def _cut(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[k : k + HASH] for k in range(0, len(joined), HASH))


def _words(payload: bytes) -> list[int]:
    return [int.from_bytes(payload[k : k + WORD], "big") for k in range(0, len(payload), WORD)]


def _hashes(shown: bytes) -> tuple[bytes, ...]:
    return cast("tuple[bytes, ...]", cast(Any, decode)(["bytes32[]"], shown)[0])


def _integers(shown: bytes) -> tuple[int, ...]:
    return cast("tuple[int, ...]", cast(Any, decode)(["int256[]"], shown)[0])
