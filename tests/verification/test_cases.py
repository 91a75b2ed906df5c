"""One form of file for all evidence: what is none is refused, and each kind finds its judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from tests.verification.fraud.dispute import (
    ARBITER,
    HOP,
    answer_of,
    challenge_of,
    lying_holdings,
)
from tests.verification.fraud.dispute import one_element as altered
from tests.verification.fraud.test_transcript import LIE, played
from tests.verification.light.answered import KEY, MODEL, answered
from tests.verification.stakes.test_committee import World, hold, jurors
from unisono.cli.app import app
from unisono.clock import VirtualClock
from unisono.errors import ConfigurationError, ReceiptError
from unisono.simulation.adversaries_stakes import ChangingItsMind, Juror, Silent
from unisono.types import ModelId, request_hash
from unisono.verification.cases import (
    MAX_BYTES,
    Misconduct,
    Opening,
    from_json,
    judge,
    to_json,
)
from unisono.verification.evidence import VERSION
from unisono.verification.fraud.moves import MOVE_SECONDS
from unisono.verification.fraud.parties import Defender
from unisono.verification.fraud.transcript import Arbiter, Transcript
from unisono.verification.light.audit import LightAudit
from unisono.verification.light.draw import Budget
from unisono.verification.light.making import from_weights
from unisono.verification.light.responder import Responder
from unisono.verification.light.trace import Trace

CELLS = Budget(columns=1, samples=2, heads=1, apart=True)
AUDITS = 20
"""Each draws its samples anew, and one in twelve misses the altered weight."""


@pytest.fixture(scope="module")
def convicting() -> Transcript:
    answer = answer_of("gemma")
    return played(answer, Defender(HOP, lying_holdings(answer, LIE, altered("down", 3, 1 << 45))))


def opened(honest: bool) -> Opening:
    """An opening of a node that computes as it should, or with one altered weight."""
    model = answered("llama")
    weights = model.weights
    if not honest:
        layer = weights.layer[1]
        values = layer.down.values.copy()
        values[0, 0] ^= 1
        changed = replace(layer, down=replace(layer.down, values=values))
        weights = replace(weights, layer={**weights.layer, 1: changed})
    source = [*model.request.prompt, *model.tokens[:-1]]
    trace = Trace(model.config, weights, source)
    receipt = model.receipt(trace)
    claim = msgspec.structs.replace(receipt.hops[0], request=request_hash(model.request))
    claim = msgspec.structs.replace(claim, signature=b"").signed_by(KEY)
    receipt = msgspec.structs.replace(receipt, hops=(claim,))
    responder = Responder(claim, trace, KEY)
    for _ in range(AUDITS):
        audit = LightAudit(model.secrets, receipt, 0, CELLS)
        for challenge in audit.challenges(responder.commit()):
            data = responder.respond(challenge)
            bad = audit.judge(challenge, data).verdict == "INVALID"
            if honest or bad:
                return Opening(VERSION, audit.evidence(challenge, data))
    raise AssertionError("the altered weight was not found")


def saved_secrets(folder: Path, seed: int = 0) -> Path:
    model = answered("llama")
    path = folder / "secrets"
    from_weights(MODEL, model.config, [model.weights], bytes([seed]) * 32).save(path)
    return path


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"evidence":"dispute"}', b"[" * 9000]
)
def test_what_is_no_evidence_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        from_json(data)


def test_truncated_altered_and_oversized_files_are_refused(convicting: Transcript) -> None:
    data = to_json(convicting)
    for bad in (data[:-1], data[: len(data) // 2], data + b"x", b" " * (MAX_BYTES + 1)):
        with pytest.raises(ReceiptError):
            from_json(bad)


def test_a_dispute_is_judged_from_its_file(convicting: Transcript) -> None:
    verdict = judge(from_json(to_json(convicting)))
    assert verdict.fault is not None
    assert (verdict.verdict, verdict.fault.kind) == ("INVALID", "false_step")


def test_an_opening_convicts_for_those_who_have_secrets(tmp_path: Path) -> None:
    read = from_json(to_json(opened(honest=False)))
    assert judge(read).verdict == "INCONCLUSIVE"
    verdict = judge(read, secrets=saved_secrets(tmp_path, 7))
    assert verdict.fault is not None
    assert (verdict.verdict, verdict.fault.node) == ("INVALID", KEY.node_id)


def test_an_honest_opening_convicts_nobody_however_it_is_altered(tmp_path: Path) -> None:
    path, case = saved_secrets(tmp_path), opened(honest=True)
    assert judge(case, secrets=path).verdict == "VALID"
    whole = case.opened
    middle = len(whole.opening) // 2
    broken = bytes([whole.opening[middle] ^ 1])
    for changes in (
        {"opening": whole.opening[:middle] + broken + whole.opening[middle + 1 :]},
        {"opening": b""},
        {"tokens": whole.tokens[:-1]},
        {"claim": msgspec.structs.replace(whole.claim, rows_out="00" * 32)},
        {"trace": msgspec.structs.replace(whole.trace, root="00" * 32)},
        {"challenge": msgspec.structs.replace(whole.challenge, samples=())},
        {"challenge": msgspec.structs.replace(whole.challenge, heads=(0,))},
    ):
        forged = Opening(VERSION, msgspec.structs.replace(whole, **changes))
        assert judge(forged, secrets=path).verdict != "INVALID"
        assert judge(forged).verdict == "INCONCLUSIVE"


def test_secrets_of_another_model_judge_nothing(tmp_path: Path) -> None:
    path = tmp_path / "other"
    model = answered("llama")
    other = ModelId("cd" * 32)
    from_weights(other, model.config, [model.weights], bytes(32)).save(path)
    with pytest.raises(ConfigurationError, match="make them again"):
        judge(opened(honest=True), secrets=path)


async def test_misconduct_in_a_committee_is_judged_in_our_own_words() -> None:
    world = World()
    members = jurors(world, Juror, ChangingItsMind, Silent, Juror, Juror)
    held = await hold(world, members)
    faults = {fault.kind: fault for fault in held.committee.faults}
    lying = msgspec.structs.replace(faults["wrong_opening"], message="somebody else did it")
    verdict = judge(from_json(to_json(Misconduct(VERSION, lying))))
    assert verdict.fault is not None
    assert (verdict.verdict, verdict.fault.node) == ("INVALID", lying.node)
    assert "somebody" not in verdict.message
    # lateness rests on the auditor's word
    assert judge(Misconduct(VERSION, faults["no_commit"])).verdict == "INCONCLUSIVE"


def test_the_command_ends_with_its_own_code_for_each_outcome(
    convicting: Transcript, tmp_path: Path
) -> None:
    nothing = msgspec.structs.replace(convicting, moves=(), signature=b"")
    cases: list[tuple[bytes, int]] = [
        (to_json(convicting), 0),
        (to_json(nothing), 1),
        (b"{", 2),
        (to_json(convicting)[:-9], 2),
        (b" " * (MAX_BYTES + 1), 2),
    ]
    for data, code in cases:
        path = tmp_path / "file.json"
        path.write_bytes(data)
        assert CliRunner().invoke(app, ["verify", "--evidence", str(path)]).exit_code == code
    missing = ["verify", "--evidence", str(tmp_path / "none")]
    assert CliRunner().invoke(app, missing).exit_code == 2


def test_lateness_convicts_for_those_who_trust_the_arbiter(tmp_path: Path) -> None:
    answer = answer_of("llama")
    subject = answer.subject()
    clock = VirtualClock()
    arbiter = Arbiter(subject, challenge_of(subject), ARBITER, clock)
    silent = arbiter.transcript()
    times = (silent.times_ms[0], silent.times_ms[0] + 1000 * MOVE_SECONDS + 1)
    silent = msgspec.structs.replace(silent, times_ms=times, signature=b"")
    signature = ARBITER.sign(silent.signed_bytes())
    silent = msgspec.structs.replace(silent, signature=signature)
    assert silent.version == VERSION
    path = tmp_path / "late.json"
    path.write_bytes(to_json(silent))
    told = ["verify", "--evidence", str(path)]
    assert CliRunner().invoke(app, told).exit_code == 1
    trusting = CliRunner().invoke(app, [*told, "--trust", ARBITER.node_id])
    assert trusting.exit_code == 0
    assert HOP.node_id in trusting.stdout.replace("\n", "")
