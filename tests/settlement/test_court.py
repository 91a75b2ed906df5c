"""The court on chain: whoever is right wins and is paid, whatever the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256

import msgspec
import pytest

from tests.settlement.courtroom import (
    BOND,
    CHALLENGER,
    COINS,
    EPOCH,
    MOVE_SECONDS,
    OPERATOR,
    OTHER,
    PAYER,
    PENALTY,
    STAKE,
    Courtroom,
    courtroom,
    moved,
)
from tests.settlement.evm import NOBODY, Reverted, account
from tests.tiny_weights import FAMILIES
from tests.verification.fraud import dispute
from tests.verification.fraud.dispute import (
    HOP,
    PROMPT,
    Answer,
    Splitter,
    answer_of,
    changed,
    lying_holdings,
    one_element,
)
from unisono.settlement.advocates import ELEMENT, PROVE, Appeal, Case, Defence, Prosecution, State
from unisono.settlement.claims import court_domain
from unisono.settlement.eip712 import checksummed
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress
from unisono.verification.fraud.holdings import Holdings, Signed
from unisono.verification.fraud.operators import step_types
from unisono.verification.fraud.parties import Challenger, Defender, Target
from unisono.verification.fraud.steps import Cell

ONE_STEP, DOT_PRODUCT, WHOLE_DISPUTE = 400_000, 150_000, 5_000_000
BOUNDARY = 100_000
"""Gas limits."""
BURN = checksummed(bytes(18) + b"\xde\xad")


@pytest.fixture(scope="module")
def built() -> Courtroom:
    return courtroom()


@pytest.fixture
def court(built: Courtroom) -> Iterator[Courtroom]:
    kept = built.evm.snapshot()
    built.gas = {}
    yield built
    built.evm.restore(kept)


def sides(
    case: Case,
    answer: Answer,
    liar: Holdings,
    target: Target | None,
    defender: type[Defender] = Defender,
) -> tuple[Callable[[State], Defence], Callable[[State], Prosecution]]:
    """A hop that shows what `liar` holds, against an honest challenger."""
    return (
        lambda state: Defence(case, state, defender(HOP, liar)),
        lambda state: Prosecution(
            case, state, Challenger(dispute.CHALLENGER, answer.honest, target)
        ),
    )


def cheat_is_slashed(court: Courtroom, case: Case, state: State) -> None:
    """Settle, and see who was paid."""
    assert not state.challenger_lost
    court.settle(case, state)
    stake, leaving, _, locked, *_ = court.stake(case.claim.node)
    assert (stake, leaving, locked) == (STAKE - PENALTY, 0, 0)
    assert court.balance(CHALLENGER) == COINS + PENALTY // 2
    assert court.balance(PAYER) == PENALTY * 3 // 10
    assert court.balance(BURN) == PENALTY // 5


def lies_are_caught(
    court: Courtroom,
    answer: Answer,
    cell: Cell,
    defender: type[Defender] = Defender,
    only: set[str] | None = None,
) -> set[str]:
    """A lie at each tensor of a cell; returns the step types that were judged."""
    case, found = court.case(answer), set[str]()
    for number, tensor in enumerate(answer.hop.program(cell).tensors):
        if tensor.step is None or (only is not None and tensor.name not in only):
            continue
        i = (7 * number + 3) % tensor.size
        lie = one_element(tensor.name, i, -1 if tensor.name == "top_k.bound" else 1)
        parties = sides(
            case, answer, lying_holdings(answer, cell, lie), (cell, tensor.name), defender
        )
        kept, kind = court.evm.snapshot(), type(tensor.step).kind
        court.enrol(case)
        court.gas = {}
        state = court.play(case, *parties)
        assert (state.kind, state.place) == (sorted(step_types()).index(kind) + 1, number)
        cheat_is_slashed(court, case, state)
        steps = [gas for name, all_gas in court.gas.items() if "prove" in name for gas in all_gas]
        assert max(steps) <= (DOT_PRODUCT if kind in ("product", "logit") else ONE_STEP)
        assert court.total_gas() <= WHOLE_DISPUTE
        found.add(kind)
        court.evm.restore(kept)
    return found


def test_a_lie_in_a_layer_is_slashed(court: Courtroom) -> None:
    only = {"query", "scores", "middle"}
    found = lies_are_caught(court, answer_of("llama"), Cell(1, 6), only=only)
    assert found == {"product", "score", "add"}


def test_a_lie_about_a_token_is_slashed(court: Courtroom) -> None:
    only = {"nucleus.bound", "winner", "seen", "adjusted"}
    cell = Cell(3, PROMPT + 2)
    found = lies_are_caught(court, answer_of("llama"), cell, only=only)
    assert found == {"nucleus", "winner", "count", "adjust"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lie_at_any_step_of_any_family_is_slashed(court: Courtroom) -> None:
    found: set[str] = set()
    for family in FAMILIES:
        answer = answer_of(family)
        for cell in (Cell(0, 5), Cell(1, 6), Cell(3, PROMPT + 2)):
            found |= lies_are_caught(court, answer, cell)
    assert found == set(step_types())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lie_in_any_sum_is_slashed_however_the_sum_is_split(court: Courtroom) -> None:
    answer = answer_of("gemma", hidden_size=320, mlp_size=544, vocabulary_size=700, positions=40)
    found: set[str] = set()
    for cell in (Cell(1, 38), Cell(3, 37)):
        found |= lies_are_caught(court, answer, cell, Splitter)
    assert {"product", "logit", "shift", "mixed", "count", "top_k", "mass", "nucleus"} <= found


@pytest.mark.slow
def test_a_lie_in_a_part_of_the_model_is_slashed(court: Courtroom) -> None:
    for layers in ((0, 1), (1, 2)):
        answer = answer_of("qwen2", layers=layers)
        for stage in range(answer.hop.stages):
            assert lies_are_caught(court, answer, Cell(stage, 6))


def test_right_rows_in_a_trace_do_not_hide_wrong_ones_in_the_grid(court: Courtroom) -> None:
    answer, cell = answer_of("qwen3"), Cell(1, 6)
    liar = lying_holdings(answer, cell, one_element("values", 3))
    liar._traces[cell] = answer.honest.trace(cell)
    case = court.case(answer)
    court.enrol(case)
    cheat_is_slashed(court, case, court.play(case, *sides(case, answer, liar, None)))


def test_a_signed_row_that_was_not_computed_is_slashed(court: Courtroom) -> None:
    answer = answer_of("llama")
    honest = answer.honest.signed
    signed = Signed(honest.rows_in, changed(honest.rows_out, 4))
    liar = Holdings(answer.material, answer.honest.trees, signed, answer.honest.grid)
    case = court.case(answer, answer.subject(signed, epoch=EPOCH))
    court.enrol(case)
    state = court.play(case, *sides(case, answer, liar, (Cell(3, 4), "sent")))
    cheat_is_slashed(court, case, state)


def false_challenge(court: Courtroom, answer: Answer, target: Target) -> tuple[Case, State]:
    case = court.case(answer)
    court.enrol(case)
    return case, court.play(case, *sides(case, answer, answer.honest, target))


@pytest.mark.parametrize(
    "target", [(Cell(1, 6), "mixed"), (Cell(3, 4), "sent"), (Cell(0, 2), "token")]
)
def test_an_honest_hop_wins_the_bond_of_a_false_challenge(court: Courtroom, target: Target) -> None:
    case, state = false_challenge(court, answer_of("llama"), target)
    assert state.challenger_lost
    before = court.balance(OPERATOR.address)
    court.settle(case, state)
    assert court.stake(case.claim.node)[:4] == (STAKE, 0, 0, 0)
    assert court.balance(OPERATOR.address) == before + BOND * 6 // 10
    assert court.balance(BURN) == BOND * 4 // 10
    assert court.balance(CHALLENGER) == COINS - BOND


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_step_of_an_honest_hop_is_found_wrong(court: Courtroom) -> None:
    answer = answer_of("qwen3", hidden_size=160, vocabulary_size=700)
    for cell in (Cell(0, 5), Cell(2, 6), Cell(3, PROMPT + 2)):
        for tensor in answer.hop.program(cell).tensors:
            if tensor.step is not None:
                kept = court.evm.snapshot()
                _, state = false_challenge(court, answer, (cell, tensor.name))
                assert state.challenger_lost
                court.evm.restore(kept)


def half_played(court: Courtroom, moves: int) -> tuple[Case, State, Defence, Prosecution]:
    """A game about a lie, some moves later."""
    answer, cell = answer_of("llama"), Cell(1, 6)
    liar = lying_holdings(answer, cell, one_element("query", 3))
    case = court.case(answer)
    court.enrol(case)
    state = court.open(case)
    defence, prosecution = (x(state) for x in sides(case, answer, liar, (cell, "query")))
    for _ in range(moves):
        state = step(court, state, defence, prosecution)
    return case, state, defence, prosecution  # type: ignore[return-value]


def step(court: Courtroom, state: State, *advocates: Defence | Prosecution) -> State:
    appeal = next(a for x in advocates if (a := x.appeal()) is not None)
    person = OPERATOR.address if state.turn == "defender" else CHALLENGER
    after, shown = moved(state, court.send(person, appeal))
    for advocate in advocates:
        advocate.hear(after, shown)
    return after


def test_a_hop_that_does_not_move_loses(court: Courtroom) -> None:
    case, state, defence, prosecution = half_played(court, 2)
    while state.turn != "defender":
        state = step(court, state, defence, prosecution)
    with pytest.raises(Reverted, match="not over"):
        court.settle(case, state)
    court.evm.pass_time(MOVE_SECONDS + 1)
    late = defence.appeal()
    assert late is not None
    with pytest.raises(Reverted, match="too late"):
        court.send(OPERATOR.address, late)
    cheat_is_slashed(court, case, state)


def test_a_challenger_that_does_not_move_loses(court: Courtroom) -> None:
    case, state, defence, prosecution = half_played(court, 2)
    while state.turn != "challenger":
        state = step(court, state, defence, prosecution)
    court.evm.pass_time(MOVE_SECONDS + 1)
    court.settle(case, state)
    assert court.stake(case.claim.node)[:4] == (STAKE, 0, 0, 0)
    assert court.balance(CHALLENGER) == COINS - BOND
    with pytest.raises(Reverted, match="another state"):
        court.settle(case, state)
    with pytest.raises(Reverted, match="challenged already"):
        court.open(case)


def test_moves_that_do_not_fit_change_nothing(court: Courtroom) -> None:
    _, state, defence, prosecution = half_played(court, 1)
    good = defence.appeal()
    assert good is not None
    with pytest.raises(Reverted, match="not your move"):
        court.send(CHALLENGER, good)
    with pytest.raises(Reverted, match="another state"):
        court.send(OPERATOR.address, Appeal("reveal", (state._replace(branch=1), ())))
    with pytest.raises(Reverted, match="another number of hashes"):
        court.send(OPERATOR.address, Appeal("reveal", (state, (bytes(32),))))
    hashes = (bytes(32),) * (1 << state.shown)
    with pytest.raises(Reverted, match="not below the node"):
        court.send(OPERATOR.address, Appeal("reveal", (state, hashes)))
    with pytest.raises(Reverted, match="another phase"):
        court.send(OPERATOR.address, Appeal("commit", (state, bytes(32))))
    with pytest.raises(Reverted, match="only the judge"):
        court.send(OPERATOR.address, Appeal("rule", (state, OPERATOR.address, True)))
    assert step(court, state, defence, prosecution).moves == state.moves + 1


def test_nobody_points_at_what_is_not_there(court: Courtroom) -> None:
    """Else a challenger could ask for a node or an element that an honest hop cannot show."""
    _, state, defence, prosecution = half_played(court, 1)
    reveal = defence.appeal()
    assert reveal is not None
    state, shown = moved(state, court.send(OPERATOR.address, reveal))
    for advocate in (defence, prosecution):
        advocate.hear(state, shown)
    level = [shown[k : k + 32] for k in range(64, len(shown), 32)]
    path = [level[0]]
    while len(level) > 1:
        path.append(level[1])
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [sha256(b"\1" + left + right).digest() for left, right in pairs]
    with pytest.raises(Reverted, match="another number of hashes"):
        court.send(CHALLENGER, Appeal("choose", (state, 1 << state.shown, path)))
    while state.phase != ELEMENT:
        state = step(court, state, defence, prosecution)
    contradict = prosecution.appeal()
    assert contradict is not None
    _, _, block = contradict.arguments
    assert isinstance(block, bytes)
    beyond = Appeal("contradict", (state, len(block) // state.width, block))
    with pytest.raises(Reverted, match="no such element"):
        court.send(CHALLENGER, beyond)
    assert step(court, state, defence, prosecution).moves == state.moves + 1


def test_a_tensor_that_was_received_cannot_be_contradicted(court: Courtroom) -> None:
    """The hop has no step for it, so that it would run out of time."""
    answer, cell = answer_of("llama", layers=(1, 2)), Cell(0, 6)
    received = [x.name for x in answer.hop.program(cell).tensors if x.step is None]
    assert received
    for name in received:
        kept = court.evm.snapshot()
        with pytest.raises(Reverted, match="received, not computed"):
            false_challenge(court, answer, (cell, name))
        court.evm.restore(kept)


def test_openings_that_do_not_fit_convict_nobody(court: Courtroom) -> None:
    _, state, defence, prosecution = half_played(court, 1)
    while state.phase != PROVE:
        state = step(court, state, defence, prosecution)
    good = defence.appeal()
    assert good is not None
    *head, parts, data = good.arguments
    assert isinstance(data, bytes)
    for wrong in (data[:-1], data + b"\0", bytes((data[0] ^ 1,)) + data[1:], b""):
        with pytest.raises(Reverted):
            court.send(OPERATOR.address, good._replace(arguments=(*head, parts, wrong)))
    inputs, p = head[4], head[5]
    assert isinstance(inputs, tuple)
    assert isinstance(p, tuple)
    assert inputs
    moved_words = [*head[:4], (), (*inputs, *p), parts, data]
    with pytest.raises(Reverted, match="another number of inputs"):
        court.send(OPERATOR.address, good._replace(arguments=tuple(moved_words)))
    head[4] = (*head[4][:-1], 0) if head[4] else (0,)  # type: ignore[index]
    with pytest.raises(Reverted, match="another tensor"):
        court.send(OPERATOR.address, good._replace(arguments=(*head, parts, data)))


def test_an_advocate_goes_on_from_what_the_chain_logged(court: Courtroom) -> None:
    answer = answer_of("llama")
    cell, tensor = Cell(3, PROMPT + 2), "winner"
    liar = lying_holdings(answer, cell, one_element(tensor, 0))
    case = court.case(answer)
    court.enrol(case)
    makers = sides(case, answer, liar, (cell, tensor), Splitter)
    first = state = court.open(case)
    logged: list[tuple[State, bytes]] = []
    while state.turn is not None:
        advocates = [make(first) for make in makers]
        for entry in logged:
            for advocate in advocates:
                advocate.hear(*entry)
        appeal = next(a for x in advocates if (a := x.appeal()) is not None)
        person = OPERATOR.address if state.turn == "defender" else CHALLENGER
        state, shown = moved(state, court.send(person, appeal))
        logged.append((state, shown))
    cheat_is_slashed(court, case, state)


def rich(court: Courtroom, *numbers: int) -> list[EvmAddress]:
    """People with coins, which the court may take."""
    people = [account(n) for n in numbers]
    for person in people:
        court.coin.send(court.coin.view("minter"), "mint", person, COINS)
        court.coin.send(person, "approve", court.court.address, COINS)
    return people


def test_games_about_one_claim_cost_more_and_more_and_end_with_it(court: Courtroom) -> None:
    answer, cell = answer_of("llama"), Cell(1, 6)
    liar = lying_holdings(answer, cell, one_element("query", 3))
    case = court.case(answer)
    court.enrol(case)
    first = court.open(case, OTHER)
    assert first.bond == BOND
    with pytest.raises(Reverted, match="challenged already"):
        court.open(case, OTHER)
    state = court.play(case, *sides(case, answer, liar, (cell, "query")))
    assert state.bond == 2 * BOND
    court.settle(case, state)
    # who came first and who proved it share what a challenger gets
    assert court.balance(CHALLENGER) == court.balance(OTHER) + BOND == COINS + PENALTY // 4
    assert court.stake(case.claim.node)[0] == STAKE - PENALTY
    logs = court.send(OTHER, case.settling(first))
    assert [(name, e["amount"]) for name, e in logs if name == "Settled"] == [("Settled", 0)]
    assert court.balance(OTHER) == COINS + PENALTY // 4
    with pytest.raises(Reverted, match="convicted already"):
        court.open(case, OPERATOR.address)


def test_a_crowd_keeps_nobody_out_and_makes_its_own_games_dear(court: Courtroom) -> None:
    case = court.case(answer_of("llama"))
    court.enrol(case)
    bonds = [court.open(case, person).bond for person in rich(court, 21, 22, 23, 24, 25, 26)]
    assert bonds == [1_000, 2_000, 3_000, 5_333, 8_333, 12_000]


def test_an_accomplice_does_not_rob_the_first_challenger(court: Courtroom) -> None:
    case = court.case(answer_of("llama"))
    court.enrol(case)
    court.open(case)
    sham = court.open(case, OTHER)
    court.evm.pass_time(MOVE_SECONDS + 1)
    court.settle(case, sham)
    assert court.balance(CHALLENGER) == COINS - BOND + PENALTY // 4
    assert court.balance(OTHER) == COINS + PENALTY // 4


def test_a_verdict_about_another_signer_of_the_same_words_changes_nothing(court: Courtroom) -> None:
    answer, key = answer_of("llama"), SettlementKey(bytes(31) + b"\x09")
    case = court.case(answer)
    court.enrol(case)
    (other,) = rich(court, int(key.address, 16))
    court.coin.send(other, "approve", court.registry.address, COINS)
    court.registry.send(other, "register", case.claim.node, b"\1" * 32, b"\2" * 32)
    court.registry.send(other, "stake", case.claim.node, 1)
    copied = replace(case, claim=case.claim.signed_by(key, court.domain))
    sham = court.open(copied, OTHER)
    court.evm.pass_time(MOVE_SECONDS + 1)
    court.settle(copied, sham)
    state = court.open(case)
    assert state.bond == BOND
    court.evm.pass_time(MOVE_SECONDS + 1)
    court.settle(case, state)
    assert court.stake(case.claim.node)[0] == STAKE - PENALTY


def test_sham_disputes_do_not_shelter_a_stake(court: Courtroom) -> None:
    answer = answer_of("llama")
    shams = [court.case(answer, session=bytes((n,)) * 32, payer=OTHER) for n in (1, 2)]
    case = court.case(answer)
    court.enrol(case)
    games = [court.open(sham, OTHER) for sham in shams]
    court.registry.send(OPERATOR.address, "unbond", case.claim.node, STAKE)
    assert court.stake(case.claim.node)[3] == STAKE
    state = court.open(case)  # although nothing is free
    for game in games:
        court.send(OPERATOR.address, Appeal("commit", (game, bytes(32))))
    assert court.court.view("queues", case.claim.node, OPERATOR.address) == (2, 0)
    court.evm.pass_time(MOVE_SECONDS + 1)
    court.settle(case, state)
    assert court.stake(case.claim.node)[:2] == (0, STAKE)
    assert court.court.view("queues", case.claim.node, OPERATOR.address) == (1, 0)


def test_coins_of_a_dispute_that_ends_wait_for_the_claims_behind_it(court: Courtroom) -> None:
    answer = answer_of("llama")
    sham = court.case(answer, session=bytes(31) + b"\1", payer=OTHER)
    rest = court.case(answer, session=bytes(31) + b"\2", payer=OTHER)
    case = court.case(answer)
    node = case.claim.node
    court.enrol(case)
    lost = court.play(sham, *sides(sham, answer, answer.honest, (Cell(1, 6), "mixed")))
    court.open(rest, OTHER)
    state = court.open(case)
    court.registry.send(OPERATOR.address, "unbond", node, STAKE)
    assert lost.challenger_lost
    court.settle(sham, lost)
    assert court.court.view("queues", node, OPERATOR.address) == (2, PENALTY)
    court.evm.pass_time(7_201)
    with pytest.raises(Reverted, match="locked"):
        court.registry.send(OPERATOR.address, "withdraw", node)
    court.settle(case, state)
    assert court.stake(node)[:2] == (0, STAKE - PENALTY)
    assert court.balance(CHALLENGER) >= COINS - BOND + PENALTY // 2


def test_a_report_waits_for_disputes_that_hold_the_stake(court: Courtroom) -> None:
    answer = answer_of("llama")
    case, other = court.case(answer), court.case(answer, rows_out=bytes(32))
    court.enrol(case)
    sham = court.case(answer, session=bytes((1,)) * 32)
    game = court.open(sham)
    report = Appeal(
        "equivocate", tuple(y for x in (case, other) for y in (x.claim.words(), x.claim.signature))
    )
    with pytest.raises(Reverted, match="report later"):
        court.send(OTHER, report)
    court.evm.pass_time(MOVE_SECONDS + 1)
    court.settle(sham, game)
    court.send(OTHER, report)  # the rest of the stake is all there is
    assert court.stake(case.claim.node)[:2] == (0, 0)


def test_two_claims_about_one_part_of_a_session_are_slashed(court: Courtroom) -> None:
    answer = answer_of("llama")
    case = court.case(answer)
    other = court.case(answer, rows_out=bytes(32))
    court.enrol(case)
    a, b = ((x.claim.words(), x.claim.signature) for x in (case, other))
    with pytest.raises(Reverted, match="say the same"):
        court.send(CHALLENGER, Appeal("equivocate", (*a, *a)))
    court.send(CHALLENGER, Appeal("equivocate", (*a, *b)))
    assert court.stake(case.claim.node)[0] == STAKE - PENALTY
    assert court.balance(CHALLENGER) == COINS + PENALTY // 2
    assert court.balance(PAYER) == PENALTY * 3 // 10
    with pytest.raises(Reverted, match="reported already"):
        court.send(OTHER, Appeal("equivocate", (*b, *a)))


def test_claims_of_two_sessions_or_signers_are_no_equivocation(court: Courtroom) -> None:
    case = court.case(answer_of("llama"))
    court.enrol(case)
    other = court.case(answer_of("llama"), session=b"\1" * 32, rows_out=bytes(32))
    a, b = ((x.claim.words(), x.claim.signature) for x in (case, other))
    with pytest.raises(Reverted, match="two sessions"):
        court.send(CHALLENGER, Appeal("equivocate", (*a, *b)))
    later = court.case(answer_of("llama"), epoch=case.claim.epoch - 1, rows_out=bytes(32)).claim
    with pytest.raises(Reverted, match="two epochs"):
        court.send(CHALLENGER, Appeal("equivocate", (*a, later.words(), later.signature)))
    forged = replace(case.claim, rows_out=bytes(32)).signed_by(
        SettlementKey(bytes(31) + b"\x09"), court.domain
    )
    with pytest.raises(Reverted, match="two signers"):
        court.send(CHALLENGER, Appeal("equivocate", (*a, forged.words(), forged.signature)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"node": b"\1" * 32}, "two sessions"),
        ({"session": b"\1" * 32}, "two sessions"),
        ({"model": b"\1" * 32}, "two sessions"),
        ({"layer_start": 1}, "two parts"),
        ({"layer_stop": 1}, "two parts"),
        ({"positions": 8}, "two parts"),
        ({"rows_in": bytes(32)}, ""),
        ({"rows_out": bytes(32)}, ""),
        ({"sequence": bytes(32)}, ""),
        ({"request": bytes(32)}, ""),
    ],
)
def test_what_makes_two_claims_an_equivocation(
    court: Courtroom, changes: dict[str, object], reason: str
) -> None:
    """Two parts of one session, or one claim twice, are an honest node's work."""
    first = court.case(answer_of("llama"))
    court.enrol(first)
    differ = {"rows_out": bytes(32)} if reason else {}
    second = court.case(answer_of("llama"), **differ, **changes)
    pair = [y for x in (first, second) for y in (x.claim.words(), x.claim.signature)]
    report = Appeal("equivocate", tuple(pair))
    if reason:
        with pytest.raises(Reverted, match=reason):
            court.send(CHALLENGER, report)
    else:
        court.send(CHALLENGER, report)
        assert court.stake(first.claim.node)[0] == STAKE - PENALTY


