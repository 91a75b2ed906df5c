"""An honest party is never convicted, whichever side it is on and whatever the other does."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verification.fraud.dispute import (
    CHALLENGER,
    HOP,
    Answer,
    Splitter,
    answer_of,
    challenge_of,
    changed,
    lying_holdings,
    one_element,
    play,
)
from unisono.types import canonical
from unisono.verification.fraud.game import Conviction, Game
from unisono.verification.fraud.holdings import Holdings, Signed
from unisono.verification.fraud.moves import (
    Block,
    Body,
    Choose,
    Commit,
    Move,
    Open,
    OpenCell,
    Opening,
    Reveal,
    Split,
    encode_move,
)
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.steps import Cell
from unisono.wire.identity import Identity

FEW = settings(max_examples=60, deadline=None)
hashes = st.binary(min_size=32, max_size=32)
numbers = st.integers(-(1 << 63), (1 << 63) - 1)
bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(Commit, st.binary(max_size=40)),
    st.builds(Reveal, st.lists(hashes, max_size=16).map(b"".join)),
    st.builds(Choose, st.integers(-2, 300)),
    st.builds(OpenCell, st.binary(max_size=200), hashes),
    st.builds(Block, st.binary(max_size=256)),
    st.builds(
        Open,
        st.lists(
            st.builds(
                Opening,
                st.integers(-1, 5),
                st.integers(-1, 40),
                st.binary(max_size=256),
                st.lists(hashes, max_size=8).map(b"".join),
            ),
            max_size=3,
        ).map(tuple),
    ),
    st.builds(
        Split,
        st.lists(st.lists(numbers, max_size=5).map(tuple), max_size=16).map(tuple),
    ),
)


def signed(identity: Identity, game: Game, body: Body) -> bytes:
    move = Move(len(game.moves), game.previous, body)
    return encode_move(move.signed_by(identity, game.id))


def finish(game: Game, other: Callable[[], bytes], honest: Defender | Challenger) -> Conviction:
    """Let an honest party play against bytes; who sends none that count loses by time."""
    side = "defender" if isinstance(honest, Defender) else "challenger"
    now = 0
    while game.conviction is None:
        if game.turn == side:
            assert game.receive(honest.move(game), now)
        elif not game.receive(other(), now):
            now = game.deadline_ms + 1
            game.expire(now)
    return game.conviction


@FEW
@given(data=st.data())
def test_an_honest_hop_is_not_convicted_whatever_a_challenger_chooses(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["llama", "gemma", "qwen2"]))
    layers = data.draw(st.sampled_from([(0, 2), (1, 2), (0, 1)]))
    answer = answer_of(family, layers=layers)
    game = answer.game()
    odd = data.draw(st.sampled_from([0, 0, 10]))

    def choose() -> bytes:
        if data.draw(st.integers(0, 99)) < odd:
            return signed(CHALLENGER, game, data.draw(bodies))
        if game.phase == "choose":
            first, depth = game.index << game.shown, game.depth + game.shown
            shown = [i for i in range(1 << game.shown) if game.exists(depth, first + i)]
            return signed(CHALLENGER, game, Choose(data.draw(st.sampled_from(shown))))
        if game.phase == "element":
            count = len(game.block[1])
        else:
            assert game.inquiry is not None
            count = len(game.inquiry.parts)
        return signed(CHALLENGER, game, Choose(data.draw(st.integers(0, count - 1))))

    conviction = finish(game, choose, Defender(HOP, answer.honest))
    assert conviction.party == "challenger"
    assert conviction.reason in ("false_challenge", "malformed")
    assert len(game.moves) <= 40


@FEW
@given(data=st.data())
def test_an_honest_hop_survives_any_bytes(data: st.DataObject) -> None:
    answer = answer_of("llama")
    game = answer.game()
    stranger = Identity.from_seed(b"\7" * 32)

    def send() -> bytes:
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            return data.draw(st.binary(max_size=1100))
        identity = stranger if kind == 1 else CHALLENGER
        return signed(identity, game, data.draw(bodies))

    assert finish(game, send, Defender(HOP, answer.honest)).party == "challenger"


def wrong_rows(answer: Answer, position: int) -> tuple[Signed, Challenger]:
    """A claim with one wrong row out, and who can tell."""
    honest = answer.honest.signed
    target = Cell(answer.hop.stages - 1, position), "sent"
    lie = Signed(honest.rows_in, changed(honest.rows_out, position))
    return lie, Challenger(CHALLENGER, answer.honest, target)


@FEW
@given(data=st.data())
def test_an_honest_challenger_convicts_whatever_the_hop_shows(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["llama", "gemma", "yarn"]))
    layers = data.draw(st.sampled_from([(0, 2), (1, 2)]))
    answer = answer_of(family, layers=layers)
    lie, challenger = wrong_rows(answer, data.draw(st.integers(0, 8)))
    game = answer.game(answer.subject(lie))
    cell = Cell(data.draw(st.integers(0, answer.hop.stages - 1)), data.draw(st.integers(0, 8)))
    tensors = [t for t in answer.hop.program(cell).tensors if t.name not in ("sent", "chosen")]
    liar = Holdings(answer.material, answer.honest.trees, lie, answer.honest.grid)
    if tensors and data.draw(st.booleans()):
        tensor = data.draw(st.sampled_from(tensors))
        bits = 15 if tensor.format == "i2" else 30
        delta = data.draw(st.integers(-(1 << bits), 1 << bits).filter(bool))
        values = answer.honest.trace(cell).values[tensor.name]
        if tensor.format == "i2":
            delta = max(-32768 - int(values[0]), min(32767 - int(values[0]), delta)) or 1
        try:
            liar = lying_holdings(answer, cell, one_element(tensor.name, 0, delta))
        except (IndexError, RuntimeError, OverflowError, ValueError):
            liar = answer.honest
        liar.signed = lie
    defender = data.draw(st.sampled_from([Defender, Splitter]))(HOP, liar)
    odd = data.draw(st.sampled_from([0, 0, 5]))

    def show() -> bytes:
        if data.draw(st.integers(0, 99)) < odd:
            return signed(HOP, game, data.draw(bodies))
        try:
            return defender.move(game)
        except (IndexError, OverflowError, ValueError, ZeroDivisionError, AssertionError):
            return signed(HOP, game, data.draw(bodies))

    conviction = finish(game, show, challenger)
    assert conviction.node == HOP.node_id


def test_an_answer_to_another_move_convicts_nobody() -> None:
    answer = answer_of("llama")
    game, other = answer.game(), answer.game()
    defender, challenger = Defender(HOP, answer.honest), Challenger(CHALLENGER, answer.honest)
    for _ in range(2):
        party = defender if game.turn == "defender" else challenger
        move = party.move(game)
        assert game.receive(move, 0)
        assert other.receive(move, 0)
    assert game.receive(signed(CHALLENGER, game, Choose(0)), 0)
    assert other.receive(signed(CHALLENGER, other, Choose(1)), 0)
    honest = defender.move(other)
    assert not game.receive(honest, 0)
    assert game.conviction is None
    # both answers of an honest hop to a challenger that signed two moves prove nothing against it
    assert game.receive(defender.move(game), 0)
    assert not game.receive(honest, 0)
    assert game.conviction is None


def test_two_moves_of_one_number_convict_whoever_signed_both() -> None:
    answer = answer_of("llama")
    game = answer.game()
    defender = Defender(HOP, answer.honest)
    assert game.receive(defender.move(game), 0)
    second = Move(0, game.id, Commit(secrets.token_bytes(32))).signed_by(HOP, game.id)
    assert game.receive(encode_move(second), 0)
    assert game.conviction is not None
    assert (game.conviction.node, game.conviction.reason) == (HOP.node_id, "equivocation")


def test_the_same_move_twice_is_no_fault() -> None:
    answer = answer_of("llama")
    game = answer.game()
    move = Defender(HOP, answer.honest).move(game)
    assert game.receive(move, 0)
    assert not game.receive(move, 0)
    assert game.conviction is None


def test_a_move_that_is_not_canonical_is_no_move() -> None:
    answer = answer_of("llama")
    game = answer.game()
    move = Defender(HOP, answer.honest).move(game)
    raw = msgspec.msgpack.decode(move)
    longer = b"\xdc\x00\x04" + b"".join(canonical(part) for part in raw)
    assert msgspec.msgpack.decode(longer) == raw
    assert not game.receive(longer, 0)
    assert not game.receive(move + b"\0", 0)
    assert game.receive(move, 0)


def test_whoever_is_silent_loses() -> None:
    answer = answer_of("llama")
    game = answer.game()
    game.expire(60_000)
    assert game.conviction is None
    game.expire(60_001)
    assert game.conviction is not None
    assert (game.conviction.party, game.conviction.reason) == ("defender", "timeout")


def test_a_hop_cannot_stall_by_opening_little() -> None:
    answer = answer_of("llama")
    lie, challenger = wrong_rows(answer, 3)

    class Slow(Defender):
        def body(self, game: Game) -> Body:
            body = super().body(game)
            if isinstance(body, Open):
                return Open(body.openings[:1])
            return body

    liar = Holdings(answer.material, answer.honest.trees, lie, answer.honest.grid)
    outcome = play(answer.game(answer.subject(lie)), Slow(HOP, liar), challenger)
    assert outcome.conviction.node == HOP.node_id
    assert outcome.moves <= 40


def test_a_challenge_of_nothing_is_lost() -> None:
    answer = answer_of("gemma")
    challenger = Challenger(CHALLENGER, answer.honest)
    outcome = play(answer.game(), Defender(HOP, answer.honest), challenger)
    assert (outcome.conviction.node, outcome.conviction.reason) == (
        CHALLENGER.node_id,
        "false_challenge",
    )


def test_two_games_about_one_claim_have_two_ids() -> None:
    subject = answer_of("llama").subject()
    first = challenge_of(subject)
    second = msgspec.structs.replace(first, salt=b"\1" * 16).signed_by(CHALLENGER)
    assert first.game() != second.game()
