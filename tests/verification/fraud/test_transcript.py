"""A dispute in a file convicts whom it convicted, for anyone."""

from __future__ import annotations

import msgspec
import pytest

from tests.verification.fraud.dispute import (
    ARBITER,
    CHALLENGER,
    HOP,
    Answer,
    answer_of,
    challenge_of,
    lying_holdings,
    one_element,
)
from unisono.clock import VirtualClock
from unisono.errors import PeerCheating, ReceiptError
from unisono.models.config import RopeConfig
from unisono.types import NodeId
from unisono.verification.fraud.moves import Commit, Move, encode_move
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.transcript import (
    MAX_BYTES,
    Arbiter,
    Transcript,
    check_transcript,
    from_json,
    to_json,
)

LIE = Cell(2, 6)


def arbiter_of(answer: Answer, clock: VirtualClock) -> Arbiter:
    subject = answer.subject()
    return Arbiter(subject, challenge_of(subject), ARBITER, clock)


def played(answer: Answer, defender: Defender) -> Transcript:
    arbiter = arbiter_of(answer, VirtualClock())
    challenger = Challenger(CHALLENGER, answer.honest)
    while arbiter.conviction is None:
        game = arbiter.game
        party = defender if game.turn == "defender" else challenger
        assert arbiter.receive(party.move(game))
    return arbiter.transcript()


@pytest.fixture(scope="module")
def convicting() -> Transcript:
    answer = answer_of("gemma")
    return played(
        answer, Defender(HOP, lying_holdings(answer, LIE, one_element("down", 3, 1 << 45)))
    )


def test_a_file_convicts_the_hop_at_the_step_where_it_lied(convicting: Transcript) -> None:
    verdict = check_transcript(to_json(convicting))
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert (verdict.fault.node, verdict.fault.position) == (HOP.node_id, LIE.position)
    assert "'down'" in verdict.message
    assert "layer 1" in verdict.message


def test_a_file_convicts_a_challenger_that_was_wrong() -> None:
    answer = answer_of("gemma")
    verdict = check_transcript(to_json(played(answer, Defender(HOP, answer.honest))))
    assert verdict.fault is not None
    assert verdict.fault.node == CHALLENGER.node_id


def test_signed_moves_convict_without_an_arbiter(convicting: Transcript) -> None:
    bare = msgspec.structs.replace(convicting, signature=b"", times_ms=())
    assert check_transcript(to_json(bare)).verdict == "INVALID"


def test_a_file_that_ends_early_proves_nothing(convicting: Transcript) -> None:
    for count in range(len(convicting.moves)):
        cut = msgspec.structs.replace(convicting, moves=convicting.moves[:count], signature=b"")
        assert check_transcript(to_json(cut)).verdict == "INCONCLUSIVE"