def test_claims_without_a_payer_are_not_heard(court: Courtroom) -> None:
    """Nobody could be paid the payer's share."""
    answer = answer_of("llama")
    case, other = (court.case(answer, payer=NOBODY, rows_out=x * 32) for x in (b"\1", b"\2"))
    court.enrol(case)
    with pytest.raises(Reverted, match="without a payer"):
        court.open(case)
    pair = [y for x in (case, other) for y in (x.claim.words(), x.claim.signature)]
    with pytest.raises(Reverted, match="without a payer"):
        court.send(CHALLENGER, Appeal("equivocate", tuple(pair)))


def test_only_claims_that_the_operator_signed_for_this_court_are_heard(court: Courtroom) -> None:
    answer = answer_of("llama")
    case = court.case(answer)
    court.enrol(case)
    foreign = court_domain(court.evm.chain_id + 1, court.court.address)
    claims = (
        case.claim.signed_by(OPERATOR, foreign),
        case.claim.signed_by(SettlementKey(bytes(31) + b"\x09"), court.domain),
    )
    for claim in claims:
        with pytest.raises(Reverted, match="nothing at stake"):
            court.open(replace(case, claim=claim))
    signature = case.claim.signature
    for wrong in (signature[:64], signature[:64] + b"\1", bytes(64) + b"\x1b"):
        with pytest.raises(Reverted):
            court.open(replace(case, claim=replace(case.claim, signature=wrong)))


