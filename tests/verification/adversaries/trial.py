"""Dishonest nodes in real networks, and every mechanism that may catch them, beside each other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.scenarios.network import TinyNetwork, honest, tiny_network, weights
from unisono.clock import VirtualClock
from unisono.execution.engine import Engine, StepResult
from unisono.models.cache import SessionCache
from unisono.models.decoder import Decoder, Segment
from unisono.models.store import ModelStore, StoredModel
from unisono.models.weights import BlockWeights
from unisono.simulation.adversaries_stakes import Hearing, Juror, hold_round
from unisono.types import GenerationRequest, LayerRange, NodeId
from unisono.verification.adversaries.computing import Dishonest, OtherWeights
from unisono.verification.adversaries.disputing import Player, play
from unisono.verification.form import check_form
from unisono.verification.fraud.game import Conviction
from unisono.verification.fraud.holdings import Holdings, Signed, WeightTrees
from unisono.verification.fraud.moves import Challenge, Subject
from unisono.verification.fraud.parties import Challenger, Defender, Target
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.trace import Material
from unisono.verification.fraud.transcript import Arbiter
from unisono.verification.light.audit import LightAudit, LightVerdict
from unisono.verification.light.draw import Budget
from unisono.verification.light.making import build
from unisono.verification.light.responder import Responder
from unisono.verification.light.secrets import Secrets
from unisono.verification.light.trace import Trace
from unisono.verification.policy import larger_committee
from unisono.verification.receipt import Receipt
from unisono.verification.replay import verify
from unisono.verification.stakes.beacon import AUDIT_DELAY, ChainBeacon, ChainSource
from unisono.verification.stakes.committee import Committee
from unisono.verification.stakes.faults import CommitteeFault, PlantOpening
from unisono.verification.stakes.lottery import (
    LotteryKey,
    Roster,
    Verifier,
    draw_committee,
    draw_ticket,
)
from unisono.verification.stakes.work import Answer, ReplayWork, make_task, replay
from unisono.verification.verdict import Fault, Verdict
from unisono.wire.claims import HopClaim, rows_root, token_hash
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import MILLION, ReplayResult, Ticket, Work

KV_BYTES = 64 << 20
MEMBERS = 60
"""Verifiers that committees are drawn from, of equal stake."""


class Recording(Engine):
    """Keeps the hash of every row that went out."""

    kept: dict[SessionCache, dict[int, bytes]]

    async def step(self, cache: SessionCache, start: int, *more: Any) -> StepResult:
        result = await super().step(cache, start, *more)
        known = self.kept.setdefault(cache, {})
        known |= {start + i: h for i, h in enumerate(result.hashes)}
        return result


@dataclass(frozen=True)
class Served:
    """An answer, and what its first hop knows of it."""

    receipt: Receipt
    hops: tuple[Identity, ...]
    gateway: Identity
    rows_out: tuple[bytes, ...]
    """Hashes of the rows that the first hop sent, and signed."""
    attack: type[Dishonest] | None

    @property
    def claim(self) -> HopClaim:
        """The first hop's."""
        return self.receipt.hops[0]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The token at every position."""
        return (*self.receipt.request.prompt, *self.receipt.tokens[:-1])


async def serve(
    model: StoredModel,
    requests: Sequence[GenerationRequest],
    attack: type[Dishonest] | None = None,
    *,
    blocks: int | Sequence[LayerRange] = 1,
    together: int = 8,
    make: dict[int, Any] | None = None,
    record: bool = True,
) -> list[Served]:
    """Answers of a network whose first hop is dishonest, `together` at a time.

    Args:
        make: the decoders of nodes, by index, in the place of the attack.
        record: keep hashes of rows, which disputes need.
    """

    def dishonest(model: StoredModel, layers: LayerRange, kv_bytes: int) -> Decoder:
        assert attack is not None
        return attack.of(model.manifest.config, weights(model, layers), kv_bytes)

    made = make or ({} if attack is None else {0: dishonest})
    found: list[Served] = []
    async with tiny_network(model, blocks, make=made, kv_bytes=KV_BYTES) as network:
        for node in network.nodes if record else ():
            node.engine.__class__ = Recording
            node.engine.kept = {}  # type: ignore[attr-defined]
        keys = {node.identity.node_id: node.identity for node in network.nodes}
        for at in range(0, len(requests), together):
            for node in network.nodes:
                node.announce()  # a lease ends sooner than some runs
            some = requests[at : at + together]
            for answered in await asyncio.gather(*(network.answer(r) for r in some)):
                receipt = answered.receipt()
                hops = tuple(keys[claim.node] for claim in receipt.hops)
                sent = _sent(network, receipt.hops[0]) if record else ()
                found.append(Served(receipt, hops, network.gateway, sent, attack))
    return found


def _sent(network: TinyNetwork, claim: HopClaim) -> tuple[bytes, ...]:
    node = next(n for n in network.nodes if n.identity.node_id == claim.node)
    kept: dict[SessionCache, dict[int, bytes]] = node.engine.kept  # type: ignore[attr-defined]
    for cache, hashes in tuple(kept.items()):
        if len(hashes) >= claim.positions:
            sent = [hashes[p] for p in range(claim.positions)]
            if rows_root(sent) == claim.rows_out:
                del kept[cache]
                return tuple(sent)
    raise AssertionError("a hop signed rows that it did not send")


@dataclass
class Court:
    """Every mechanism, for the claims of first hops of one model."""

    store: ModelStore
    model: StoredModel
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    _trees: dict[LayerRange, WeightTrees] = field(default_factory=dict)
    _holdings: dict[str, Holdings] = field(default_factory=dict)
    _decoders: dict[LayerRange, Decoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeds = [self.chance.randbytes(32) for _ in range(MEMBERS + 3)]
        self.auditor, self.challenger, self.arbiter, *self.members = map(Identity.from_seed, seeds)
        self.key = LotteryKey(self.auditor)
        self._beacons: dict[int, ChainBeacon] = {}

    @cached_property
    def secrets(self) -> Secrets:
        """What a client without weights keeps."""
        return build(self.model)

    def block(self, layers: LayerRange) -> BlockWeights:
        """True weights."""
        return weights(self.model, layers)

    def close(self) -> None:
        """Free decoders."""
        for decoder in self._decoders.values():
            decoder.close()

    # without computing, and by computing everything

    def form(self, served: Served) -> Fault | None:
        """What the receipt alone shows."""
        return check_form(served.receipt, self.model)

    def replay(self, served: Served) -> Verdict:
        """What a replay of the whole answer shows."""
        return verify(served.receipt, self.store)

    # light audits

    def trace(self, served: Served) -> Trace:
        """What the hop can show: of its own weights, or the true one."""
        layers = served.claim.layers
        held = self.block(layers)
        if served.attack is not None and issubclass(served.attack, OtherWeights):
            held = served.attack.altered(held)
        return Trace(self.model.manifest.config, held, list(served.inputs))

    def light(
        self, served: Served, trace: Trace, budget: Budget = Budget(), seed: int = 0
    ) -> LightVerdict:
        """One audit by a client without weights."""
        responder = Responder(served.claim, trace, served.hops[0])
        audit = LightAudit(self.secrets, served.receipt, 0, budget, random.Random(seed))
        found: LightVerdict | None = None
        for challenge in audit.challenges(responder.commit()):
            found = audit.judge(challenge, responder.respond(challenge))
            if found.verdict != "VALID":
                break
        assert found is not None
        return found

    # the fraud game

    def honest_holdings(self, served: Served) -> Holdings:
        """What an honest party computes of the answer."""
        known = self._holdings.get(served.receipt.id)
        if known is None:
            known = Holdings(self._material(served), self._tree(served.claim.layers))
            self._holdings[served.receipt.id] = known
        return known

    def _tree(self, layers: LayerRange) -> WeightTrees:
        if layers not in self._trees:
            self._trees[layers] = WeightTrees(self.block(layers))
        return self._trees[layers]

    def _material(self, served: Served, held: BlockWeights | None = None) -> Material:
        claim, request = served.claim, served.receipt.request
        hop = HopProgram(
            self.model.manifest,
            claim.layers,
            len(request.prompt),
            claim.positions,
            request.sampling,
        )
        tokens = (*request.prompt, *served.receipt.tokens)
        return Material(hop, held or self.block(claim.layers), tokens)

    def arbiter_of(self, served: Served, clock: VirtualClock) -> Arbiter:
        """A dispute about the first hop's claim."""
        ends = len(served.receipt.hops) == 1
        subject = Subject(
            served.claim,
            served.receipt.request,
            served.receipt.tokens if ends else (),
            self.model.manifest,
        )
        salt = self.chance.randbytes(16)
        challenge = Challenge(
            served.claim.signed_bytes(), self.challenger.node_id, self.arbiter.node_id, salt
        ).signed_by(self.challenger)
        return Arbiter(subject, challenge, self.arbiter, clock)

    def defender(self, served: Served) -> Defender:
        """The hop: shows the true trace, and what it signed."""
        true = self.honest_holdings(served)
        signed = Signed([token_hash(t) for t in served.inputs], list(served.rows_out))
        if served.attack is not None and issubclass(served.attack, OtherWeights):
            held = served.attack.altered(self.block(served.claim.layers))
            return Defender(served.hops[0], Holdings(self._material(served, held), true.trees))
        return Defender(served.hops[0], Holdings(true.material, true.trees, signed, true.grid))

    def honest_challenger(self, served: Served) -> Challenger:
        """Whoever computed the answer, and points at the first thing that is wrong."""
        holdings = self.honest_holdings(served)
        return Challenger(self.challenger, holdings, self._target(served, holdings))

    def _target(self, served: Served, holdings: Holdings) -> Target | None:
        last = holdings.hop.stages - 1
        for position, true in enumerate(holdings.signed.rows_out):
            if served.rows_out[position] != true:
                return Cell(last, position), "sent"
        if len(served.receipt.hops) > 1:
            return None
        first = len(served.receipt.request.prompt) - 1
        for i, choice in enumerate(self.drawn(served)):
            if choice != served.receipt.tokens[i]:
                return Cell(last, first + i), "chosen"
        return None

    async def dispute(
        self,
        served: Served,
        defender: Player | None = None,
        challenger: Player | None = None,
        clock: VirtualClock | None = None,
    ) -> tuple[Conviction, Arbiter]:
        """Play one, by default with the hop as it is and an honest challenger."""
        clock = clock or VirtualClock()
        arbiter = self.arbiter_of(served, clock)
        conviction = await play(
            arbiter,
            clock,
            defender or self.defender(served),
            challenger or self.honest_challenger(served),
        )
        return conviction, arbiter

    # committees

    def ticket(self, claim: HopClaim, rate: int = MILLION) -> Ticket:
        """The auditor's lot for a claim; it may lose."""
        ticket = draw_ticket(
            self.key,
            self.auditor.node_id,
            claim,
            self.roster(claim.epoch),
            rate,
            self._beacon(claim.epoch),
        )
        assert ticket is not None
        return ticket

    def roster(self, epoch: int) -> Roster:
        """Members of equal stake."""
        return Roster.of(epoch, (Verifier(m.node_id, 1) for m in self.members))

    def _beacon(self, epoch: int) -> ChainBeacon:
        if epoch not in self._beacons:
            source = ChainSource(self.chance.randbytes(32), epoch, 8)
            beacon = ChainBeacon(source.anchor(self.arbiter))
            beacon.accept(epoch + AUDIT_DELAY, source.link(epoch + AUDIT_DELAY))
            self._beacons[epoch] = beacon
        return self._beacons[epoch]

    def truth(self, served: Served) -> ReplayResult:
        """What an honest member computes for the first hop of an answer."""
        (result,) = replay(self._decoder(served.claim.layers), [self._work(served)])
        return result

    def drawn(self, served: Served) -> list[int]:
        """The tokens that the true rows give after the answer's; the hop ends the model."""
        work, decoder = self._work(served), self._decoder(served.claim.layers)
        cache = decoder.new_cache(work.positions)
        try:
            rows = decoder.forward(decoder.embed(work.tokens), [Segment(cache, 0, work.positions)])
        finally:
            cache.close()
        first = work.positions - len(work.draws)
        draws = [(first + i, first + i + 1, draw) for i, draw in enumerate(work.draws)]
        return [choice.token for choice in decoder.choose(rows, draws)]

    def _work(self, served: Served) -> ReplayWork:
        claim, request = served.claim, served.receipt.request
        answer = Answer(request.model, request.prompt, served.receipt.tokens, request.sampling)
        task, body = make_task(
            self.ticket(claim),
            "00" * 32,
            answer,
            claim.layers,
            len(served.receipt.hops) == 1,
            seats=3,
            commit_ms=1000,
            reveal_ms=1000,
        )
        return ReplayWork.of(task, body, self.model.manifest.config.hidden_size)

    def _decoder(self, layers: LayerRange) -> Decoder:
        if layers not in self._decoders:
            self._decoders[layers] = honest(self.model, layers)
        return self._decoders[layers]

    async def committee(
        self,
        served: Served,
        truth: ReplayResult,
        seats: int,
        friends: type[Juror],
        share: float,
        claim: HopClaim | None = None,
    ) -> tuple[Verdict, Sequence[CommitteeFault], set[NodeId]]:
        """A committee, and larger ones while there is no majority. A share of the members are the
        node's friends, or enemies, and see its claim.

        Returns:
            Verdict, faults of members, and which members were dishonest.
        """
        claim = claim or served.claim
        ticket = self.ticket(claim)
        count = round(share * len(self.members))
        dishonest = {m.node_id for m in self.chance.sample(self.members, count)}
        by_id = {m.node_id: m for m in self.members}
        size: int | None = seats
        while True:
            assert size is not None
            clock = VirtualClock()
            drawn = draw_committee(ticket, self.roster(claim.epoch), size, {claim.node})
            jurors = [
                (friends if node in dishonest else Juror)(by_id[node], self.chance)
                for node in drawn
            ]
            work = Work(ticket.audit(), claim.epoch, "00" * 32)
            plant = PlantOpening(ticket.audit(), self.chance.randbytes(32), None)
            panel = Committee(work, list(drawn), self.auditor, clock, plant, seats=size)
            claimed = claim.rows_in, claim.rows_out, claim.tokens
            await hold_round(panel, clock, jurors, Hearing(work, claimed, ()), truth, self.chance)
            assert panel.outcome is not None
            verdict = panel.outcome.judge(claim, truth.rows_in)
            size = larger_committee(size)
            if verdict.verdict != "INCONCLUSIVE" or size is None or size > len(self.members):
                return verdict, panel.faults, dishonest
