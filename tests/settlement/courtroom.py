"""Disputes before the court on an EVM: contracts, people, and games played to their end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.settlement.evm import START, Contract, Evm, account
from tests.settlement.referees import deploy_table
from tests.verification.fraud.dispute import Answer
from unisono.models.manifest import Manifest
from unisono.settlement.advocates import DECIDED, Advocate, Appeal, Case, State
from unisono.settlement.artifacts import artifact
from unisono.settlement.claims import court_domain, settlement_claim
from unisono.settlement.eip712 import checksummed
from unisono.settlement.ledger.contract import Contract as Interface
from unisono.settlement.ledger.ledger import Log, TxHash
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress
from unisono.verification.fraud.descriptors import Descriptors, descriptors
from unisono.verification.fraud.moves import Subject
from unisono.wire.claims import EPOCH_SECONDS

DEPLOYER, CHALLENGER, OTHER, PAYER = (account(n) for n in (1, 11, 12, 13))
OPERATOR = SettlementKey(bytes(31) + b"\7")
EPOCH = START // EPOCH_SECONDS
COINS = 10**12
STAKE, PENALTY, BOND = 9_000, 5_000, 1_000
MOVE_SECONDS, CLAIM_SECONDS, UNBOND_SECONDS = 60, 3_600, 7_200
RULES = (BOND, 3, PENALTY, MOVE_SECONDS, EPOCH_SECONDS, CLAIM_SECONDS, 5_000, 3_000, 6_000)
"""Bond, games at once, penalty, times, and the shares of challenger, payer, defender."""


_PROGRAMS: dict[str, Descriptors] = {}


def program_of(manifest: Manifest) -> Descriptors:
    """A model's descriptors, made once."""
    if manifest.model_id not in _PROGRAMS:
        _PROGRAMS[manifest.model_id] = descriptors(manifest)
    return _PROGRAMS[manifest.model_id]


@dataclass
class Courtroom:
    """A chain with a court. Everybody has coins; the operator has a stake."""

    evm: Evm
    coin: Contract
    registry: Contract
    court: Contract
    judge: Contract
    interface: Interface
    gas: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Gas of every call that was sent: function → amounts."""

    @property
    def domain(self) -> Any:
        return court_domain(self.evm.chain_id, self.court.address)

    def balance(self, owner: EvmAddress) -> int:
        """Coins of an address, credits included."""
        held = self.coin.view("balanceOf", owner)
        return held + sum(c.view("credit", owner) for c in (self.registry, self.court))

    def stake(self, node: bytes) -> Any:
        """(stake, leaving, ready, locked, …) of the operator's record."""
        return self.registry.view("record", node, OPERATOR.address)

    def case(self, answer: Answer, subject: Subject | None = None, **changes: Any) -> Case:
        """A claim about an answer that the operator signed; `changes` falsify its fields."""
        subject = subject or answer.subject(epoch=EPOCH)
        manifest = subject.manifest
        program = program_of(manifest)
        size = manifest.config.vocabulary_size
        claim = settlement_claim(
            subject.claim, subject.request, subject.tokens, program.root, size, PAYER
        )
        if changes:
            claim = replace(claim, **changes)
        return Case(subject, claim.signed_by(OPERATOR, self.domain), program)

    def enrol(self, case: Case) -> None:
        """Register and stake for the node of a claim."""
        node = case.claim.node
        self.registry.send(OPERATOR.address, "register", node, b"\1" * 32, b"\2" * 32)
        self.registry.send(OPERATOR.address, "stake", node, STAKE)

    def send(self, sender: EvmAddress, appeal: Appeal) -> list[tuple[str, dict[str, Any]]]:
        """Send a call of the court; its logs.

        Raises:
            Reverted: the court refused.
        """
        contract = self.court if appeal.contract == "court" else self.judge
        data = contract.encoded(appeal.function, *appeal.arguments)
        self.evm.call(sender, contract.address, data)
        self.gas.setdefault(appeal.function, []).append(call_gas(data, self.evm.done))
        found: list[tuple[str, dict[str, Any]]] = []
        for address, topics, blob in self.evm.done.get_log_entries():
            words = tuple(t.to_bytes(32, "big") for t in topics)
            log = Log(checksummed(address), words, blob, 0, TxHash(""), 0)
            event = self.interface.event(log)
            if event is not None:
                found.append(event)
        return found

    def open(self, case: Case, challenger: EvmAddress = CHALLENGER) -> State:
        """Open a game."""
        logs = self.send(challenger, case.opening())
        return next(State(*e["state"]) for name, e in logs if name == "Opened")

    def play(
        self,
        case: Case,
        defence: Callable[[State], Advocate],
        prosecution: Callable[[State], Advocate],
        most: int = 80,
    ) -> State:
        """Play a game until it is decided."""
        state = self.open(case)
        sides = {"defender": defence(state), "challenger": prosecution(state)}
        people = {"defender": OPERATOR.address, "challenger": CHALLENGER}
        while state.phase != DECIDED:
            assert state.moves < most
            turn = state.turn
            assert turn is not None
            appeal = sides[turn].appeal()
            assert appeal is not None
            state, shown = moved(state, self.send(people[turn], appeal))
            for side in sides.values():
                side.hear(state, shown)
        return state

    def settle(self, case: Case, state: State) -> None:
        """Pay what a game came to."""
        self.send(OTHER, case.settling(state))

    def total_gas(self) -> int:
        """Of all that was sent."""
        return sum(map(sum, self.gas.values()))