def test_a_claim_can_be_challenged_for_a_while_only(court: Courtroom) -> None:
    case = court.case(answer_of("llama"))
    court.enrol(case)
    with pytest.raises(Reverted, match="of the future"):
        court.open(court.case(answer_of("llama"), epoch=EPOCH + 3))
    court.evm.pass_time(3_600 + 120)
    with pytest.raises(Reverted, match="too late"):
        court.open(case)


def test_a_claim_outside_the_model_is_refused(court: Courtroom) -> None:
    answer = answer_of("llama")
    court.enrol(court.case(answer))
    for changes in (
        {"layer_stop": 3},
        {"layer_start": 2},
        {"positions": 0},
        {"prompt": 10},
        {"program": bytes(32)},
    ):
        with pytest.raises(Reverted):
            court.open(court.case(answer, **changes))


def test_stakes_in_dispute_cannot_be_withdrawn(court: Courtroom) -> None:
    case, state, *_ = half_played(court, 0)
    node = case.claim.node
    court.registry.send(OPERATOR.address, "unbond", node, STAKE)
    court.evm.pass_time(7_201)
    assert court.registry.send(OPERATOR.address, "withdraw", node) == STAKE - PENALTY
    with pytest.raises(Reverted, match="locked"):
        court.registry.send(OPERATOR.address, "withdraw", node)
    court.settle(case, state)
    assert court.stake(node)[:2] == (0, 0)


