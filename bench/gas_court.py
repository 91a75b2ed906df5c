"""Gas of disputes about the default model: every move, the last step, and the whole.

A part of `bench.gas`. The liar changes one element, and splits sums as its lie needs. False
challenges at the hop's exit, where a row is compared with its signed hash, are also played about
random models as wide as large ones, and at the widest some lies too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tiny_weights import tiny_config, tiny_weights
from tests.verification.fraud.dispute import (
    CHALLENGER,
    EVERYTHING,
    HOP,
    Answer,
    Splitter,
    lying_holdings,
    manifest_of,
    one_element,
)

from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.loading import load_block
from unisono.models.store import ModelStore
from unisono.models.tokenizer import Tokenizer
from unisono.settlement.advocates import Advocate, Appeal, Case, Defence, Prosecution, State
from unisono.settlement.claims import court_domain, settlement_claim
from unisono.settlement.eip712 import checksummed
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.ledger import Log, TxHash
from unisono.settlement.signature import SettlementKey
from unisono.settlement.tables import CONTRACTS as TABLES
from unisono.settlement.tables import table_deployment
from unisono.types import GenerationRequest, LayerRange
from unisono.verification.fraud.descriptors import Descriptors, descriptors
from unisono.verification.fraud.holdings import Holdings, WeightTrees
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.trace import Material
from unisono.wire.claims import EPOCH_SECONDS

if TYPE_CHECKING:
    from bench.gas import Chain

PROMPT, POSITIONS = 118, 128
TEXT = (Path(__file__).parents[1] / "LICENSE").read_text()
DOT_PRODUCT, ONE_STEP, DISPUTE = 150_000, 400_000, 5_000_000
"""Most gas of a step that is a chunk of a dot product, of any other step, of a whole dispute."""
EXIT = 19
LIES = (
    (Cell(0, 100), "row", 101),
    (Cell(6, 115), "attention_norm.inverse", 0),
    (Cell(6, 115), "query", 300),
    (Cell(6, 115), "keys.turned", 20),
    (Cell(6, 115), "scores", 300),
    (Cell(6, 115), "probabilities", 300),
    (Cell(6, 115), "divisor", 1),
    (Cell(6, 115), "mixed", 300),
    (Cell(6, 115), "gated", 777),
    (Cell(6, 115), "down", 77),
    (Cell(6, 115), "row", 77),
    (Cell(EXIT, 120), "logits", 200_000),
    (Cell(EXIT, 120), "nucleus.bound", 0),
    (Cell(EXIT, 120), "noisy", 99),
)
BOUNDARY = Cell(EXIT, 100), "sent"
WIDTHS = (640, 2048, 4096, 8192)
"""Hidden sizes of random models; otherwise small, with layers and positions as the default's."""
WIDE_LIES = (
    (Cell(6, 115), "attention_norm.inverse", 0),
    (Cell(6, 115), "query", 100),
    (Cell(6, 115), "row", 5000),
    (Cell(EXIT, 120), "logits", 2_000),
    (Cell(EXIT, 120), "nucleus.bound", 0),
)
OPERATOR, ACCUSER, PAYER = (SettlementKey(bytes((i,)) * 32) for i in (0x71, 0x72, 0x73))
RULES = (1_000, 3, 10_000, 3_600, EPOCH_SECONDS, 3 * 3_600, 5_000, 3_000, 5_000)
DELAY = 12 * 3_600
_DOTS = ("product", "logit", "score")


@cache
def _answer() -> tuple[Answer, Descriptors]:
    model = ModelStore().ensure(DEFAULT_MODEL)
    text = Tokenizer.from_files(model.tokenizer_files()).encode(TEXT)
    tokens = tuple(text[: POSITIONS + 1])
    layers = LayerRange(0, model.layer_count)
    weights = load_block(model, layers)
    hop = HopProgram(model.manifest, layers, PROMPT, POSITIONS, EVERYTHING)
    material = Material(hop, weights, tokens)
    honest = Holdings(material, WeightTrees(weights))
    said = tokens[PROMPT:]
    id = model.manifest.model_id
    request = GenerationRequest(id, tokens[:PROMPT], len(said), EVERYTHING)
    return Answer(material, honest, request, said), descriptors(model.manifest)


