"""A challenger before the court of a chain: asks a node for its claim in the chain's form, opens a
game with a bond, plays it to its end, and collects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from unisono.clock import Clock
from unisono.errors import LedgerUnreachable, PeerCheating, PeerRefused, TransactionRefused
from unisono.settlement.advocates import Case, Prosecution, State
from unisono.settlement.awards import Awards
from unisono.settlement.briefs import Brief
from unisono.settlement.claims import SettlementClaim, court_domain, settlement_claim
from unisono.settlement.coins import Coins
from unisono.settlement.courthouses import (
    CourtRules,
    contract_of,
    court_rules,
    courthouse,
    dossier_of,
)
from unisono.settlement.disputes import Courthouse, Dispute, Maker, Opening
from unisono.settlement.eip712 import Domain
from unisono.settlement.ledger.deploy import COIN
from unisono.settlement.ledger.deployment import Deployment
from unisono.settlement.ledger.ledger import Ledger, Log
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.stakes import Registry
from unisono.types import EvmAddress, NodeId, canonical
from unisono.verification.fraud.descriptors import Descriptors
from unisono.verification.fraud.moves import Subject
from unisono.verification.fraud.parties import Challenger
from unisono.wire.audit_messages import SettlementAsked, SettlementSigned
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Refused
from unisono.wire.transports.base import Stream

SECONDS = 600.0
"""For a transaction to become final."""
MOST_AWAY, LONGEST_AWAY = 20, 30.0
"""How often the chain may be away in one game, and seconds before it is asked again."""
PHASES = {
    0: "commit",
    1: "choose",
    2: "reveal",
    3: "contradict",
    4: "cell",
    5: "choose part",
    6: "show",
    8: "prove",
}
"""What a party does in a phase of the contract."""

Told = Callable[[str], None]


async def ask_for_claim(
    stream: Stream,
    subject: Subject,
    answer: tuple[int, ...],
    program: Descriptors,
    deployment: Deployment,
    payer: EvmAddress,
    operator: EvmAddress | None = None,
) -> SettlementClaim:
    """A node's claim in the form of a chain, signed by its operator; asked by the gateway that the
    claim names.

    Args:
        stream: to the node.
        answer: its tokens, for a hop that begins the model and does not end it.
        program: of the model.
        payer: who is refunded if the claim is false.
        operator: whose signature it must be; None: anybody's.

    Raises:
        PeerRefused: the node does not sign.
        PeerCheating: it answers something else.
        BadSignature: another key signed, or another claim.
    """
    asked = canonical(Brief(subject, () if subject.tokens else answer))
    await stream.send(encode_frame(SettlementAsked(payer), asked))
    message, body = decode_frame(await stream.receive())
    if isinstance(message, Refused):
        raise PeerRefused(message.message, message.code)
    if not isinstance(message, SettlementSigned):
        raise PeerCheating(f"{type(message).__name__} in the place of a signature")
    size = subject.manifest.config.vocabulary_size
    tokens = subject.tokens or answer
    expected = settlement_claim(subject.claim, subject.request, tokens, program.root, size, payer)
    claim = replace(expected, signature=bytes(body))
    domain = court_domain(deployment.chain_id, deployment.address("court"))
    signer = claim.signer(domain)
    claim.check(domain, operator or signer, expected)
    return claim


@dataclass(frozen=True, slots=True)
class Play:
    """One transaction of a game."""

    party: str
    """`defender` or `challenger`; `anybody` of what pays out."""
    what: str
    gas: int
    at: int
    """Timestamp of its block, in seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a game on a chain ended."""

    game: str
    challenger_won: bool
    kind: int
    """Of the step that was judged: 1 + its place among the sorted names; 0: none was reached."""
    plays: tuple[Play, ...]
    amount: int
    """Units that the loser lost: the penalty, or the bond."""
    collected: int
    """Units that the challenger got, its own bond included."""
    refunded: int
    """Units that the payer got."""
    collecting_gas: int
    on_time: bool
    """False: the loser did not move in time, so that nobody judged a step."""
    was_over: bool
    """It had ended before this account looked."""

    @property
    def gas(self) -> int:
        """Of the whole game, without what is collected."""
        return sum(play.gas for play in self.plays)


class Plaintiff:
    """One account that challenges claims. The outbox's `run` must run."""

    def __init__(
        self, ledger: Ledger, outbox: Outbox, deployment: Deployment, clock: Clock
    ) -> None:
        self._ledger, self._outbox, self._deployment = ledger, outbox, deployment
        self.house: Courthouse = courthouse(ledger, outbox, deployment, clock)
        self._coin = contract_of(deployment, COIN)
        self._awards = Awards(ledger, outbox, deployment)

    async def challenge(
        self, case: Case, player: Challenger, poll_seconds: float, told: Told = lambda text: None
    ) -> Outcome:
        """Open a game with a bond, or take up the one that this account opened, and play it.

        Raises:
            InsufficientFunds: the account has not the bond.
            TransactionRefused: the court does not hear it, and says why.
            SettlementError: the chain is away, or a move is not final in time.
        """
        return await self.play(
            case, lambda state: Prosecution(case, state, player), poll_seconds, told
        )

    async def play(
        self, case: Case, maker: Maker, poll_seconds: float, told: Told = lambda text: None
    ) -> Outcome:
        """`challenge` by an advocate that `maker` makes.

        Raises: as `challenge`.
        """
        await self._sent(case)
        opening = await self._opened(case)
        if opening is None:
            told("placing the bond")
            await self._bond(case.claim)
            opening = await self.house.open(case, str((await self._ledger.head()).number))
        told("playing")
        dispute = Dispute(self.house, case, opening, maker)
        await dispute.look()
        was_over = dispute.is_settled
        state = await self._followed(dispute, poll_seconds, told)
        told("collecting")
        return await self._outcome(case, opening, state, was_over)

    async def _sent(self, case: Case) -> None:
        """Wait for the challenge that a process of this account sent, if it was killed then."""
        appeal = case.opening()
        data = self.house.court.encode(appeal.function, *appeal.arguments)
        for entry in await self._outbox.open_entries():
            if entry.intent.data == data:
                with suppress(TransactionRefused):
                    await self._outbox.final(entry.id, SECONDS)

    async def _followed(self, dispute: Dispute, poll_seconds: float, told: Told) -> State:
        """Play to the end, also if the chain is away now and then."""
        for times in range(MOST_AWAY):
            try:
                return await dispute.run(poll_seconds)
            except LedgerUnreachable:
                told("the chain does not answer: asking it again")
                await self.house.clock.sleep(min(LONGEST_AWAY, 2.0**times))
        try:
            return await dispute.run(poll_seconds)
        except LedgerUnreachable as error:
            raise LedgerUnreachable(
                f"{error}; the game goes on, and this side loses it unless it comes back in time"
            ) from error

    async def _opened(self, case: Case) -> Opening | None:
        head = await self._ledger.head()
        found = await self.house.against(case, self._deployment.block, head.number)
        return next((x for x in found if x.state.challenger == self._outbox.account), None)

    async def _bond(self, claim: SettlementClaim) -> None:
        rules = await court_rules(self._ledger, self._deployment)
        bond = await self._price(claim, rules)
        coins = Coins(self._ledger, self._outbox, self._coin, self._outbox.account)
        await coins.require(bond, "the bond of a challenge", "send {missing} to that address")
        court = self.house.court.address
        await coins.allow(court, bond * rules.games, "letting the court take bonds")

    async def check_stake(self, claim: SettlementClaim) -> None:
        """Whether the signature of a claim has a stake behind it.

        Raises:
            TransactionRefused: it has none.
        """
        signer, node = claim.signer(self._domain()), NodeId(claim.node.hex())
        record = await Registry(self._ledger, self._deployment).record(node, signer)
        if not record.stake + record.leaving:
            raise TransactionRefused(
                f"nothing is at stake: {signer} signed the claim, and has no stake on node "
                f"{node[:16]}… in this deployment on chain {self._deployment.chain_id}; it was "
                "lost or withdrawn, or the claim is for another chain"
            )

    async def _price(self, claim: SettlementClaim, rules: CourtRules) -> int:
        """The bond of the next game about a claim.

        Raises:
            TransactionRefused: there is nothing to be won.
        """
        digest, signer = claim.digest(self._domain()), claim.signer(self._domain())
        dossier = await dossier_of(self._ledger, self._deployment, digest, signer)
        if dossier.convicted:
            raise TransactionRefused("the node was convicted of this claim already")
        await self.check_stake(claim)
        return rules.bond_of(dossier.games + 1)

    def _domain(self) -> Domain:
        return court_domain(self._deployment.chain_id, self.house.court.address)

    async def _outcome(self, case: Case, opening: Opening, state: State, was_over: bool) -> Outcome:
        logs = await self._logs(opening)
        plays, amount = await self._plays(opening, logs)
        decided = self.house.court.topic("Decided")
        on_time = any(log.topics[0] == decided for log in logs)
        collected, first = await self.collect(self._outbox.account)
        refunded, second = await self.collect(case.claim.payer)
        return Outcome(
            opening.game.hex(),
            not state.challenger_lost,
            state.kind,
            plays,
            amount,
            collected,
            refunded,
            first + second,
            on_time,
            was_over,
        )

    async def collect(self, owner: EvmAddress) -> tuple[int, int]:
        """Pay out what the network's judges owe somebody: units, and the gas of it."""
        return await self._awards.collect(owner)

    async def _logs(self, opening: Opening) -> list[Log]:
        head = await self._ledger.head()
        logs = await self._ledger.logs((self.house.court.address,), opening.block, head.number)
        return [x for x in logs if len(x.topics) > 1 and x.topics[1] == opening.game]

    async def _plays(self, opening: Opening, logs: list[Log]) -> tuple[tuple[Play, ...], int]:
        plays: list[Play] = []
        state, amount = opening.state, 0
        for log in logs:
            receipt = await self._ledger.receipt(log.transaction)
            block = await self._ledger.block(log.block)
            assert receipt is not None
            assert block is not None
            name, fields = self.house.court.event(log) or ("", {})
            party, what = "anybody", "settle"
            if name == "Opened":
                party, what = "challenger", "open"
            elif name in ("Moved", "Decided"):
                party, what = state.turn or "anybody", PHASES.get(state.phase, "move")
            elif name == "Settled":
                amount = int(fields["amount"])
            if name == "Moved":
                state = State(*fields["state"])
            play = Play(party, what, receipt.gas_used, block.timestamp)
            plays.append(play)
        return tuple(plays), amount