def moved(before: State, logs: list[tuple[str, dict[str, Any]]]) -> tuple[State, bytes]:
    """The state after a move, and what it showed."""
    for name, event in logs:
        if name == "Moved":
            return State(*event["state"]), event["shown"]
        if name == "Decided":
            return before.decided(event["challenger_lost"]), b""
    raise AssertionError("no move was logged")


def courtroom(games: int = RULES[1], judges: tuple[EvmAddress, ...] = ()) -> Courtroom:
    """All contracts of a court on a new chain; `judges` are further ones of its registry."""
    evm = Evm()
    coin = evm.deploy(artifact("stablecoin"), DEPLOYER)
    tables = {name: deploy_table(evm, name) for name in ("exponentials", "logarithms", "cosines")}
    rows = evm.deploy(artifact("steps_rows"), DEPLOYER, tables["exponentials"])
    attention = evm.deploy(
        artifact("steps_attention"), DEPLOYER, tables["exponentials"], tables["cosines"]
    )
    choice = evm.deploy(
        artifact("steps_choice"), DEPLOYER, tables["exponentials"], tables["logarithms"]
    )
    referees = [x.address for x in (rows, attention, choice)]
    place, rules = evm.next_address(DEPLOYER, 2), (RULES[0], games, *RULES[2:])
    judge = evm.deploy(artifact("judge"), DEPLOYER, place, *referees)
    judges = (place, evm.next_address(DEPLOYER, 2), *judges)  # the second may become a committee
    registry = evm.deploy(artifact("registry"), DEPLOYER, coin.address, UNBOND_SECONDS, judges)
    court = evm.deploy(artifact("court"), DEPLOYER, registry.address, judge.address, rules)
    assert court.address == place
    for person in (CHALLENGER, OTHER, OPERATOR.address):
        coin.send(DEPLOYER, "mint", person, COINS)
        for contract in (registry, court):
            coin.send(person, "approve", contract.address, 2**256 - 1)
    interface = Interface(court.address, artifact("court").abi)
    return Courtroom(evm, coin, registry, court, judge, interface)


def call_gas(data: bytes, done: Any) -> int:
    """What a transaction on Prague pays (EIP-7623): execution and calldata, or the floor."""
    zeros = data.count(0)
    tokens = zeros + 4 * (len(data) - zeros)
    used = 21_000 + 4 * tokens + done.get_gas_used()
    used -= min(done.get_gas_refund(), used // 5)
    return max(used, 21_000 + 10 * tokens)