@cache
def _wide(width: int) -> tuple[Answer, Descriptors]:
    """An answer of a random model of this hidden size, and the model's program."""
    config = tiny_config(
        "llama", hidden_size=width, layer_count=EXIT - 1, vocabulary_size=4096, mlp_size=256
    )
    weights = tiny_weights(config)
    manifest = manifest_of(config, weights)
    tokens = tuple(7 * i % config.vocabulary_size for i in range(POSITIONS + 1))
    layers = LayerRange(0, config.layer_count)
    hop = HopProgram(manifest, layers, PROMPT, POSITIONS, EVERYTHING)
    material = Material(hop, weights, tokens)
    said = tokens[PROMPT:]
    request = GenerationRequest(manifest.model_id, tokens[:PROMPT], len(said), EVERYTHING)
    honest = Holdings(material, WeightTrees(weights))
    return Answer(material, honest, request, said), descriptors(manifest)


@dataclass
class _Court:
    """The contracts, and how many claims were made."""

    chain: Chain
    court: Any
    judge: Any
    interface: Contract
    claims: int = 0

    def case(self, made: tuple[Answer, Descriptors] | None = None) -> Case:
        """A claim of now, unlike all before; about the default model's answer unless another is
        given."""
        answer, program = made or _answer()
        now: int = self.chain.web3.eth.get_block("latest")["timestamp"]  # type: ignore[typeddict-item]
        subject = answer.subject(epoch=now // EPOCH_SECONDS)
        self.claims += 1
        size = subject.manifest.config.vocabulary_size
        claim = settlement_claim(
            subject.claim, subject.request, subject.tokens, program.root, size, PAYER.address
        )
        claim = replace(claim, session=self.claims.to_bytes(32, "big"))
        domain = court_domain(self.chain.web3.eth.chain_id, self.court.address)
        return Case(subject, claim.signed_by(OPERATOR, domain), program)

    def send(self, key: SettlementKey, appeal: Appeal) -> tuple[int, list[dict[str, Any]]]:
        """Send a call; its gas, and the court's logs."""
        contract = self.court if appeal.contract == "court" else self.judge
        data = Contract(contract.address, contract.abi).encode(appeal.function, *appeal.arguments)
        receipt = self.chain.send(key, data, contract.address)
        events: list[dict[str, Any]] = []
        for log in receipt["logs"]:
            address = checksummed(bytes.fromhex(log["address"][2:]))
            topics = tuple(bytes(t) for t in log["topics"])
            found = self.interface.event(Log(address, topics, bytes(log["data"]), 0, TxHash(""), 0))
            if found is not None:
                events.append({"event": found[0], **found[1]})
        return receipt["gasUsed"], events

    def play(
        self, case: Case, defender: Defender, challenger: Challenger
    ) -> tuple[State, list[tuple[str, int]]]:
        """A game from its opening to the payment; the gas of every call."""
        opening = case.opening()
        gas, events = self.send(ACCUSER, opening)
        spent = [(opening.function, gas)]
        state = next(State(*e["state"]) for e in events if e["event"] == "Opened")
        sides: list[tuple[SettlementKey, Advocate]] = [
            (OPERATOR, Defence(case, state, defender)),
            (ACCUSER, Prosecution(case, state, challenger)),
        ]
        while state.turn is not None:
            key, appeal = next((k, a) for k, s in sides if (a := s.appeal()) is not None)
            gas, events = self.send(key, appeal)
            spent.append((appeal.function, gas))
            event, shown = events[-1], b""
            if event["event"] == "Moved":
                state, shown = State(*event["state"]), event["shown"]
            else:
                state = state.decided(event["challenger_lost"])
            for _, side in sides:
                side.hear(state, shown)
        gas, _ = self.send(ACCUSER, case.settling(state))
        return state, [*spent, ("settle", gas)]


def _deployed(chain: Chain) -> _Court:
    coin = chain.deploy("stablecoin")
    tables: dict[str, str] = {}
    for name in TABLES:
        receipt = chain.send(chain.key, table_deployment(name))
        chain.note(f"deploy table of {name}", receipt["gasUsed"])
        tables[name] = receipt["contractAddress"]
    exponentials = tables["exponentials"]
    referees = [
        chain.deploy("steps_rows", exponentials),
        chain.deploy("steps_attention", exponentials, tables["cosines"]),
        chain.deploy("steps_choice", exponentials, tables["logarithms"]),
    ]
    from unisono.settlement.artifacts import contract_address

    nonce = chain.web3.eth.get_transaction_count(chain.key.address)
    place = contract_address(chain.key.address, nonce + 2)
    judge = chain.deploy("judge", place, *(x.address for x in referees))
    registry = chain.deploy("registry", coin.address, DELAY, [place])
    court = chain.deploy("court", registry.address, judge.address, RULES)
    for key in (OPERATOR, ACCUSER):
        chain.call(None, chain.key, coin, "mint", key.address, 10**12)
        for contract in (registry, court):
            chain.call(None, key, coin, "approve", contract.address, 2**256 - 1)
    node = bytes.fromhex(HOP.node_id)
    chain.call(None, OPERATOR, registry, "register", node, b"\1" * 32, b"\2" * 32)
    chain.call(None, OPERATOR, registry, "stake", node, 10**9)
    return _Court(chain, court, judge, Contract(court.address, court.abi))


def court(chain: Chain) -> None:
    """The court, its judge and the referees of steps."""
    chain.fund(OPERATOR, ACCUSER)
    house = _deployed(chain)
    answer, _ = _answer()
    moves: dict[str, int] = {}
    whole, longest = 0, 0
    for cell, tensor, i in LIES:
        step = answer.hop.program(cell).tensor(tensor).step
        assert step is not None
        delta = -1 if tensor == "top_k.bound" else 1
        liar = lying_holdings(answer, cell, one_element(tensor, i, delta))
        honest = Challenger(CHALLENGER, answer.honest, (cell, tensor))
        state, spent = house.play(house.case(), Splitter(HOP, liar), honest)
        assert not state.challenger_lost
        limit = DOT_PRODUCT if step.kind in _DOTS else ONE_STEP
        chain.note(f"the last step: {step.kind} ('{tensor}')", spent[-2][1], limit)
        whole, longest = max(whole, sum(gas for _, gas in spent)), max(longest, len(spent))
        for name, gas in spent[:-2]:
            moves[name] = max(moves.get(name, 0), gas)
        moves["settle"] = max(moves.get("settle", 0), spent[-1][1])
    false = Challenger(CHALLENGER, answer.honest, BOUNDARY)
    state, spent = house.play(house.case(), Defender(HOP, answer.honest), false)
    assert state.challenger_lost
    chain.note("the last step: boundary ('sent')", spent[-2][1], ONE_STEP)
    for name, gas in moves.items():
        chain.note(f"court.{name}, the most", gas)
    chain.note("court.settle of a false challenge", spent[-1][1])
    chain.note(f"a whole dispute, the most of {longest} calls", whole, DISPUTE)
    for width in WIDTHS:
        _wide_games(chain, house, width)
    first, second = house.case(), house.case()
    other = replace(
        second.claim, session=first.claim.session, rows_out=bytes(32), signature=b""
    ).signed_by(OPERATOR, court_domain(chain.web3.eth.chain_id, house.court.address))
    claims = (first.claim.words(), first.claim.signature, other.words(), other.signature)
    gas, _ = house.send(ACCUSER, Appeal("equivocate", claims))
    chain.note("court.equivocate", gas)


def _wide_games(chain: Chain, house: _Court, width: int) -> None:
    made = answer, _ = _wide(width)
    false = Challenger(CHALLENGER, answer.honest, BOUNDARY)
    state, spent = house.play(house.case(made), Defender(HOP, answer.honest), false)
    assert state.challenger_lost
    chain.note(f"the last step: boundary, {width:,} units", spent[-2][1], ONE_STEP)
    games = [spent]
    for cell, tensor, i in WIDE_LIES if width == max(WIDTHS) else ():
        step = answer.hop.program(cell).tensor(tensor).step
        assert step is not None
        liar = lying_holdings(answer, cell, one_element(tensor, i))
        honest = Challenger(CHALLENGER, answer.honest, (cell, tensor))
        state, spent = house.play(house.case(made), Splitter(HOP, liar), honest)
        assert not state.challenger_lost
        limit = DOT_PRODUCT if step.kind in _DOTS else ONE_STEP
        chain.note(f"the last step: {step.kind}, {width:,} units", spent[-2][1], limit)
        games.append(spent)
    whole = max(sum(gas for _, gas in spent) for spent in games)
    longest = max(map(len, games))
    chain.note(f"a whole dispute, {width:,} units, the most of {longest} calls", whole, DISPUTE)
