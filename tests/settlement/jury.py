"""Committees on an EVM: contracts, a bench of members, and cases moved from phase to phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eth_abi.abi import encode
from eth_hash.auto import keccak

from tests.settlement.evm import START, Contract, Evm, account
from unisono.settlement.artifacts import Artifact, artifact
from unisono.settlement.claims import SettlementClaim, court_domain
from unisono.settlement.committees import commit_digest, result_of
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.header import encode_fields
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress
from unisono.wire.claims import EPOCH_SECONDS

DEPLOYER, OPENER, OTHER, PAYER = (account(n) for n in (1, 11, 12, 13))
ACCUSED = SettlementKey(bytes(31) + b"\7")
MEMBERS = [account(100 + n) for n in range(9)]
NODE = b"\x77" * 32
COINS = 10**12
EPOCH = START // EPOCH_SECONDS
STAKE, PENALTY, BOND, UNIT, FEE, FINE = 9_000, 5_000, 1_000, 500, 20, 100
DRAW_BLOCKS, COMMIT, REVEAL, CONTEST = 2, 60, 50, 300
CLAIM_SECONDS, UNBOND_SECONDS = 3_600, 7_200
SHARES = TO_CHALLENGER, TO_PAYER, TO_DEFENDER = 5_000, 3_000, 4_000
RULES = (
    *(BOND, 3, PENALTY, UNIT, FEE, FINE, DRAW_BLOCKS, COMMIT, REVEAL, CONTEST),
    *(EPOCH_SECONDS, CLAIM_SECONDS, *SHARES),
)
REMEMBERED = 256
LOST = bytes(31) + b"\1"
SALT = b"\x05" * 32
WRONG = b"\x66" * 32
"""A result that no claim of these tests has."""
BURN = EvmAddress("0x000000000000000000000000000000000000dEaD")
TRUE = SettlementClaim(
    *(NODE, b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32),
    *(0, 4, 3, 9, b"\5" * 32, b"\6" * 32, b"\7" * 32, b"\x08" * 32, EPOCH, PAYER),
)
Compiled = Callable[[str], Artifact]


def header(number: int, mix: bytes) -> bytes:
    """A block's header, as short or long as headers of that number are."""
    zero, word = b"\0" * 20, b"\x11" * 32
    return encode_fields(
        [
            *(word, word, zero, word, word, word, bytes(256), b""),
            *(_number(n) for n in (number, 30_000_000, number * 1_000_003, START + number)),
            *(bytes(number % 33), mix, bytes(8), b"\7", word, b"", b"", word, word),
        ]
    )


