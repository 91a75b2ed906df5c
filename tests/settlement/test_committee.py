"""Cases before committees: who sits, what votes count, and who pays whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Evm, Reverted, account
from tests.settlement.jury import (
    ACCUSED,
    BOND,
    BURN,
    CLAIM_SECONDS,
    COINS,
    COMMIT,
    CONTEST,
    DRAW_BLOCKS,
    EPOCH,
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
    RULES,
    SALT,
    STAKE,
    TO_CHALLENGER,
    TO_DEFENDER,
    TO_PAYER,
    UNBOND_SECONDS,
    UNIT,
    WRONG,
    Jury,
    header,
    jury,
    result,
)
from unisono.settlement.artifacts import artifact
from unisono.settlement.claims import court_domain
from unisono.settlement.committees import ABSTAIN, Outcome, Phase, commit_digest
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress
from unisono.wire.claims import EPOCH_SECONDS

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture(scope="module")
def whole(compiled: Compiled) -> Jury:
    return jury(compiled)


@pytest.fixture
def world(whole: Jury) -> Iterator[Jury]:
    kept = whole.evm.snapshot()
    yield whole
    whole.evm.restore(kept)


def member_balances(world: Jury, who: list[str]) -> list[int]:
    """What members have beside their deposits, less what they had."""
    return [world.balance(x) - STARTS[x] for x in who]  # type: ignore[index]


STARTS = {m: COINS - UNIT * (16, 2, 3, 4, 5)[n % 5] for n, m in enumerate(MEMBERS)}


def deposits(world: Jury, case: bytes) -> list[int]:
    return [world.committee.view("seat_of", case, k)[0][2] for k in range(3)]


# Verdicts


def test_a_contradiction_that_nobody_contests_is_slashed_with_shares(world: Jury) -> None:
    claim = world.claim()
    case = world.accused(claim)
    assert world.stake()[0] == STAKE
    with pytest.raises(Reverted, match="the accused may contest"):
        world.close(case, claim)
    world.evm.pass_time(CONTEST + 1)
    assert world.close(case, claim) == Outcome.CONVICTED
    assert world.stake()[:1] == (STAKE - PENALTY,)
    assert world.stake()[3] == 0
    for opener in (OPENER, OTHER):
        with pytest.raises(Reverted, match="convicted already"):
            world.open(claim, 7, opener)
    gain = PENALTY * TO_CHALLENGER // 10_000
    assert world.balance(OPENER) == COINS - 3 * FEE + gain
    assert world.balance(PAYER) == PENALTY * TO_PAYER // 10_000
    assert member_balances(world, world.seats(case)) == [FEE] * 3


def test_a_claim_that_the_majority_shares_costs_the_opener_fees_and_a_share(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    own = result(claim)
    before = deposits(world, case)
    world.vote(case, [own, WRONG, own])
    assert world.tally(case, claim) == Outcome.RIGHT
    lost = BOND * TO_DEFENDER // 10_000
    assert world.balance(OPENER) == COINS - 2 * FEE - lost
    assert world.balance(ACCUSED.address) == COINS - STAKE + lost
    assert deposits(world, case) == [before[0], before[1] - FINE, before[2]]
    assert world.balance(BURN) == FINE
    assert world.stake()[3] == 0


def test_without_a_majority_nobody_is_accused_and_more_seats_can_be_asked(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    world.vote(case, [result(claim), WRONG, b"\x65" * 32])
    assert world.tally(case, claim) == Outcome.UNDECIDED
    assert world.balance(OPENER) == COINS - 3 * FEE
    assert world.balance(BURN) == 0
    for seats in (3, 5):
        with pytest.raises(Reverted, match="more than twice"):
            world.open(claim, seats)
    world.open(claim, 7)


def test_half_of_the_seats_is_no_majority_even_if_all_others_are_absent(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    world.commit(case, 0, WRONG)
    world.evm.pass_time(COMMIT + 1)
    world.reveal(case, 0, WRONG)
    with pytest.raises(Reverted, match="too early"):
        world.tally(case, claim)
    world.evm.pass_time(REVEAL + 1)
    before = deposits(world, case)
    assert world.tally(case, claim) == Outcome.UNDECIDED
    assert deposits(world, case) == [before[0], before[1] - FINE, before[2] - FINE]
    assert world.balance(OPENER) == COINS - FEE


def test_every_change_is_told(world: Jury) -> None:
    told, claim = world.committee.events, world.claim()
    case = world.open(claim)
    of, accused = {"case": case}, ACCUSED.address
    opened = {"claim": world.digest(claim), "operator": accused, "node": NODE, "opener": OPENER}
    from_block = world.evm.block + DRAW_BLOCKS
    assert told() == [("Opened", {**of, **opened, "seats": 3, "draws_from": from_block})]
    mix, seated = b"\x21" * 32, list[Any]()
    world.blocks(DRAW_BLOCKS + 1, mix)
    while not world.committee.send(OTHER, "draw", case, header(from_block, mix)):
        seated += told()
    seated += told()
    members = [world.committee.view("seat_of", case, k)[0][:2] for k in range(3)]
    names = [{"operator": world.seats(case)[k], "node": members[k][0]} for k in range(3)]
    assert seated == [("Seated", {**of, **names[k], "seat": k}) for k in range(3)]
    for seat in range(3):
        world.commit(case, seat, WRONG)
        digest = commit_digest(case, world.seats(case)[seat], WRONG, SALT)
        assert told() == [("Committed", {**of, "seat": seat, "digest": digest})]
    for seat in range(3):
        world.reveal(case, seat, WRONG)
        assert told() == [("Revealed", {**of, "seat": seat, "result": WRONG})]
    world.tally(case, claim)
    until = {"deadline": world.evm.time + CONTEST}
    assert told() == [("Contradicted", {**of, "operator": accused, "result": WRONG, **until})]
    world.evm.pass_time(1)
    world.committee.send(accused, "contest", case)
    until = {"deadline": world.evm.time + CONTEST}
    assert told() == [("Contested", {**of, "opener": OPENER, **until})]
    world.court.send(OTHER, "set_game", world.game(claim, OPENER), LOST)
    assert world.close(case, claim) == Outcome.ACQUITTED
    assert told()[-1] == ("Closed", {**of, "outcome": Outcome.ACQUITTED})
    fined = [event for event in told() if event[0] == "Fined"]
    assert fined == [("Fined", {**of, "operator": n["operator"], "amount": FINE}) for n in names]
    credited = Counter[Any]()
    for name, event in told():
        if name == "Credited":
            credited[event["owner"]] += event["amount"]
    for owner, amount in credited.items():
        assert world.committee.view("credit", owner) == amount
        world.committee.send(OTHER, "collect", owner)
        assert told() == [("Collected", {"owner": owner, "amount": amount})]
    assert credited[accused] == BOND
    index = next(n for n, x in enumerate(MEMBERS) if x not in world.seats(case))
    node = bytes((index + 1,)) * 32
    place, _ = world.committee.view("place", node, MEMBERS[index])
    world.committee.send(MEMBERS[index], "leave", node)
    assert told() == [("Left", {"place": place})]
    world.enrol(OTHER, b"\x71" * 32, 3)
    enrolled = {"node": b"\x71" * 32, "operator": OTHER, "place": len(MEMBERS), "units": 3}
    assert told() == [("Enrolled", enrolled)]


# The court


def test_a_contested_verdict_needs_the_court_or_it_is_dropped(world: Jury) -> None:
    claim = world.claim()
    case = world.accused(claim)
    with pytest.raises(Reverted, match="only the accused"):
        world.committee.send(OTHER, "contest", case)
    world.committee.send(ACCUSED.address, "contest", case)
    world.evm.pass_time(CONTEST)
    with pytest.raises(Reverted, match="another phase"):
        world.committee.send(ACCUSED.address, "contest", case)
    with pytest.raises(Reverted, match="may go to the court"):
        world.close(case, claim)
    world.evm.pass_time(1)
    assert world.close(case, claim) == Outcome.DROPPED
    assert world.balance(ACCUSED.address) == COINS - STAKE + BOND
    assert world.balance(OPENER) == COINS - BOND - 3 * FEE
    assert world.balance(BURN) == 0
    assert world.stake()[:4] == (STAKE, 0, 0, 0)


def test_the_accused_may_contest_until_the_end_of_the_window(world: Jury) -> None:
    case = world.accused(world.claim())
    world.evm.pass_time(CONTEST)
    kept = world.evm.snapshot()
    world.committee.send(ACCUSED.address, "contest", case)
    world.evm.restore(kept)
    world.evm.pass_time(1)
    with pytest.raises(Reverted, match="too late"):
        world.committee.send(ACCUSED.address, "contest", case)


def test_an_opener_who_loses_before_the_court_pays_and_so_does_the_majority(world: Jury) -> None:
    claim = world.claim()
    case = world.accused(claim, [WRONG, result(claim), WRONG])
    world.committee.send(ACCUSED.address, "contest", case)
    game = world.game(claim, OPENER)
    world.court.send(OTHER, "set_game", game, b"\x44" * 32)
    world.evm.pass_time(10 * CONTEST)
    with pytest.raises(Reverted, match="has not decided"):
        world.close(case, claim)
    world.court.send(OTHER, "set_game", game, LOST)
    before = deposits(world, case)
    assert world.close(case, claim) == Outcome.ACQUITTED
    assert world.balance(ACCUSED.address) == COINS - STAKE + BOND
    assert deposits(world, case) == [before[0] - FINE, before[1], before[2] - FINE]
    with pytest.raises(Reverted, match="lost before the court"):
        world.open(claim, 7)


def test_a_game_that_a_friend_of_the_accused_loses_acquits_nobody(world: Jury) -> None:
    claim = world.claim()
    case = world.accused(claim)
    world.committee.send(ACCUSED.address, "contest", case)
    world.court.send(OTHER, "set_game", world.game(claim, OTHER), LOST)
    with pytest.raises(Reverted, match="may go to the court"):
        world.close(case, claim)


@pytest.mark.parametrize("contest", [False, True])
def test_what_the_court_convicted_is_slashed_here_once(world: Jury, contest: bool) -> None:
    claim = world.claim()
    case = world.accused(claim, [WRONG, WRONG, result(claim)])
    second = world.accused(claim, opener=OTHER)
    if contest:
        world.committee.send(ACCUSED.address, "contest", case)
    world.court.send(OTHER, "convict", world.dispute(claim))
    before = deposits(world, case)
    assert world.close(case, claim) == Outcome.GUILTY
    assert world.close(second, claim) == Outcome.GUILTY
    assert world.stake()[:4] == (STAKE - PENALTY, 0, 0, 0)
    assert world.balance(OPENER) == COINS - 2 * FEE + PENALTY * TO_CHALLENGER // 10_000
    assert world.balance(OTHER) == COINS - 3 * FEE
    assert deposits(world, case)[2] == before[2] - FINE
    with pytest.raises(Reverted, match="convicted already"):
        world.open(claim, 7)


def test_what_the_court_found_without_the_committee_earns_its_opener_nothing(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    world.vote(case, [result(claim), WRONG, ABSTAIN])
    world.court.send(OTHER, "convict", world.dispute(claim))
    assert world.tally(case, claim) == Outcome.GUILTY
    assert world.balance(OPENER) == COINS - FEE
    assert world.stake()[:4] == (STAKE - PENALTY, 0, 0, 0)


def test_cases_about_one_claim_take_one_penalty_and_cost_more_and_more(world: Jury) -> None:
    claim = world.claim()
    first = world.accused(claim)
    second = world.accused(claim, opener=OTHER)
    assert world.committee.view("dossier", world.digest(claim), NODE, ACCUSED.address) == (
        2,
        PENALTY,
        False,
    )
    assert world.balance(OTHER) == COINS - 2 * BOND - 3 * FEE
    world.evm.pass_time(CONTEST + 1)
    assert world.close(second, claim) == Outcome.CONVICTED
    assert world.close(first, claim) == Outcome.GUILTY
    assert world.stake()[:4] == (STAKE - PENALTY, 0, 0, 0)
    assert world.balance(OPENER) == COINS - 3 * FEE
    with pytest.raises(Reverted, match="another phase"):
        world.close(second, claim)


# The draw


@pytest.mark.slow
def test_seats_are_drawn_by_weight(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    named = world.evm.block + DRAW_BLOCKS
    world.blocks(DRAW_BLOCKS)
    first: Counter[str] = Counter()
    for n in range(300):
        kept = world.evm.snapshot()
        mix = n.to_bytes(32, "big")
        world.evm.mine(header(named, mix))
        while not world.committee.send(OTHER, "draw", case, header(named, mix)):
            pass
        found = world.seats(case)
        assert len(set(found)) == 3
        first[found[0]] += 1
        world.evm.restore(kept)
    weights = {m: (16, 2, 3, 4, 5)[n % 5] for n, m in enumerate(MEMBERS)}
    total = sum(weights.values())
    spread = sum((first[m] - 300 * w / total) ** 2 / (300 * w / total) for m, w in weights.items())
    assert spread < 26.1  # chi-squared, 8 degrees of freedom: one in a thousand is above


def test_all_who_draw_get_the_same_seats_from_the_named_block_only(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    named = world.evm.block + DRAW_BLOCKS
    world.blocks(DRAW_BLOCKS)
    with pytest.raises(Reverted, match="too early"):
        world.committee.send(OPENER, "draw", case, header(named, b"\x21" * 32))
    world.blocks(1)
    for wrong in (header(named, b"\x22" * 32), header(named - 1, b"\x21" * 32), b""):
        with pytest.raises(Reverted, match="not the block's header"):
            world.committee.send(OPENER, "draw", case, wrong)
    kept = world.evm.snapshot()
    early = world.drawn(case)
    world.evm.restore(kept)
    world.blocks(200, b"\x99" * 32)
    assert world.drawn(case) == early
    with pytest.raises(Reverted, match="another phase"):
        world.committee.send(OPENER, "draw", case, header(named, b"\x21" * 32))


def test_a_draw_that_nobody_made_in_time_costs_a_share_and_ends_the_case(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    named = world.evm.block + DRAW_BLOCKS
    world.blocks(DRAW_BLOCKS + REMEMBERED)
    with pytest.raises(Reverted, match="it can be drawn"):
        world.committee.send(OTHER, "lapse", case)
    world.blocks(1)
    with pytest.raises(Reverted, match="too late"):
        world.committee.send(OTHER, "draw", case, header(named, b"\x21" * 32))
    assert world.committee.send(OTHER, "lapse", case) == Outcome.UNDRAWN
    assert world.balance(OPENER) == COINS - BOND * TO_DEFENDER // 10_000
    assert world.stake()[3] == 0
    with pytest.raises(Reverted, match="more than twice"):
        world.open(claim)


def test_the_bench_of_a_case_is_that_of_its_opening(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    kept = world.evm.snapshot()
    expected = world.drawn(case)
    world.evm.restore(kept)
    newcomer = world.evm.next_address(OTHER)
    world.fund(newcomer)
    world.enrol(newcomer, b"\x51" * 32, 16)
    for member in expected:
        world.committee.send(member, "leave", bytes((MEMBERS.index(member) + 1,)) * 32)
    assert world.drawn(case) == expected
    world.blocks(1)
    later = world.open(world.claim(session=b"\x32" * 32))
    assert not set(world.drawn(later)) & set(expected)


def test_members_of_the_opening_block_do_not_sit(world: Jury) -> None:
    """Who opens a case knows the block, and could enrol in it for just this case."""
    names = [account(200 + n) for n in range(4)]
    world.fund(*names)
    for n, name in enumerate(names):
        world.enrol(name, bytes((200 + n,)) * 32, 16)

    def seated() -> set[EvmAddress]:
        """Who sits in any of six cases that are opened now."""
        found: set[EvmAddress] = set()
        for n in range(6):
            kept = world.evm.snapshot()
            found.update(world.drawn(world.open(world.claim(session=bytes((n,)) * 32))))
            world.evm.restore(kept)
        return found

    assert not seated() & set(names)
    world.blocks(1)
    assert seated() & set(names)


def test_accused_and_opener_do_not_sit(world: Jury) -> None:
    for person, node in ((ACCUSED.address, b"\x61" * 32), (OPENER, b"\x62" * 32)):
        world.enrol(person, node, 16)
    for n in range(8):
        world.blocks(1)
        case = world.open(world.claim(session=bytes((n,)) * 32))
        assert not {ACCUSED.address, OPENER} & set(world.drawn(case, bytes((n,)) * 32))
        world.evm.pass_time(COMMIT + REVEAL + CONTEST + 1)
        world.committee.send(OTHER, "lapse", case)


# The vote


def test_a_commit_that_was_copied_cannot_be_opened(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    owner, thief, third = world.drawn(case)
    digest = commit_digest(case, owner, WRONG, b"\x05" * 32)
    for seat, member in enumerate((owner, thief, third)):
        world.committee.send(member, "commit", case, seat, digest)
    world.reveal(case, 0, WRONG)
    for seat in (1, 2):
        with pytest.raises(Reverted, match="not what was committed"):
            world.reveal(case, seat, WRONG)
    world.evm.pass_time(REVEAL + 1)
    assert world.tally(case, claim) == Outcome.UNDECIDED
    assert world.balance(BURN) == 2 * FINE


def test_seats_are_their_members_and_moves_have_their_time(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    with pytest.raises(Reverted, match="another phase"):
        world.committee.send(MEMBERS[0], "commit", case, 0, WRONG)
    a, b, _ = world.drawn(case)
    with pytest.raises(Reverted, match="another's seat"):
        world.committee.send(b, "commit", case, 0, WRONG)
    with pytest.raises(Reverted, match="no such seat"):
        world.committee.send(b, "commit", case, 3, WRONG)
    world.commit(case, 0, WRONG)
    with pytest.raises(Reverted, match="committed already"):
        world.commit(case, 0, WRONG)
    with pytest.raises(Reverted, match="too early"):
        world.reveal(case, 0, WRONG)
    world.evm.pass_time(COMMIT + 1)
    with pytest.raises(Reverted, match="too late"):
        world.commit(case, 1, WRONG)
    with pytest.raises(Reverted, match="another's seat"):
        world.committee.send(b, "reveal", case, 0, WRONG, b"\x05" * 32)
    with pytest.raises(Reverted, match="not what was committed"):
        world.reveal(case, 0, result(claim))
    world.reveal(case, 0, WRONG)
    with pytest.raises(Reverted, match="revealed already"):
        world.reveal(case, 0, WRONG)
    assert a == world.seats(case)[0]


def test_a_late_reveal_does_not_count(world: Jury) -> None:
    case = world.open(world.claim())
    world.drawn(case)
    for seat in range(3):
        world.commit(case, seat, WRONG)
    world.evm.pass_time(REVEAL)
    world.reveal(case, 0, WRONG)
    world.evm.pass_time(1)
    with pytest.raises(Reverted, match="too late"):
        world.reveal(case, 1, WRONG)


def test_members_that_were_given_nothing_abstain_without_fee_or_fine(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    before = deposits(world, case)
    world.vote(case, [ABSTAIN] * 3)
    assert world.tally(case, claim) == Outcome.UNDECIDED
    assert deposits(world, case) == before
    assert world.balance(OPENER) == COINS


def test_reveals_of_another_case_do_not_fit(world: Jury) -> None:
    first, second = (world.open(world.claim(session=bytes((n,)) * 32)) for n in (1, 2))
    seats, others = world.drawn(first), world.drawn(second)
    member = next(x for x in seats if x in others)
    world.committee.send(
        member,
        "commit",
        second,
        others.index(member),
        commit_digest(first, member, WRONG, b"\x05" * 32),
    )
    world.evm.pass_time(COMMIT + 1)
    with pytest.raises(Reverted, match="not what was committed"):
        world.reveal(second, others.index(member), WRONG)


# Accusations


def test_a_claim_must_be_shown_and_must_be_one(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    world.vote(case, [WRONG] * 3)
    with pytest.raises(Reverted, match="another claim"):
        world.tally(case, world.claim(rows_out=WRONG))
    world.evm.pass_time(REVEAL + CONTEST)
    with pytest.raises(Reverted, match="can be shown"):
        world.committee.send(OTHER, "lapse", case)
    world.evm.pass_time(1)
    assert world.committee.send(OTHER, "lapse", case) == Outcome.FAULTY
    assert world.balance(OPENER) == COINS - 3 * FEE - BOND * TO_DEFENDER // 10_000
    assert member_balances(world, world.seats(case)) == [FEE] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"payer": "0x" + "0" * 40},
        {"epoch": EPOCH + 2},
        {"epoch": EPOCH - 2 - CLAIM_SECONDS // 10},
        {"node": b"\x78" * 32},
    ],
)
def test_claims_that_cannot_be_accused_convict_nobody(
    world: Jury, changes: dict[str, object]
) -> None:
    claim = world.claim(**changes)
    case = world.open(claim, node=NODE)
    world.drawn(case)
    world.vote(case, [WRONG] * 3)
    assert world.tally(case, claim) == Outcome.FAULTY
    assert world.stake()[:4] == (STAKE, 0, 0, 0)


def test_only_what_the_operator_signed_for_this_court_is_heard(world: Jury) -> None:
    claim = world.claim()
    for domain in (
        court_domain(world.evm.chain_id + 1, world.court.address),
        court_domain(world.evm.chain_id, world.committee.address),
    ):
        with pytest.raises(Reverted, match="nothing at stake"):
            world.open(claim, signature=claim.signed_by(ACCUSED, domain).signature)
    stranger = claim.signed_by(SettlementKey(bytes(31) + b"\x09"), world.domain)
    with pytest.raises(Reverted, match="nothing at stake"):
        world.open(stranger)
    with pytest.raises(Reverted):
        world.open(claim, signature=claim.signature[:64])
    r, s, v = claim.signature[:32], claim.signature[32:64], claim.signature[64]
    turned = (ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")
    for other in (r + turned + bytes((55 - v,)), r + s + b"\x1d"):
        with pytest.raises(Reverted, match="another form"):
            world.open(claim, signature=other)


def test_on_the_other_half_of_a_chain_that_splits_nothing_fits(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    world.drawn(case)
    world.vote(case, [WRONG] * 3)
    number = world.evm.chain_id
    world.evm.set_chain_id(number + 1)
    try:
        with pytest.raises(Reverted, match="another claim"):
            world.tally(case, claim)
        with pytest.raises(Reverted, match="nothing at stake"):
            world.open(claim, 7)
    finally:
        world.evm.set_chain_id(number)


def test_one_operators_case_does_not_touch_anothers_about_the_same_claim(world: Jury) -> None:
    thief = SettlementKey(bytes(31) + b"\x0b")
    world.fund(thief.address)
    world.registry.send(thief.address, "register", NODE, b"\1" * 32, b"\2" * 32)
    world.registry.send(thief.address, "stake", NODE, 1)
    claim = world.claim()
    cheap = world.open(claim.signed_by(thief, world.domain))
    case = world.accused(claim)
    assert case != cheap
    world.evm.pass_time(CONTEST + 1)
    assert world.close(case, claim) == Outcome.CONVICTED
    assert world.stake()[:4] == (STAKE - PENALTY, 0, 0, 0)


@pytest.mark.parametrize("seats", [0, 1, 2, 4, 16, 17])
def test_other_numbers_of_seats_are_refused(world: Jury, seats: int) -> None:
    with pytest.raises(Reverted, match="seats"):
        world.open(world.claim(), seats)


def test_the_stake_of_the_accused_cannot_leave(world: Jury) -> None:
    claim = world.claim()
    world.open(claim)
    world.registry.send(ACCUSED.address, "unbond", NODE, STAKE)
    world.evm.pass_time(7_201)
    assert world.registry.send(ACCUSED.address, "withdraw", NODE) == STAKE - PENALTY
    with pytest.raises(Reverted, match="locked"):
        world.registry.send(ACCUSED.address, "withdraw", NODE)


# The bench


def test_a_deposit_comes_back_when_no_case_can_need_it(world: Jury) -> None:
    case = world.open(world.claim())
    member = world.drawn(case)[0]
    node = bytes((MEMBERS.index(member) + 1,)) * 32
    with pytest.raises(Reverted, match="leave first"):
        world.committee.send(member, "release", node)
    world.committee.send(member, "leave", node)
    with pytest.raises(Reverted, match="left already"):
        world.committee.send(member, "leave", node)
    with pytest.raises(Reverted, match="under way"):
        world.committee.send(member, "release", node)
    world.blocks(DRAW_BLOCKS + REMEMBERED + 1)
    with pytest.raises(Reverted, match="seated"):
        world.committee.send(member, "release", node)
    world.evm.pass_time(COMMIT + REVEAL + CONTEST + 1)
    world.committee.send(OTHER, "lapse", case)
    world.committee.send(member, "release", node)
    assert world.balance(member) == COINS - FINE
    with pytest.raises(Reverted, match="not enrolled"):
        world.committee.send(member, "release", node)
    place = world.committee.view("size")
    world.committee.send(member, "enrol", node, 1)
    assert world.committee.view("size") == place, "the free place is taken first"


def test_members_are_registered_once_and_pay(world: Jury) -> None:
    with pytest.raises(Reverted, match="unregistered"):
        world.committee.send(OTHER, "enrol", b"\x71" * 32, 1)
    with pytest.raises(Reverted, match="enrolled already"):
        world.committee.send(MEMBERS[0], "enrol", b"\1" * 32, 1)
    world.registry.send(OTHER, "register", b"\x71" * 32, b"\1" * 32, b"\2" * 32)
    for units in (0, 17):
        with pytest.raises(Reverted, match="units"):
            world.committee.send(OTHER, "enrol", b"\x71" * 32, units)


def test_members_whose_deposit_is_used_up_are_retired(world: Jury) -> None:
    for k in range(40):
        if world.committee.view("present") < len(MEMBERS):
            break
        case = world.open(world.claim(session=bytes((k,)) * 32), 5)
        world.drawn(case, bytes((k,)) * 32)
        world.evm.pass_time(COMMIT + REVEAL + CONTEST + 1)
        world.committee.send(OTHER, "lapse", case)
        world.blocks(1)
    left = [world.committee.view("members", k)[2] for k in range(len(MEMBERS))]
    assert world.committee.view("present") == sum(x >= FINE for x in left) < len(MEMBERS)
    assert sum(left) + world.balance(BURN) == UNIT * (2 * (16 + 2 + 3 + 4 + 5) - 5)


NAMES = (
    *("bond", "cases", "penalty", "unit", "fee", "fine", "draw_blocks", "commit", "reveal"),
    *("contest", "epoch_seconds", "claim_seconds", "to_challenger", "to_payer", "to_defender"),
)
LONGEST = UNBOND_SECONDS - 2 * EPOCH_SECONDS - 1
"""Seconds in which a claim can be accused, if its stake is not to leave before."""


def deploy_with(
    compiled: Compiled, own_judge: bool = True, own_court: bool = True, **rules: int
) -> None:
    """A committee on a new chain whose rules are those of the tests but for some."""
    evm = Evm()
    coin = evm.deploy(artifact("stablecoin"), OTHER)
    place = evm.next_address(OTHER, 3)
    judges = [place] if own_judge else []
    registries = [
        evm.deploy(artifact("registry"), OTHER, coin.address, UNBOND_SECONDS, judges)
        for _ in range(2)
    ]
    stub = compiled("court_stub")
    court = evm.deploy(stub, OTHER, registries[0 if own_court else 1].address)
    all_rules = tuple((dict(zip(NAMES, RULES, strict=True)) | rules).values())
    made = evm.deploy(compiled("committee"), OTHER, registries[0].address, court.address, all_rules)
    assert not own_judge or made.address == place


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"own_judge": False}, "not this registry's judge"),
        ({"own_court": False}, "not this registry's court"),
        *(({x: 0}, "a rule is 0") for x in (*NAMES[:3], "draw_blocks", "epoch_seconds")),
        *(({"fine": x}, "a fine above a unit") for x in (0, UNIT + 1)),
        *(({x: 0}, "no time") for x in ("commit", "reveal", "contest")),
        ({"to_payer": 10_000 - TO_CHALLENGER + 1}, "shares above the whole"),
        ({"to_defender": 10_001}, "shares above the whole"),
        ({"claim_seconds": LONGEST + 1}, "stakes could leave"),
    ],
)
def test_rules_that_do_not_fit_are_refused_at_deployment(
    compiled: Compiled, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Reverted, match=reason):
        deploy_with(compiled, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fine": UNIT, "to_payer": 10_000 - TO_CHALLENGER, "to_defender": 10_000},
        {"claim_seconds": LONGEST},
    ],
)
def test_rules_at_their_limits_are_taken(compiled: Compiled, changes: dict[str, Any]) -> None:
    deploy_with(compiled, **changes)


def test_the_phases_and_outcomes_have_the_contracts_numbers(world: Jury) -> None:
    claim = world.claim()
    case = world.open(claim)
    assert world.progress(case)["phase"] == Phase.DRAWING
    world.drawn(case)
    assert world.progress(case)["phase"] == Phase.VOTING
    world.vote(case, [WRONG] * 3)
    world.tally(case, claim)
    assert world.progress(case)["phase"] == Phase.ACCUSED
    world.committee.send(ACCUSED.address, "contest", case)
    assert world.progress(case)["phase"] == Phase.CONTESTED
    world.evm.pass_time(CONTEST + 1)
    world.close(case, claim)
    assert world.progress(case)["phase"] == Phase.OVER
