"""Evidence convicts who lied, and never anybody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conftest import TinyModels
from unisono.cli.app import app
from unisono.errors import ReceiptError
from unisono.models.rows import hash_of, row_bytes, row_hashes
from unisono.types import GenerationRequest, LayerRange, NodeId, SessionId, request_hash
from unisono.verification.evidence import (
    MAX_BYTES,
    RETENTION_EPOCHS,
    VERSION,
    BadRow,
    Contradiction,
    Demand,
    Disagreement,
    Evidence,
    OpenedRow,
    Refusal,
    Silence,
    Statement,
    TileStatement,
    WrongTile,
    claim_hash,
    from_json,
    judge,
    to_json,
)
from unisono.verification.openings import Opener
from unisono.wire.claims import HopClaim, token_hash, tokens_root
from unisono.wire.identity import Identity
from unisono.wire.mountain_range import MountainRange

ALICE, BOB, CAROL = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
EPOCH = 29_000_000
POSITIONS = 7


class Case:
    """A model, a request, and the claims of two honest neighbours: Alice, then Bob."""

    def __init__(self, models: TinyModels) -> None:
        self.opener = Opener(models.llama)
        self.model = models.llama.id
        self.hidden = models.llama.manifest.config.hidden_size
        self.request = GenerationRequest(self.model, (5, 6, 7, 8, 9), max_tokens=3)
        values = np.arange(2 * POSITIONS * self.hidden).reshape(2, POSITIONS, self.hidden)
        self.rows = [[row_bytes(row) for row in part] for part in values]
        tokens = [*self.request.prompt, 11, 12]
        self.inputs = MountainRange([token_hash(t) for t in tokens])
        self.between, self.out = (row_hashes(part) for part in values)
        self.alice = self.claim(ALICE, 0, self.inputs.root(), self.between)
        self.bob = self.claim(BOB, 1, MountainRange(self.between).root(), self.out)

    def claim(
        self, identity: Identity, hop: int, rows_in: str, out: list[bytes], **changes: Any
    ) -> HopClaim:
        fields: dict[str, Any] = {
            "session": SessionId("5e" * 16),
            "request": request_hash(self.request),
            "gateway": CAROL.node_id,
            "model": self.model,
            "node": identity.node_id,
            "hop": hop,
            "layers": LayerRange(2 * hop, 2 * hop + 2),
            "positions": POSITIONS,
            "rows_in": rows_in,
            "rows_out": MountainRange(out).root(),
            "out_tags": b"".join(h[:3] for h in out),
            "tokens": tokens_root((11, 12, 13)) if hop else "",
            "epoch": EPOCH,
        }
        return HopClaim(**(fields | changes)).signed_by(identity)

    def opened(self, hashes: list[bytes], position: int) -> OpenedRow:
        return OpenedRow(hashes[position], MountainRange(hashes).prove(position))

    def opened_input(self, position: int, token: int) -> OpenedRow:
        return OpenedRow(token_hash(token), self.inputs.prove(position))


@pytest.fixture(scope="module")
def case(tiny_models: TinyModels) -> Case:
    return Case(tiny_models)


def changed(claim: HopClaim, identity: Identity, **changes: Any) -> HopClaim:
    return msgspec.structs.replace(claim, **changes).signed_by(identity)


def convicts(evidence: Evidence, identity: Identity, kind: str) -> bool:
    verdict = judge(from_json(to_json(evidence)))
    fault = verdict.fault
    assert verdict.verdict == "INVALID", verdict
    assert fault is not None
    assert identity.node_id in verdict.message
    return (fault.node, fault.kind) == (identity.node_id, kind)


def proves_nothing(evidence: Evidence, why: str) -> bool:
    verdict = judge(from_json(to_json(evidence)))
    assert verdict.verdict == "INCONCLUSIVE", verdict
    assert verdict.message.startswith("it proves nothing: ")
    return verdict.fault is None and why in verdict.message


OTHER = "0f" * 32


@pytest.mark.parametrize(
    "changes", [{"rows_out": OTHER}, {"out_tags": bytes(3 * POSITIONS)}, {"tokens": OTHER}], ids=str
)
@pytest.mark.parametrize("session", ["5e" * 16, "6f" * 16])
def test_two_results_for_the_same_rows_convict_in_any_session(
    case: Case, changes: dict[str, Any], session: str
) -> None:
    other = changed(case.bob, BOB, session=SessionId(session), epoch=EPOCH + 9, **changes)
    assert convicts(Contradiction(VERSION, (case.bob, other)), BOB, "contradiction")
    assert convicts(Contradiction(VERSION, (other, case.bob)), BOB, "contradiction")


@pytest.mark.parametrize(
    "changes",
    [
        {"rows_in": OTHER},
        {"rows_in": OTHER, "rows_out": OTHER},
        {"request": OTHER},
        {"hop": 2},
        {"layers": LayerRange(0, 2)},
        {"gateway": BOB.node_id},
    ],
    ids=str,
)
def test_two_claims_of_one_session_convict(case: Case, changes: dict[str, Any]) -> None:
    other = changed(case.bob, BOB, **changes)
    assert convicts(Contradiction(VERSION, (case.bob, other)), BOB, "equivocation")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"session": SessionId("6f" * 16)},
        {"epoch": EPOCH + 1},
        {"session": SessionId("6f" * 16), "rows_in": OTHER, "rows_out": OTHER},
        {"session": SessionId("6f" * 16), "request": OTHER, "tokens": OTHER},
        {"epoch": EPOCH + 1, "rows_in": OTHER},
        {"positions": 6, "rows_in": OTHER, "rows_out": OTHER, "out_tags": bytes(18)},
    ],
    ids=str,
)
def test_claims_that_can_both_be_true_convict_nobody(case: Case, changes: dict[str, Any]) -> None:
    other = changed(case.bob, BOB, **changes)
    assert proves_nothing(Contradiction(VERSION, (case.bob, other)), "not contradict")


def test_claims_of_two_nodes_do_not_contradict_each_other(case: Case) -> None:
    other = changed(case.bob, ALICE, node=ALICE.node_id, rows_out=OTHER)
    assert proves_nothing(Contradiction(VERSION, (case.bob, other)), "of two nodes")


def test_neighbours_that_signed_different_rows_are_both_suspects(case: Case) -> None:
    lie = [*case.between[:4], hash_of(b"x"), *case.between[5:]]
    bob = changed(case.bob, BOB, rows_in=MountainRange(lie).root())
    for sent, received, position in (
        (None, None, None),
        (case.opened(case.between, 4), case.opened(lie, 4), 4),
    ):
        verdict = judge(from_json(to_json(Disagreement(VERSION, case.alice, bob, sent, received))))
        assert verdict.verdict == "INCONCLUSIVE"
        assert verdict.fault is not None
        assert verdict.fault.suspects == (ALICE.node_id, BOB.node_id)
        assert (verdict.fault.node, verdict.fault.position) == (None, position)
        assert "one of the two lied" in verdict.message
    same = Disagreement(VERSION, case.alice, bob, case.opened(case.between, 3), case.opened(lie, 3))
    assert proves_nothing(same, "do not differ")
    swapped = Disagreement(
        VERSION, case.alice, bob, case.opened(lie, 4), case.opened(case.between, 4)
    )
    assert proves_nothing(swapped, "does not open")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "signed the same rows"),
        ({"rows_in": OTHER, "session": SessionId("6f" * 16)}, "not of two neighbours"),
        ({"rows_in": OTHER, "hop": 2}, "not of two neighbours"),
        ({"rows_in": OTHER, "layers": LayerRange(3, 4)}, "not of two neighbours"),
        ({"rows_in": OTHER, "positions": 6}, "not of two neighbours"),
    ],
)
def test_no_disagreement_is_made_of_other_claims(
    case: Case, changes: dict[str, Any], why: str
) -> None:
    assert proves_nothing(Disagreement(VERSION, case.alice, changed(case.bob, BOB, **changes)), why)


def test_a_tag_that_is_not_of_the_signed_row_convicts(case: Case) -> None:
    row = case.opened(case.out, 2)
    lie = changed(case.bob, BOB, out_tags=bytes(3 * POSITIONS))
    assert convicts(BadRow(VERSION, lie, "out", row), BOB, "wrong_tags")
    short = changed(case.bob, BOB, out_tags=case.bob.out_tags[:6])
    assert convicts(BadRow(VERSION, short, "out", row), BOB, "wrong_tags")
    assert proves_nothing(BadRow(VERSION, case.bob, "out", row), "what the claim says")
    assert proves_nothing(BadRow(VERSION, lie, "in", row), "does not open")


def bad_bytes(hidden: int) -> dict[str, bytes]:
    return {
        "short": bytes(8 * hidden - 8),
        "of half the size": bytes(4 * hidden),
        "long": bytes(8 * hidden + 8),
        "not saturated": bytes(8 * hidden - 8) + (1 << 43).to_bytes(8, "little"),
        "not saturated below": (-(1 << 43)).to_bytes(8, "little", signed=True) * hidden,
        "text": b"hello",
    }


@pytest.mark.parametrize("what", [*bad_bytes(32)])
@pytest.mark.parametrize("side", ["in", "out"])
def test_bytes_that_are_no_row_convict_whoever_signed_them(
    case: Case, what: str, side: str
) -> None:
    encoded = bad_bytes(case.hidden)[what]
    hashes = [*case.out[:3], hash_of(encoded), *case.out[4:]]
    root = MountainRange(hashes).root()
    tags = b"".join(h[:3] for h in hashes)
    changes = {"rows_in": root} if side == "in" else {"rows_out": root, "out_tags": tags}
    claim = changed(case.bob, BOB, **changes)
    size = case.opener.field("config/hidden_size")
    row = case.opened(hashes, 3)
    evidence = BadRow(VERSION, claim, side, row, encoded, size)  # type: ignore[arg-type]
    assert convicts(evidence, BOB, "wrong_row")
    for field in (None, case.opener.field("config/mlp_size")):
        other = msgspec.structs.replace(evidence, hidden=field)
        assert proves_nothing(other, "hidden size is not opened")
    forged = msgspec.structs.replace(size, value=b"i" + bytes([99, *bytes(7)]))
    other = msgspec.structs.replace(evidence, hidden=forged)
    assert proves_nothing(other, "does not open under the model id")


def test_honest_rows_and_tokens_convict_nobody(case: Case) -> None:
    size = case.opener.field("config/hidden_size")
    for position in range(POSITIONS):
        row, encoded = case.opened(case.out, position), case.rows[1][position]
        assert proves_nothing(
            BadRow(VERSION, case.bob, "out", row, encoded, size), "a canonical one"
        )
        row, encoded = case.opened(case.between, position), case.rows[0][position]
        assert proves_nothing(
            BadRow(VERSION, case.bob, "in", row, encoded, size), "a canonical one"
        )
    token = case.opened_input(0, 5)
    data = (5).to_bytes(4, "little")
    assert proves_nothing(BadRow(VERSION, case.alice, "in", token, data, size), "are tokens")
    for position, number in enumerate((*case.request.prompt, 11, 12)):
        row = case.opened_input(position, number)
        why = "read the prompt's token" if position < 5 else "not in the prompt"
        assert proves_nothing(BadRow(VERSION, case.alice, "in", row, request=case.request), why)


def test_a_first_hop_that_read_another_prompt_is_convicted(case: Case) -> None:
    hashes = [token_hash(t) for t in (5, 6, 3, 8, 9, 11, 12)]
    claim = changed(case.alice, ALICE, rows_in=MountainRange(hashes).root())
    row = case.opened(hashes, 2)
    assert convicts(BadRow(VERSION, claim, "in", row, request=case.request), ALICE, "other_prompt")
    other = msgspec.structs.replace(case.request, max_tokens=4)
    assert proves_nothing(BadRow(VERSION, claim, "in", row, request=other), "for another request")


def test_a_signed_weight_that_is_not_the_models_convicts(case: Case) -> None:
    true = case.opener.tile("layers.1.up", 3, 0)
    wrong = bytes([true.data[0] ^ 1]) + true.data[1:]
    said = TileStatement(BOB.node_id, case.model, "layers.1.up", 3, 0, wrong).signed_by(BOB)
    assert convicts(WrongTile(VERSION, said, true), BOB, "wrong_tile")
    honest = msgspec.structs.replace(said, data=true.data).signed_by(BOB)
    assert proves_nothing(WrongTile(VERSION, honest, true), "the statement is true")
    elsewhere = msgspec.structs.replace(said, row=4).signed_by(BOB)
    assert proves_nothing(WrongTile(VERSION, elsewhere, true), "another one")
    forged = msgspec.structs.replace(said, data=b"")
    assert proves_nothing(WrongTile(VERSION, forged, true), "did not sign")
    false = msgspec.structs.replace(true, data=wrong)
    assert proves_nothing(WrongTile(VERSION, honest, false), "does not open")


def demand(case: Case, **changes: Any) -> Demand:
    fields = {
        "challenger": CAROL.node_id,
        "claim": claim_hash(case.bob),
        "side": "out",
        "position": 3,
        "deadline": EPOCH + 2,
    }
    return Demand(**(fields | changes)).signed_by(CAROL)


def says(identity: Identity, what: str, about: Demand) -> Statement:
    made = Statement(identity.node_id, what, about.signed_bytes().hex())  # type: ignore[arg-type]
    return made.signed_by(identity)


def test_a_signed_refusal_convicts_and_silence_does_not(case: Case) -> None:
    asked = demand(case)
    refused = Refusal(VERSION, case.bob, asked, says(BOB, "refuse", asked))
    assert convicts(refused, BOB, "refusal")
    silent = Silence(
        VERSION, case.bob, asked, (says(ALICE, "silent", asked), says(BOB, "silent", asked))
    )
    assert proves_nothing(silent, "1 witnesses say")
    alice = msgspec.structs.replace(refused, statement=says(ALICE, "refuse", asked))
    assert proves_nothing(alice, "did not sign that it refuses")
    other = msgspec.structs.replace(refused, statement=says(BOB, "refuse", demand(case, side="in")))
    assert proves_nothing(other, "did not sign that it refuses")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"position": POSITIONS}, "does not cover position 7"),
        ({"claim": OTHER}, "about another claim"),
        ({"deadline": EPOCH - 1}, "opens its claims for"),
        ({"deadline": EPOCH + RETENTION_EPOCHS + 1}, "opens its claims for"),
    ],
)
def test_what_nobody_needs_to_open_may_be_refused(
    case: Case, changes: dict[str, Any], why: str
) -> None:
    asked = demand(case, **changes)
    assert proves_nothing(Refusal(VERSION, case.bob, asked, says(BOB, "refuse", asked)), why)


def convicting(case: Case) -> list[Evidence]:
    """One of each kind that convicts Bob."""
    asked = demand(case)
    true = case.opener.tile("layers.1.up", 3, 0)
    said = TileStatement(BOB.node_id, case.model, "layers.1.up", 3, 0, b"").signed_by(BOB)
    return [
        Contradiction(VERSION, (case.bob, changed(case.bob, BOB, rows_out=OTHER))),
        Contradiction(VERSION, (case.bob, changed(case.bob, BOB, rows_in=OTHER))),
        BadRow(VERSION, changed(case.bob, BOB, out_tags=b""), "out", case.opened(case.out, 2)),
        Refusal(VERSION, case.bob, asked, says(BOB, "refuse", asked)),
        WrongTile(VERSION, said, true),
    ]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [p for key, item in enumerate(value) for p in leaves(item, (*path, key))]
    return [path]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_altered_convicts_the_signer_or_nobody(case: Case, data: st.DataObject) -> None:
    """No edit of a file makes it convict a node that signed nothing wrong."""
    evidence = data.draw(st.sampled_from(convicting(case)))
    document = json.loads(to_json(evidence))
    path = data.draw(st.sampled_from(leaves(document)))
    at = document
    for key in path[:-1]:
        at = at[key]
    value = at[path[-1]]
    other: st.SearchStrategy[Any] = st.sampled_from([value, ALICE.node_id, OTHER, "", None])
    at[path[-1]] = data.draw(other | st.integers() | st.text(max_size=9))
    try:
        verdict = judge(from_json(json.dumps(document).encode()))
    except ReceiptError:
        return
    if verdict.verdict == "INVALID":
        assert verdict.fault is not None
        assert verdict.fault.node == BOB.node_id


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b" " * (MAX_BYTES + 1),
        b'{"evidence":"badrow","version":1}',
        b'{"version":1}',
    ],
    ids=["deep", "large", "version", "no kind"],
)
def test_evidence_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        from_json(data)


Write = Callable[[Evidence], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(evidence: Evidence) -> Path:
        path = tmp_path / "evidence.json"
        path.write_bytes(to_json(evidence))
        return path

    return made


def test_the_command_names_the_convicted_node(case: Case, write: Write) -> None:
    path = write(convicting(case)[0])
    shown = CliRunner().invoke(app, ["verify", "--evidence", str(path)])
    assert shown.exit_code == 0
    assert shown.stdout.startswith("CONVICTED: hop 1")
    assert BOB.node_id in shown.stdout.replace("\n", "")
    told = CliRunner().invoke(app, ["verify", "--evidence", str(path), "--json"])
    report = json.loads(told.stdout)
    assert report["convicted"] is True
    assert NodeId(report["fault"]["node"]) == BOB.node_id


def test_the_command_says_that_nothing_is_proven(case: Case, write: Write) -> None:
    path = write(Contradiction(VERSION, (case.bob, case.bob)))
    shown = CliRunner().invoke(app, ["verify", "--evidence", str(path)])
    assert shown.exit_code == 1
    assert "NOBODY CONVICTED: it proves nothing" in shown.stdout


@pytest.mark.parametrize("arguments", [[], ["a.json", "--evidence", "b.json"]])
def test_the_command_takes_a_receipt_or_evidence(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["verify", *arguments]).exit_code != 0
