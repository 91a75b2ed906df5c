"""Gas of a committee's case: the bench, a case of three and one of fifteen seats, and its ends.

A part of `bench.gas`. The court is the committed one; the game that a contest leads to is measured
in `bench.gas_court`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
import rlp

from unisono.settlement.artifacts import contract_address
from unisono.settlement.claims import SettlementClaim, court_domain
from unisono.settlement.committees import commit_digest, result_of
from unisono.settlement.eip712 import Domain
from unisono.settlement.ledger.header import HeaderFields
from unisono.settlement.signature import SettlementKey
from unisono.wire.claims import EPOCH_SECONDS

if TYPE_CHECKING:
    from bench.gas import Chain

ACCUSED, OPENER, PAYER = (SettlementKey(bytes((i,)) * 32) for i in (0x81, 0x82, 0x83))
MEMBERS = [SettlementKey(bytes((0x90 + i,)) * 32) for i in range(17)]
COURT_RULES = (1_000, 3, 10_000, 3_600, EPOCH_SECONDS, 3 * 3_600, 5_000, 3_000, 5_000)
VOTE, CONTEST, DRAW_BLOCKS, FEE = 600, 3_600, 2, 10
RULES = (
    *(1_000, 3, 10_000, 500, FEE, 100, DRAW_BLOCKS, VOTE, VOTE, CONTEST),
    *(EPOCH_SECONDS, 3 * 3_600, 5_000, 3_000, 5_000),
)
DELAY = 12 * 3_600
NODE, WORD, SALT, WRONG = (bytes((i,)) * 32 for i in (0x84, 0x85, 0x86, 0x87))
COMMIT, REVEAL = 80_000, 70_000
"""Most gas that a member may have to pay."""


def committee(chain: Chain) -> None:
    """Enrol members of one weight, and play a case of each size to each end."""
    scene = _deployed(chain)
    short = scene.case("3 seats", 3, [WRONG] * 3)
    chain.pass_time(CONTEST + 1)
    chain.call("close: convicted, 3 seats", OPENER, scene.contract, "close", *short)
    scene.case("7 seats", 7, [scene.right] * 7)
    long = scene.case("15 seats", 15, [WRONG] * 15)
    chain.call("contest", ACCUSED, scene.contract, "contest", long[0])
    chain.pass_time(CONTEST + 1)
    chain.call("close: dropped, 15 seats", OPENER, scene.contract, "close", *long)


@dataclass
class _Scene:
    """The contracts, and how many claims were made."""

    chain: Chain
    contract: Any
    domain: Domain
    claims: int = 0

    @property
    def right(self) -> bytes:
        """What a member that agrees reveals."""
        return result_of(WORD, WORD)

    def case(self, what: str, seats: int, votes: list[bytes]) -> tuple[bytes, tuple[object, ...]]:
        """A case up to the count; returns it with the words of its claim."""
        chain, contract = self.chain, self.contract
        now: int = chain.web3.eth.get_block("latest")["timestamp"]  # type: ignore[typeddict-item]
        self.claims += 1
        claim = SettlementClaim(
            *(NODE, self.claims.to_bytes(32, "big"), WORD, WORD, WORD, 0, 8, 20, 100),
            *(WORD, WORD, WORD, WORD, now // EPOCH_SECONDS, PAYER.address),
        ).signed_by(ACCUSED, self.domain)
        opening = claim.struct(), claim.signature, NODE, seats
        data = bytes.fromhex(contract.encode_abi("open", list(opening))[2:])
        receipt = chain.send(OPENER, data, contract.address)
        chain.note(f"open, {what}", receipt["gasUsed"])
        case = bytes(receipt["logs"][-1]["topics"][1])
        header = _header(chain, receipt["blockNumber"] + DRAW_BLOCKS)
        gas = 0
        while contract.functions.case_of(case).call()[1][0] == 1:
            data = bytes.fromhex(contract.encode_abi("draw", [case, header])[2:])
            gas += chain.send(OPENER, data, contract.address)["gasUsed"]
        chain.note(f"draw, {what} (all calls)", gas)
        places = [contract.functions.seat_of(case, k).call()[0][1] for k in range(seats)]
        sitting = [next(m for m in MEMBERS if m.address == x) for x in places]
        for seat, (key, vote) in enumerate(zip(sitting, votes, strict=True)):
            digest = commit_digest(case, key.address, vote, SALT)
            chain.call("commit", key, contract, "commit", case, seat, digest, limit=COMMIT)
        for seat, (key, vote) in enumerate(zip(sitting, votes, strict=True)):
            chain.call("reveal", key, contract, "reveal", case, seat, vote, SALT, limit=REVEAL)
        name = "and close: right" if votes[0] == self.right else "contradicted"
        chain.call(f"tally {name}, {what}", OPENER, contract, "tally", case, claim.words())
        return case, claim.words()


def _deployed(chain: Chain) -> _Scene:
    chain.fund(ACCUSED, OPENER, *MEMBERS)
    coin = chain.deploy("stablecoin")
    nonce = chain.web3.eth.get_transaction_count(cast(Any, chain.key.address))
    places = [contract_address(chain.key.address, nonce + k) for k in (2, 3)]
    # No step is judged here: any contract will do as a referee.
    judge = chain.deploy("judge", places[0], *[coin.address] * 3)
    registry = chain.deploy("registry", coin.address, DELAY, places)
    court = chain.deploy("court", registry.address, judge.address, COURT_RULES)
    contract = chain.deploy("committee", registry.address, court.address, RULES)
    for key in (ACCUSED, OPENER, *MEMBERS):
        chain.call(None, chain.key, coin, "mint", key.address, 10**9)
        for spender in (registry, contract):
            chain.call(None, key, coin, "approve", spender.address, 2**256 - 1)
    chain.call(None, ACCUSED, registry, "register", NODE, WORD, WORD)
    chain.call(None, ACCUSED, registry, "stake", NODE, 10**6)
    for n, key in enumerate(MEMBERS):
        node = bytes((n + 1,)) * 32
        chain.call(None, key, registry, "register", node, WORD, WORD)
        chain.call("enrol", key, contract, "enrol", node, 4)
    return _Scene(chain, contract, court_domain(chain.web3.eth.chain_id, court.address))


def _header(chain: Chain, number: int) -> bytes:
    """The header of a block, after which one more was made."""
    while chain.web3.eth.block_number <= number:
        chain.fund(PAYER)
    if chain.name == "py-evm":
        provider: Any = chain.web3.provider
        inner = provider.ethereum_tester.backend.chain
        return cast(Any, rlp).encode(inner.get_canonical_block_header_by_number(number))
    provider = cast(Any, chain.web3.provider)
    block = provider.make_request("eth_getBlockByNumber", [hex(number), False])["result"]
    return msgspec.convert(block, HeaderFields).encoded()