def _number(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


@dataclass
class Jury:
    """A chain with a committee; members have deposits, the accused has a stake."""

    evm: Evm
    coin: Contract
    registry: Contract
    court: Contract
    committee: Contract

    @property
    def domain(self) -> Any:
        return court_domain(self.evm.chain_id, self.court.address)

    def claim(self, **changes: Any) -> SettlementClaim:
        """A claim that the accused signed."""
        return replace(TRUE, **changes).signed_by(ACCUSED, self.domain)

    def digest(self, claim: SettlementClaim) -> bytes:
        """What was signed."""
        return claim.digest(self.domain)

    def dispute(self, claim: SettlementClaim) -> bytes:
        """By what the court knows what the accused signed."""
        return keccak(encode(["bytes32", "address"], [self.digest(claim), ACCUSED.address]))

    def game(self, claim: SettlementClaim, challenger: EvmAddress) -> bytes:
        """By what the court knows a challenger's game."""
        return keccak(encode(["bytes32", "address"], [self.dispute(claim), challenger]))

    def balance(self, owner: EvmAddress) -> int:
        """Coins of an address, credits included."""
        held = self.coin.view("balanceOf", owner)
        return held + sum(c.view("credit", owner) for c in (self.registry, self.committee))

    def balance_of(self, owner: EvmAddress) -> int:
        """Coins of an address alone."""
        return self.coin.view("balanceOf", owner)

    def fund(self, *people: EvmAddress) -> None:
        """Give people coins, which the contracts may take."""
        for person in people:
            self.coin.send(DEPLOYER, "mint", person, COINS)
            for contract in (self.registry, self.committee):
                self.coin.send(person, "approve", contract.address, 2**256 - 1)

    def enrol(self, member: EvmAddress, node: bytes, units: int) -> None:
        """Register a node and put it on the bench."""
        self.registry.send(member, "register", node, b"\1" * 32, b"\2" * 32)
        self.committee.send(member, "enrol", node, units)

    def blocks(self, count: int, mix: bytes = b"\x21" * 32) -> None:
        """Later calls are `count` blocks later; each of these has the randomness `mix`."""
        self.evm.mine(*(header(self.evm.block + k, mix) for k in range(count)))

    def open(
        self, claim: SettlementClaim, seats: int = 3, opener: EvmAddress = OPENER, **other: Any
    ) -> bytes:
        """A case; `other` arguments of the contract's `open`."""
        arguments: dict[str, Any] = {
            "claim": claim.struct(),
            "signature": claim.signature,
            "node": claim.node,
            **other,
        }
        return self.committee.send(opener, "open", *arguments.values(), seats)

    def drawn(self, case: bytes, mix: bytes = b"\x21" * 32) -> list[EvmAddress]:
        """Draw the seats; who sits."""
        named = self.progress(case)["block"] + DRAW_BLOCKS
        self.blocks(named - self.evm.block + 1, mix)
        for _ in range(40):
            if self.committee.send(OTHER, "draw", case, header(named, mix)):
                break
        return self.seats(case)

    def seats(self, case: bytes) -> list[EvmAddress]:
        """Who sits in a case."""
        count = self.progress(case)["drawn"]
        sitting = (self.committee.view("seat_of", case, k)[0][1] for k in range(count))
        return [parse_address(x) for x in sitting]

    def progress(self, case: bytes) -> dict[str, int]:
        """Where a case stands."""
        names = "phase seats drawn tries committed revealed block size deadline opened"
        return dict(zip(names.split(), self.committee.view("case_of", case)[1], strict=True))

    def commit(self, case: bytes, seat: int, result: bytes, salt: bytes = SALT) -> None:
        """The commit of the member on a seat."""
        member = self.seats(case)[seat]
        self.committee.send(member, "commit", case, seat, commit_digest(case, member, result, salt))

    def reveal(self, case: bytes, seat: int, result: bytes, salt: bytes = SALT) -> None:
        """The reveal of the member on a seat."""
        self.committee.send(self.seats(case)[seat], "reveal", case, seat, result, salt)

    def vote(self, case: bytes, results: Sequence[bytes]) -> None:
        """All seats commit and reveal."""
        for seat, result in enumerate(results):
            self.commit(case, seat, result)
        for seat, result in enumerate(results):
            self.reveal(case, seat, result)

    def tally(self, case: bytes, claim: SettlementClaim) -> int:
        """Count."""
        return self.committee.send(OTHER, "tally", case, claim.words())

    def close(self, case: bytes, claim: SettlementClaim) -> int:
        """Pay."""
        return self.committee.send(OTHER, "close", case, claim.words())

    def accused(
        self, claim: SettlementClaim, votes: Sequence[bytes] = (), opener: EvmAddress = OPENER
    ) -> bytes:
        """A case whose committee contradicts the claim."""
        case = self.open(claim, len(votes) or 3, opener)
        self.drawn(case)
        self.vote(case, votes or [WRONG] * 3)
        assert self.tally(case, claim) == 0
        return case

    def stake(self) -> Any:
        """(stake, leaving, ready, locked, …) of the accused."""
        return self.registry.view("record", NODE, ACCUSED.address)


def jury(compiled: Compiled, coin: Artifact | None = None) -> Jury:
    """All of it on a new chain, with nine members of weights 16, 2, 3, 4, 5 in turn."""
    evm = Evm()
    made = evm.deploy(coin or artifact("stablecoin"), DEPLOYER)
    place = evm.next_address(DEPLOYER, 2)
    registry = evm.deploy(artifact("registry"), DEPLOYER, made.address, UNBOND_SECONDS, [place])
    court = evm.deploy(compiled("court_stub"), DEPLOYER, registry.address)
    committee = evm.deploy(compiled("committee"), DEPLOYER, registry.address, court.address, RULES)
    assert committee.address == place
    found = Jury(evm, made, registry, court, committee)
    found.fund(OPENER, OTHER, ACCUSED.address, *MEMBERS)
    registry.send(ACCUSED.address, "register", NODE, b"\1" * 32, b"\2" * 32)
    registry.send(ACCUSED.address, "stake", NODE, STAKE)
    for n, member in enumerate(MEMBERS):
        found.enrol(member, bytes((n + 1,)) * 32, (16, 2, 3, 4, 5)[n % 5])
    found.blocks(1)
    return found


def result(claim: SettlementClaim) -> bytes:
    """What a member that agrees reveals."""
    return result_of(claim.rows_out, claim.sequence)
