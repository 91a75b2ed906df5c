"""How often each kind of dishonest committee member is named, and whether an honest one ever is.

    nice .venv/bin/python -m bench.committees [--rounds 1000] [--honest 10000]

Committees of five over made-up results, so that thousands of rounds take seconds: who is named
depends on messages and time alone. Odd rounds audit a false claim. The node under audit is
found by tests on real numerics (`tests/verification/stakes/test_service.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence

from tests.verification.stakes.audits import EPOCH, Held, World, hold, identity

from bench.machine import publish
from unisono.simulation.adversaries_stakes import (
    ChangingItsMind,
    Colluding,
    Copying,
    CopyingTheOpening,
    Juror,
    Late,
    Lazy,
    LazyByAgreement,
    ReplayedEpoch,
    Resending,
    Silent,
    TwoFaced,
    Withholding,
    sybil_swarm,
)
from unisono.verification.policy import DEFAULT_RATE
from unisono.verification.stakes.lottery import Roster, Verifier, draw_committee
from unisono.wire.verification_messages import MILLION, ResultCommit

SEATS = 5
PLANTED = 0.1
"""Share of the tasks whose outcome the auditor knows."""

CASES: list[tuple[str, type[Juror], int, bool]] = [
    ("lazy, sees nothing of the claim", Lazy, 1, False),
    ("lazy, repeats the claim", Lazy, 1, True),
    ("lazy by agreement, two of five", LazyByAgreement, 2, True),
    ("lazy by agreement, three of five", LazyByAgreement, 3, True),
    ("copies a commit", Copying, 1, False),
    ("copies a commit and its opening", CopyingTheOpening, 1, False),
    ("never commits", Silent, 1, False),
    ("withholds its reveal", Withholding, 1, False),
    ("reveals late", Late, 1, False),
    ("commits to two results", TwoFaced, 1, False),
    ("opens another result", ChangingItsMind, 1, False),
    ("replays the digest of an old epoch", ReplayedEpoch, 1, False),
    ("sends old messages again", Resending, 1, False),
    ("colluding minority, two of five", Colluding, 2, False),
]


class Tally:
    """What many rounds with one kind of member came to."""

    def __init__(self) -> None:
        self.named: Counter[str] = Counter()
        self.seats = 0
        self.false_accusations = 0
        self.wrong_verdicts = 0
        self.open_verdicts = 0
        self.computed = 0

    def take(self, held: Held, dishonest: Sequence[Juror], lie: bool) -> None:
        found = held.faults
        for juror in dishonest:
            self.seats += 1
            if juror.node in found:
                self.named[found[juror.node].kind] += 1
        self.false_accusations += len(found.keys() - {j.node for j in dishonest})
        verdict = held.verdict.verdict
        self.open_verdicts += verdict == "INCONCLUSIVE"
        self.wrong_verdicts += verdict == ("VALID" if lie else "INVALID")


async def rounds(kind: type[Juror], count: int, claimed: bool, number: int) -> Tally:
    """`number` rounds with `count` members of a kind among honest ones, some of them planted."""
    world, tally = World(7, SEATS), Tally()
    earlier: dict[str, ResultCommit] = {}
    keep = kind in (ReplayedEpoch, Resending)
    dishonest = [kind(world.members[i], random.Random(i)) for i in range(count)]
    honest = [Juror(m, random.Random(1)) for m in world.members[count:]]
    first = await hold(world, [*dishonest, *honest]) if keep else None
    for i in range(number):
        if not keep:
            dishonest = [kind(world.members[j], random.Random(i)) for j in range(count)]
        if first is not None:
            earlier.update({c.digest: c for c in first.committee.commits})
        before = sum(j.computed for j in dishonest)
        held = await hold(
            world,
            [*dishonest, *honest],
            lie=i % 2 == 1,
            claimed=claimed,
            planted=world.chance.random() < PLANTED,
            epoch=EPOCH + 1 + i if keep else EPOCH,
            earlier=earlier,
        )
        tally.take(held, dishonest, i % 2 == 1)
        tally.computed += sum(j.computed for j in dishonest) - before
    return tally


def sybil_seats(identities: int, tickets: int = 5000) -> float:
    """The share of seats of a tenth of the stake, split over so many identities."""
    world = World(3)
    swarm = sybil_swarm(1000, identities, world.chance)
    nodes = {i.node_id for i, _ in swarm}
    honest = [Verifier(identity(900 + i).node_id, 1000) for i in range(9)]
    roster = Roster.of(EPOCH, [*honest, *(Verifier(i.node_id, s) for i, s in swarm)])
    world.roster = roster
    seats = [
        node in nodes
        for _ in range(tickets // 5)
        for node in draw_committee(world.ticket(world.claim()), roster, 1)
    ]
    return sum(seats) / len(seats)


def until_99(chance: float) -> str:
    """Seats until it is named with 99 %."""
    if chance >= 1:
        return "1"
    return "never" if chance <= 0 else str(math.ceil(math.log(0.01) / math.log(1 - chance)))


async def main() -> None:
    """Run every case, print, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--honest", type=int, default=10_000)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, kind, count, claimed in CASES:
        tally = await rounds(kind, count, claimed, options.rounds)
        named = sum(tally.named.values()) / tally.seats
        rows.append(
            {
                "conduct": name,
                "named as": ", ".join(k for k, _ in tally.named.most_common(2)) or "nothing",
                "chance per seat": named,
                "seats until 99 %": until_99(named),
                "computes": tally.computed / tally.seats,
                "honest blamed": tally.false_accusations,
                "wrong verdicts": tally.wrong_verdicts,
                "no verdict": tally.open_verdicts,
            }
        )
    started = time.perf_counter()
    honest = await rounds(Juror, 0, True, options.honest)
    seconds = time.perf_counter() - started
    rows.append(
        {
            "conduct": f"all honest, {options.honest} rounds",
            "named as": "nothing" if not honest.false_accusations else "something",
            "chance per seat": 0.0,
            "seats until 99 %": "",
            "computes": 1.0,
            "honest blamed": honest.false_accusations,
            "wrong verdicts": honest.wrong_verdicts,
            "no verdict": honest.open_verdicts,
        }
    )
    found = DEFAULT_RATE / MILLION
    publish(
        "committees",
        rows,
        seats=SEATS,
        planted=PLANTED,
        rounds=options.rounds,
        round_ms=seconds / options.honest * 1e3,
        sybil_seats={n: sybil_seats(n) for n in (1, 10, 100)},
        cheating_node={
            "audits per million": DEFAULT_RATE,
            "answers until 99 %": until_99(found),
        },
    )


if __name__ == "__main__":
    asyncio.run(main())
