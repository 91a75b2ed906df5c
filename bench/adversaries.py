"""Every attack: what catches it, how often, what it costs, and whether anyone honest is accused.

    nice .venv/bin/python -m bench.adversaries [--model NAME] [--honest 10000] [--answers 16]

Nodes cheat in real networks of one process and are judged by the code that judges anywhere.
Without `--model` the model is small and random: who is caught depends on equality alone. Figures
of one answer are of answers that an attack made false; one that changed nothing is no lie.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from tests.verification.adversaries.trial import Court, Served, serve

from bench.caught import Line
from bench.committees import Tally, rounds, sybil_seats
from bench.honest_receipts import Honest
from bench.machine import publish
from unisono.clock import VirtualClock
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.store import ModelStore, StoredModel
from unisono.simulation.adversaries_stakes import (
    Colluding,
    Copying,
    Juror,
    Lazy,
    LazyByAgreement,
    Withholding,
)
from unisono.types import Q16, GenerationRequest, Sampling, SessionId
from unisono.verification.adversaries.answering import (
    CachedAnswer,
    IgnoredBan,
    OtherPrompt,
    OtherSeed,
    OtherTemperature,
    TruncatedContext,
    UncheckedDraft,
)
from unisono.verification.adversaries.computing import (
    Dishonest,
    FewerLayers,
    FourBitWeights,
    OtherWeights,
    PassedOn,
    RandomRows,
)
from unisono.verification.adversaries.disputing import Griefing, Slow
from unisono.verification.adversaries.signing import Equivocation, ReplayedReceipt
from unisono.verification.evidence import judge
from unisono.verification.fraud.moves import MOVE_SECONDS
from unisono.verification.policy import (
    ADVERSARIES,
    DEFAULT_RATE,
    Tier,
)
from unisono.verification.stakes.lottery import wins
from unisono.verification.verdict import Fault

PROMPT, TOKENS = 24, 16
BANNED = 10
"""Every so many-th token is banned."""
NODES: list[tuple[str, type[Dishonest], int]] = [
    ("other weights (1 in 1,000 altered)", OtherWeights, 1),
    ("4-bit weights", FourBitWeights, 1),
    ("one layer fewer", FewerLayers, 1),
    ("random rows", RandomRows, 1),
    ("other prompt", OtherPrompt, 1),
    ("truncated context", TruncatedContext, 1),
    ("other seed", OtherSeed, 1),
    ("other temperature", OtherTemperature, 1),
    ("banned tokens drawn", IgnoredBan, 1),
    ("cheap draft unchecked", UncheckedDraft, 1),
    ("cached answer of another request", CachedAnswer, 1),
    ("colluding hop pair", PassedOn, 2),
]
MEMBERS: list[tuple[str, type[Juror], int, bool, str]] = [
    ("lazy verifier", Lazy, 1, True, "reputation; the stake where planted"),
    ("copying verifier", Copying, 1, False, "stake"),
    ("withheld reveal", Withholding, 1, False, "reputation"),
    ("colluding minority (2 of 5)", Colluding, 2, False, "reputation; the stake where planted"),
]


@dataclass(frozen=True)
class Counts:
    """How much is measured."""

    answers: int
    lights: int
    """Light audits per answer."""
    committees: int
    lots: int
    disputes: int


def requests(model: StoredModel, count: int) -> list[GenerationRequest]:
    """Prompts that differ; every `BANNED`-th token is banned."""
    size = model.manifest.config.vocabulary_size
    shown = min(size, 4096)
    banned = tuple((t, IgnoredBan.BAN) for t in range(0, shown, BANNED))
    return [
        GenerationRequest(
            model.id,
            tuple((11 * i + 7 * j * j + 5 * (j % 4)) % shown for j in range(PROMPT)),
            TOKENS,
            Sampling(temperature=Q16, logit_bias=banned, seed=i),
        )
        for i in range(count)
    ]


async def node(
    court: Court, name: str, attack: type[Dishonest], blocks: int, counts: Counts, saved: float
) -> Line:
    """One dishonest node's answers before every mechanism. What is false an honest network shows
    that is asked the same."""
    asked = requests(court.model, counts.answers + 1)
    # side by side all would be the first request of whoever caches it
    together = 1 if attack is CachedAnswer else 8
    served = (await serve(court.model, asked, attack, blocks=blocks, together=together))[1:]
    true = (await serve(court.model, asked, blocks=blocks))[1:]
    false = [one for one, other in zip(served, true, strict=True) if content(one) != content(other)]
    line = Line(name, "", "stake, escrow", saved=saved, false=(len(false), len(served)))
    kinds: set[str] = set()
    caught = 0
    for one in false:
        assert court.form(one) is None
        verdict = court.replay(one)
        caught += verdict.verdict == "INVALID"
        if verdict.fault is not None:
            kinds.add(verdict.fault.kind)
            line.accused += verdict.fault.node != one.claim.node
    line.audits = caught, len(false)
    line.caught_by = f"replay ({', '.join(sorted(kinds))}), committee, light audit, dispute"
    if false:
        line.lights = _lights(court, line, false, counts)
        line.committees = await _committees(court, line, false, counts)
        line.disputes = await _disputes(court, line, false, counts)
        line.lots = await _lots(court, line, false, counts)
    return line


def content(one: Served) -> object:
    """What there is only one true value of."""
    return one.receipt.tokens, one.claim.rows_out


def _lights(court: Court, line: Line, false: Sequence[Served], counts: Counts) -> tuple[int, int]:
    caught = judged = 0
    for one in false:
        trace = court.trace(one)
        for seed in range(counts.lights):
            verdict = court.light(one, trace, seed=seed)
            judged += 1
            caught += verdict.verdict == "INVALID"
            if verdict.fault is not None:
                line.accused += verdict.fault.node != one.claim.node
    return caught, judged


async def _committees(
    court: Court, line: Line, false: Sequence[Served], counts: Counts
) -> tuple[int, int]:
    """Committees of the default size, a fifth of whose candidates vote for the cheat."""
    truths = [court.truth(one) for one in false]
    seats = Tier.STANDARD.value.seats
    caught = 0
    for i in range(counts.committees):
        one, truth = false[i % len(false)], truths[i % len(false)]
        claim = msgspec.structs.replace(one.claim, session=SessionId(f"{i:032x}"))
        verdict, _, _ = await court.committee(
            one, truth, seats, LazyByAgreement, ADVERSARIES, claim
        )
        caught += verdict.verdict == "INVALID"
        if verdict.fault is not None:
            line.accused += verdict.fault.node != one.claim.node
    return caught, counts.committees


async def _disputes(
    court: Court, line: Line, false: Sequence[Served], counts: Counts
) -> tuple[int, int]:
    caught = held = 0
    for one in false[: counts.disputes]:
        conviction, _ = await court.dispute(one)
        held += 1
        caught += conviction.node == one.claim.node
        line.accused += conviction.node != one.claim.node
    return caught, held


async def _lots(
    court: Court, line: Line, false: Sequence[Served], counts: Counts
) -> tuple[int, int, int]:
    """False answers of a proven node at the default rate: a lot for each, a committee for those
    that win."""
    caught = won = 0
    truths = {id(one): court.truth(one) for one in false}
    seats = Tier.STANDARD.value.seats
    for i in range(counts.lots):
        one = false[i % len(false)]
        session = SessionId(court.chance.randbytes(16).hex())
        claim = msgspec.structs.replace(one.claim, session=session)
        if wins(court.ticket(claim, DEFAULT_RATE)):
            won += 1
            verdict, _, _ = await court.committee(
                one, truths[id(one)], seats, LazyByAgreement, ADVERSARIES, claim
            )
            caught += verdict.verdict == "INVALID"
            if verdict.fault is not None:
                line.accused += verdict.fault.node != one.claim.node
    return caught, won, counts.lots


async def signers(court: Court, honest: Sequence[Served]) -> list[Line]:
    """Old receipts again, and two claims for one session."""
    fresh = requests(court.model, len(honest) + 1)[-1]

    def resent(one: Served) -> Fault | None:
        past = ReplayedReceipt(one.receipt, one.gateway)
        return court.form(replace(one, receipt=past.resent(fresh)))

    def restamped(one: Served) -> Fault | None:
        past = ReplayedReceipt(one.receipt, one.gateway)
        return court.form(replace(one, receipt=past.restamped(fresh, one.hops)))

    def twice(one: Served) -> Fault | None:
        return judge(Equivocation(one.hops[0]).evidence(one.claim)).fault

    lines: list[Line] = []
    for name, by, costs, saved, shown in (
        ("replayed receipt", "wire check, receipt form", "the pay", 1.0, resent),
        ("replayed rows, signed anew", "receipt form", "stake", 1.0, restamped),
        ("equivocation", "evidence, once both are seen", "stake", 0.0, twice),
    ):
        faults = [shown(one) for one in honest]
        named = [f.node == one.claim.node for f, one in zip(faults, honest, strict=True) if f]
        line = Line(name, by, costs, (sum(named), len(faults)), saved=saved)
        line.accused = len(named) - sum(named)
        lines.append(line)
    return lines


async def members(number: int) -> list[Line]:
    """Dishonest committee members, and many identities of one stake."""
    lines: list[Line] = []
    for name, kind, count, claimed, costs in MEMBERS:
        tally: Tally = await rounds(kind, count, claimed, number)
        by = ", ".join(k for k, _ in tally.named.most_common(2))
        line = Line(name, f"committee ({by})", costs, (sum(tally.named.values()), tally.seats))
        line.saved = 1 - tally.computed / tally.seats
        line.accused = tally.false_accusations
        line.note = f"{tally.wrong_verdicts} wrong verdicts in {number} rounds"
        lines.append(line)
    one, many = sybil_seats(1), sybil_seats(100)
    swarm = Line("Sybil swarm", "lottery by stake", "a stake for each seat")
    swarm.note = f"a tenth of the stake as 100 nodes holds {many:.1%} of the seats, as 1 {one:.1%}"
    return [*lines, swarm]


async def disputers(court: Court, honest: Sequence[Served], false: Sequence[Served]) -> list[Line]:
    """Challengers that contradict at random, and parties that move slowly."""
    moves: list[int] = []
    sizes: list[int] = []
    caught = 0
    start = time.perf_counter()
    for i, one in enumerate(honest):
        challenger = Griefing(court.challenger, random.Random(i))
        conviction, arbiter = await court.dispute(one, challenger=challenger)
        caught += conviction.party == "challenger"
        moves.append(len(arbiter.game.moves))
        sizes.append(len(msgspec.msgpack.encode(arbiter.transcript().moves)))
    each = 1e3 * (time.perf_counter() - start) / len(honest)
    grief = Line("griefing challenger", "dispute", "its deposit", (caught, len(honest)), saved=1.0)
    grief.accused = len(honest) - caught
    grief.note = (
        f"costs the hop {np.mean(moves):.0f} moves, {np.mean(sizes) / 1000:.1f} KB and {each:.0f} "
        "ms, trace included"
    )
    minutes: list[float] = []
    caught = 0
    for one in false:
        for seconds in (MOVE_SECONDS - 1.0, MOVE_SECONDS + 1.0):
            clock = VirtualClock()
            begun = clock.now()
            defender = Slow(court.defender(one), seconds)
            conviction, _ = await court.dispute(one, defender, clock=clock)
            caught += conviction.node == one.claim.node
            minutes.append((clock.now() - begun) / 60)
    slow = Line("denial by slow moves", "dispute (deadline)", "stake", (caught, len(minutes)))
    slow.accused = len(minutes) - caught
    slow.note = f"convicted after {max(minutes):.0f} minutes at most"
    return [grief, slow]


async def honest_audits(court: Court, served: Sequence[Served], number: int) -> Line:
    """Honest answers before light audits, and before committees of which a fifth of the candidates
    accuse falsely together. Whom a committee convicts may appeal: the fraud game decides."""
    line = Line("none: honest nodes", "nothing", "")
    wrong = acquitted = 0
    for one in served:
        verdict = court.light(one, court.trace(one), seed=number)
        line.accused += verdict.verdict != "VALID"
    truths = [court.truth(one) for one in served]
    for i in range(number):
        one = served[i % len(served)]
        claim = msgspec.structs.replace(one.claim, session=SessionId(f"{i:032x}"))
        truth = truths[i % len(served)]
        verdict, _, _ = await court.committee(one, truth, 3, Colluding, ADVERSARIES, claim)
        if verdict.verdict == "INVALID":
            wrong += 1
            challenger = Griefing(court.challenger, random.Random(i))
            conviction, _ = await court.dispute(one, challenger=challenger)
            acquitted += conviction.party == "challenger"
            line.accused += conviction.party == "defender"
    line.audits = line.accused, len(served) + number
    line.note = (
        f"{number} committees with a fifth of colluders convicted {wrong}; the fraud game "
        f"acquitted {acquitted} of these"
    )
    return line


async def measure(court: Court, counts: Counts) -> list[Line]:
    """All attacks, and a line of honest nodes."""
    saved_of = ModelStore().ensure(DEFAULT_MODEL).manifest.config
    lines: list[Line] = []
    for name, attack, blocks in NODES:
        start = time.perf_counter()
        lines.append(await node(court, name, attack, blocks, counts, attack.saved(saved_of)))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    true = await serve(court.model, requests(court.model, counts.answers), None)
    false = await serve(court.model, requests(court.model, 3), OtherPrompt)
    lines += await signers(court, true)
    lines += await members(10 * counts.answers)
    lines += await disputers(court, true, false)
    lines.append(await honest_audits(court, true, counts.committees))
    return lines


def keep(court: Court, counts: Counts, lines: Sequence[Line], honest: Honest) -> None:
    """Print and keep."""
    checks = honest["checks"]
    won, drawn = (sum(line.lots[i] for line in lines) for i in (1, 2))
    accused = sum(line.accused for line in lines) + sum(c["accusations"] for c in checks)
    publish("honest-receipts", honest["made"], receipts=honest["receipts"], checks=checks)
    publish(
        "adversaries",
        [line.row(won / drawn) for line in lines],
        figures=[asdict(line) for line in lines],
        model=court.model.id,
        layers=court.model.layer_count,
        default_rate_per_million=DEFAULT_RATE,
        lottery=[won, drawn],
        adversaries_among_verifiers=ADVERSARIES,
        counts=asdict(counts),
        honest_receipts=honest["receipts"],
        honest_checks=checks,
        false_accusations=accused,
    )
    for row in checks:
        print(row)
    print(f"the lottery named {won} of {drawn}; {accused} false accusations")


def tiny(folder: Path) -> tuple[ModelStore, StoredModel]:
    """A random Llama of four layers."""
    from tests.models import tiny

    made = tiny.build("llama", num_hidden_layers=4, max_position_embeddings=1024)
    store = ModelStore(folder / "store")
    return store, store.ensure(str(tiny.save(made, folder / "tiny-llama")))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a real model; default: a small random one")
    parser.add_argument("--honest", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--lights", type=int, default=4)
    parser.add_argument("--committees", type=int, default=150)
    parser.add_argument("--lots", type=int, default=2000)
    parser.add_argument("--disputes", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = Counts(
        options.answers, options.lights, options.committees, options.lots, options.disputes
    )
    with tempfile.TemporaryDirectory() as name:
        if options.model:
            store = ModelStore()
            model = store.ensure(options.model)
        else:
            store, model = tiny(Path(name))
        court, out = Court(store, model), Path(name) / "honest.json"
        command = [sys.executable, "-m", "bench.honest_receipts", "all"]
        command += [str(store.root), model.id, str(options.honest), str(out)]
        with subprocess.Popen(command) as honest:
            try:
                lines = asyncio.run(measure(court, counts))
            finally:
                court.close()
            if honest.wait() != 0:
                raise SystemExit("making and checking honest receipts failed")
        keep(court, counts, lines, json.loads(out.read_text()))


if __name__ == "__main__":
    main()