def test_credits_are_paid_once(court: Courtroom) -> None:
    case, state = false_challenge(court, answer_of("llama"), (Cell(1, 6), "mixed"))
    court.settle(case, state)
    assert court.court.send(OTHER, "collect", OPERATOR.address) == BOND * 6 // 10
    with pytest.raises(Reverted, match="no credit"):
        court.court.send(OTHER, "collect", OPERATOR.address)
    assert court.coin.view("balanceOf", court.court.address) == BOND * 4 // 10


def test_logit_biases_are_opened_where_they_count(court: Courtroom) -> None:
    sampling = msgspec.structs.replace(dispute.GREEDY, logit_bias=((3, 500), (9, -700)))
    answer = answer_of("llama", sampling)
    cell = Cell(3, PROMPT + 1)
    for token in (3, 4):
        liar = lying_holdings(answer, cell, one_element("adjusted", token))
        case = court.case(answer)
        kept = court.evm.snapshot()
        court.enrol(case)
        state = court.play(case, *sides(case, answer, liar, (cell, "adjusted")))
        cheat_is_slashed(court, case, state)
        court.evm.restore(kept)


@pytest.mark.parametrize("largest", [1 << 20, -(1 << 31), 1 << 31, -(1 << 43) + 1])
def test_rows_of_integers_of_any_size_are_compared_with_what_was_signed(
    court: Courtroom, largest: int
) -> None:
    answer, position = answer_of("qwen3", layers=(1, 2)), 3
    given = answer.material.rows_in
    assert given is not None
    rows = given.copy()
    rows[position, 5] = largest
    material = replace(answer.material, rows_in=rows)
    other = replace(answer, material=material, honest=Holdings(material, answer.honest.trees))
    case, state = false_challenge(court, other, (Cell(0, position), "received"))
    assert state.challenger_lost
    court.settle(case, state)
    assert court.stake(case.claim.node)[0] == STAKE


@pytest.mark.parametrize("width", [640, 2048, pytest.param(8192, marks=pytest.mark.slow)])
def test_disputes_about_wide_rows_cost_what_others_do(court: Courtroom, width: int) -> None:
    answer = answer_of("llama", hidden_size=width)
    target = Cell(3, 4), "sent"
    kept = court.evm.snapshot()
    case, state = false_challenge(court, answer, target)
    assert state.challenger_lost
    assert max(court.gas["prove_boundary"]) <= BOUNDARY
    assert court.total_gas() <= WHOLE_DISPUTE
    court.evm.restore(kept)
    honest = answer.honest.signed
    signed = Signed(honest.rows_in, changed(honest.rows_out, 4))
    liar = Holdings(answer.material, answer.honest.trees, signed, answer.honest.grid)
    case = court.case(answer, answer.subject(signed, epoch=EPOCH))
    court.enrol(case)
    cheat_is_slashed(court, case, court.play(case, *sides(case, answer, liar, target)))
