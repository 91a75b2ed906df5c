"""Random sequences of cases, honest and hostile: coins are conserved, never stuck, and nobody who
keeps to the rules loses more than `docs/settlement.md` says.

The machine keeps books of what everybody may have lost; `UNISONO_SEQUENCES` as in
`test_conservation.py`.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.settlement import jury as world_of
from tests.settlement.evm import Reverted
from tests.settlement.jury import (
    ACCUSED,
    BOND,
    BURN,
    COINS,
    COMMIT,
    CONTEST,
    DRAW_BLOCKS,
    FEE,
    FINE,
    LOST,
    MEMBERS,
    NODE,
    OPENER,
    OTHER,
    PAYER,
    PENALTY,
    REMEMBERED,
    REVEAL,
    STAKE,
    UNIT,
    WRONG,
    Jury,
    commit_digest,
    header,
    jury,
    result,
)
from tests.settlement.test_conservation import SEQUENCES
from unisono.settlement.artifacts import artifact
from unisono.settlement.committees import ABSTAIN, Outcome, Phase

MIX = b"\x21" * 32
PEOPLE = [OPENER, OTHER, ACCUSED.address, *MEMBERS]
OPENERS = [OPENER, OTHER]
ANY = st.integers(0, 99)
VOTES = st.sampled_from(["right", "wrong", "wrong", "other", "abstain"])
PLAY = settings(
    max_examples=SEQUENCES if SEQUENCES > 20 else 8,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(0 if SEQUENCES > 1_000 else 120)


@cache
def world() -> Jury:
    made = jury(artifact_of)
    return made


def artifact_of(name: str) -> object:
    return _STUB[name] if name in _STUB else artifact(name)


_STUB: dict[str, object] = {}


class Cases(RuleBasedStateMachine):
    """People open cases about three claims, vote as they like, and come too late or too early."""

    def __init__(self) -> None:
        super().__init__()
        self.world = world()
        self.committee = self.world.committee
        self.kept = self.world.evm.snapshot()
        self.claims = [self.world.claim(session=bytes((n,)) * 32) for n in range(3)]
        self.cases: dict[bytes, int] = {}
        """Case → its claim."""
        self.secrets: dict[tuple[bytes, int], bytes] = {}
        """Case and seat → what was committed to."""
        self.allowed = dict.fromkeys(PEOPLE, 0)
        """The most that each may have lost."""
        self.total = self.sum()

    def sum(self) -> int:
        """All coins of everybody, in whatever place."""
        coin, contracts = self.world.coin, (self.world.registry, self.committee)
        places = [*PEOPLE, PAYER, BURN, *(c.address for c in contracts)]
        return sum(coin.view("balanceOf", x) for x in places)

    def worth(self, person: str) -> int:
        """What a person has and is owed; deposits and stake apart."""
        return self.world.balance(person)  # type: ignore[arg-type]

    def send(self, sender: str, name: str, *arguments: object) -> object:
        """A call that may be refused; None then."""
        try:
            return self.committee.send(sender, name, *arguments)  # type: ignore[arg-type]
        except Reverted:
            return None

    def some_case(self, which: int) -> bytes | None:
        names = list(self.cases)
        return names[which % len(names)] if names else None

    @rule(who=st.integers(0, 1), claim=st.integers(0, 2), seats=st.sampled_from([3, 3, 5, 7, 4]))
    def open(self, who: int, claim: int, seats: int) -> None:
        try:
            case = self.world.open(self.claims[claim], seats, OPENERS[who])
        except Reverted:
            return
        assert case not in self.cases, "a case twice"
        self.cases[case] = claim
        self.allowed[OPENERS[who]] += 3 * BOND + seats * FEE

    @rule(which=ANY, mix=st.sampled_from([MIX, MIX, WRONG]), blocks=st.sampled_from([0, 1, 3]))
    def draw(self, which: int, mix: bytes, blocks: int) -> None:
        case = self.some_case(which)
        if case is None:
            return
        self.world.blocks(blocks, MIX)
        named = self.world.progress(case)["block"] + DRAW_BLOCKS
        done = self.send(OTHER, "draw", case, header(named, mix))
        assert done is None or mix == MIX

    @rule(which=ANY, seat=st.integers(0, 7), vote=VOTES, copied=st.booleans())
    def commit(self, which: int, seat: int, vote: str, copied: bool) -> None:
        case = self.some_case(which)
        if case is None or seat >= len(seats := self.world.seats(case)):
            return
        own = result(self.claims[self.cases[case]])
        chosen = {"right": own, "wrong": WRONG, "other": b"\x65" * 32, "abstain": ABSTAIN}[vote]
        owner = seats[0] if copied else seats[seat]
        digest = commit_digest(case, owner, chosen, world_of.SALT)
        if self.send(seats[seat], "commit", case, seat, digest) is not None:
            assert (case, seat) not in self.secrets
            self.secrets[case, seat] = chosen

    @rule(which=ANY, vote=VOTES)
    def all_commit(self, which: int, vote: str) -> None:
        for seat in range(7):
            self.commit(which, seat, vote, False)

    @rule(
        which=ANY,
        vote=VOTES,
        other=VOTES,
        late=st.sampled_from([1, 2, 9, 9, 9]),
        then=st.sampled_from(["", "close", "contest", "contest close", "contest lost close"]),
    )
    def hear(self, which: int, vote: str, other: str, late: int, then: str) -> None:
        """The whole of a case; one member differs, and the one on seat `late` does not come."""
        self.open(which % 2, which % 3, 3)
        case = self.some_case(which)
        if case is None or self.world.progress(case)["phase"] == Phase.OVER:
            return
        self.draw(which, MIX, DRAW_BLOCKS + 1)
        for _ in range(20):
            self.draw(which, MIX, 0)
        for seat in range(7):
            if seat != late:
                self.commit(which, seat, vote if seat else other, False)
        self.all_reveal(which)
        self.world.evm.pass_time(COMMIT + 1)
        self.all_reveal(which)
        self.world.evm.pass_time(REVEAL + 1)
        self.count(which, "tally", 5)
        if "contest" in then:
            self.contest(which, 2)
        if "lost" in then:
            self.court_rules(which, "lost")
        if "close" in then:
            self.world.evm.pass_time(CONTEST + 1)
            self.count(which, "close", 5)

    @rule(which=ANY)
    def all_reveal(self, which: int) -> None:
        case = self.some_case(which)
        if case is not None:
            for seat, member in enumerate(self.world.seats(case)):
                chosen = self.secrets.get((case, seat), WRONG)
                self.send(member, "reveal", case, seat, chosen, world_of.SALT)

    @rule(which=ANY, seat=st.integers(0, 7), who=ANY)
    def reveal_for_another(self, which: int, seat: int, who: int) -> None:
        case = self.some_case(which)
        if case is None:
            return
        seats, person = self.world.seats(case), PEOPLE[who % len(PEOPLE)]
        chosen = self.secrets.get((case, seat), WRONG)
        done = self.send(person, "reveal", case, seat, chosen, world_of.SALT)
        assert done is None or person == seats[seat]

    @rule(which=ANY, name=st.sampled_from(["tally", "close"]), claim=st.integers(0, 5))
    def count(self, which: int, name: str, claim: int) -> None:
        case = self.some_case(which)
        if case is None:
            return
        right = self.cases[case]
        shown = right if claim > 2 else claim
        before = self.world.progress(case)
        done = self.send(OTHER, name, case, self.claims[shown].words())
        if done is None:
            return
        event(f"outcome {done}")
        assert shown == right
        assert before["phase"] != Phase.OVER
        after = self.world.progress(case)["phase"]
        assert after == (Phase.OVER if done else Phase.ACCUSED)
        assert done != Outcome.CONVICTED or before["phase"] == Phase.ACCUSED

    @rule(which=ANY, who=ANY)
    def contest(self, which: int, who: int) -> None:
        case, person = self.some_case(which), PEOPLE[who % 3]
        if case is not None and self.send(person, "contest", case) is not None:
            assert person == ACCUSED.address

    @rule(which=ANY, how=st.sampled_from(["open", "lost", "convicted"]))
    def court_rules(self, which: int, how: str) -> None:
        case = self.some_case(which)
        if case is None:
            return
        claim = self.claims[self.cases[case]]
        opener = self.committee.view("case_of", case)[0][3]
        state = {"open": b"\x44" * 32, "lost": LOST}.get(how)
        if state is None:
            self.world.court.send(OTHER, "convict", self.world.dispute(claim))
        else:
            self.world.court.send(OTHER, "set_game", self.world.game(claim, opener), state)

    @rule(which=ANY)
    def lapse(self, which: int) -> None:
        case = self.some_case(which)
        if case is not None:
            self.send(OTHER, "lapse", case)

    @rule(who=ANY, again=st.booleans())
    def leave(self, who: int, again: bool) -> None:
        index = who % len(MEMBERS)
        self.send(MEMBERS[index], "release" if again else "leave", bytes((index + 1,)) * 32)

    @rule(seconds=st.sampled_from([1, COMMIT, REVEAL, CONTEST, CONTEST + COMMIT + REVEAL]))
    def time_passes(self, seconds: int) -> None:
        self.world.evm.pass_time(seconds + 1)

    @invariant()
    def coins_are_conserved(self) -> None:
        assert self.sum() == self.total

    @invariant()
    def the_committee_owes_what_it_holds(self) -> None:
        view, open_cases = self.committee.view, 0
        for case in self.cases:
            head, progress = view("case_of", case)
            if progress[0] != Phase.OVER:
                open_cases += head[4] + progress[1] * FEE
        deposits = sum(view("members", k)[2] for k in range(view("size")))
        credits = sum(view("credit", x) for x in (*PEOPLE, BURN))
        held = self.world.balance_of(self.committee.address)
        assert held == open_cases + deposits + credits

    @invariant()
    def stakes_are_locked_while_a_case_is_open_and_only_then(self) -> None:
        expected = 0
        for n, claim in enumerate(self.claims):
            cases, locked, slashed = self.committee.view(
                "dossier", self.world.digest(claim), NODE, ACCUSED.address
            )
            states = [self.world.progress(c)["phase"] for c, m in self.cases.items() if m == n]
            assert cases == sum(phase != Phase.OVER for phase in states)
            assert locked == 0 if slashed or not cases else 0 < locked <= PENALTY
            expected += locked
        assert self.world.stake()[3] == expected

    def teardown(self) -> None:
        try:
            self.world.evm.pass_time(10 * (COMMIT + REVEAL + CONTEST))
            self.world.blocks(DRAW_BLOCKS + REMEMBERED + 1)
            for case, claim in self.cases.items():
                words = self.claims[claim].words()
                opener = self.committee.view("case_of", case)[0][3]
                game = self.world.game(self.claims[claim], opener)
                if self.world.court.view("games", game) != bytes(32):
                    self.world.court.send(OTHER, "set_game", game, LOST)
                for name, arguments in (("lapse", (case,)), ("close", (case, words))):
                    self.send(OTHER, name, *arguments)
                assert self.world.progress(case)["phase"] == Phase.OVER, "a case is stuck"
            for index, member in enumerate(MEMBERS):
                self.send(member, "leave", bytes((index + 1,)) * 32)
            self.world.blocks(DRAW_BLOCKS + REMEMBERED + 1)
            for index, member in enumerate(MEMBERS):
                self.send(member, "release", bytes((index + 1,)) * 32)
            for person in (*PEOPLE, BURN):
                self.send(OTHER, "collect", person)
            assert self.world.balance_of(self.committee.address) == 0, "coins are stuck"
            seated = {k[0] for k in self.secrets}
            for person in OPENERS:
                assert self.worth(person) >= COINS - self.allowed[person]
            for n, member in enumerate(MEMBERS):
                most = FINE * len(self.cases)
                deposit = UNIT * (16, 2, 3, 4, 5)[n % 5]
                assert self.worth(member) >= COINS - min(most, deposit)
            assert self.worth(ACCUSED.address) >= COINS - STAKE
            assert seated <= set(self.cases)
        finally:
            self.world.evm.restore(self.kept)


@pytest.fixture(autouse=True)
def _contracts(compiled: world_of.Compiled) -> None:
    for name in ("committee", "court_stub"):
        _STUB[name] = compiled(name)


class TestCases(Cases.TestCase):  # type: ignore[name-defined]
    settings = PLAY