def test_an_altered_file_convicts_nobody_else(convicting: Transcript) -> None:
    for number, move in enumerate(convicting.moves):
        altered = bytearray(move)
        altered[len(altered) // 2] ^= 1
        moves = list(convicting.moves)
        moves[number] = bytes(altered)
        changed = msgspec.structs.replace(convicting, moves=tuple(moves))
        verdict = check_transcript(to_json(changed))
        assert verdict.fault is None or verdict.fault.node == HOP.node_id


def test_another_subject_is_no_dispute(convicting: Transcript) -> None:
    subject = convicting.subject
    claim = msgspec.structs.replace(subject.claim, positions=8)
    request = msgspec.structs.replace(subject.request, max_tokens=77)
    entry = subject.manifest.tensors["final_norm"]
    tensors = subject.manifest.tensors | {
        "final_norm": msgspec.structs.replace(entry, exponent=entry.exponent + 1)
    }
    manifest = msgspec.structs.replace(subject.manifest, tensors=tensors)
    for changed in (
        msgspec.structs.replace(subject, claim=claim),
        msgspec.structs.replace(subject, request=request),
        msgspec.structs.replace(subject, tokens=subject.tokens[:-1]),
        msgspec.structs.replace(subject, manifest=manifest),
    ):
        altered = msgspec.structs.replace(convicting, subject=changed)
        assert check_transcript(to_json(altered)).verdict == "INCONCLUSIVE"


def test_a_model_of_absurd_numbers_is_no_dispute(convicting: Transcript) -> None:
    subject = convicting.subject
    for config in (
        msgspec.structs.replace(subject.manifest.config, norm_epsilon="1e-999999999"),
        msgspec.structs.replace(
            subject.manifest.config, rope=RopeConfig(theta="9" * 100_000, scaling="yarn")
        ),
    ):
        manifest = msgspec.structs.replace(subject.manifest, config=config)
        altered = msgspec.structs.replace(
            convicting, subject=msgspec.structs.replace(subject, manifest=manifest)
        )
        assert check_transcript(to_json(altered)).verdict == "INCONCLUSIVE"


async def test_silence_convicts_on_the_word_of_an_arbiter_that_the_reader_trusts() -> None:
    answer = answer_of("llama")
    clock = VirtualClock()
    arbiter = arbiter_of(answer, clock)
    defender = Defender(HOP, answer.honest)
    await clock.advance(30)
    assert arbiter.receive(defender.move(arbiter.game))
    assert arbiter.seconds_left == pytest.approx(60, abs=0.01)
    await clock.advance(60.5)
    assert arbiter.conviction is not None
    assert not arbiter.receive(defender.move(arbiter.game))
    transcript = arbiter.transcript()
    verdict = check_transcript(to_json(transcript), {ARBITER.node_id})
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    assert (verdict.fault.kind, verdict.fault.node) == ("timeout", HOP.node_id)
    # whoever challenges names the arbiter, and may name a friend
    stranger = check_transcript(to_json(transcript), {CHALLENGER.node_id})
    assert (stranger.verdict, stranger.fault) == ("INCONCLUSIVE", verdict.fault)
    # without the arbiter's word, or with another's, time proves nothing
    unsigned = msgspec.structs.replace(transcript, signature=b"")
    earlier = msgspec.structs.replace(
        transcript, times_ms=tuple(t + i for i, t in enumerate(transcript.times_ms))
    )
    for other in (unsigned, earlier):
        told = check_transcript(to_json(other), {ARBITER.node_id})
        assert told.verdict == "INCONCLUSIVE"


def test_two_moves_of_one_number_stay_in_the_file() -> None:
    answer = answer_of("llama")
    arbiter = arbiter_of(answer, VirtualClock())
    assert arbiter.receive(Defender(HOP, answer.honest).move(arbiter.game))
    other = Move(0, arbiter.game.id, Commit(bytes(32))).signed_by(HOP, arbiter.game.id)
    assert arbiter.receive(encode_move(other))
    verdict = check_transcript(to_json(arbiter.transcript()))
    assert verdict.fault is not None
    assert (verdict.fault.kind, verdict.fault.node) == ("equivocation", HOP.node_id)


def test_an_arbiter_hosts_only_games_that_name_it() -> None:
    subject = answer_of("llama").subject()
    with pytest.raises(PeerCheating):
        Arbiter(subject, challenge_of(subject), HOP, VirtualClock())


def test_a_challenge_must_be_signed_and_about_the_claim() -> None:
    answer = answer_of("llama")
    subject = answer.subject()
    challenge = challenge_of(subject)
    for wrong in (
        msgspec.structs.replace(challenge, challenger=NodeId("00" * 32)),
        msgspec.structs.replace(challenge, salt=b"short").signed_by(CHALLENGER),
        msgspec.structs.replace(challenge, claim=bytes(32)).signed_by(CHALLENGER),
    ):
        with pytest.raises(PeerCheating):
            Arbiter(subject, wrong, ARBITER, VirtualClock())


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"evidence":"dispute"}'])
def test_what_is_no_transcript_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        check_transcript(data)


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(ReceiptError):
        from_json(b" " * (MAX_BYTES + 1))
