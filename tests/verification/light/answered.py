"""Hops of small random models that answered, honestly or not, and audits of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.tiny_weights import tiny_config, tiny_weights
from unisono.models.config import DecoderConfig
from unisono.models.decoder import Draw, Segment, make_decoder
from unisono.models.weights import BlockWeights
from unisono.types import GenerationRequest, LayerRange, ModelId, NodeId, Sampling, SessionId
from unisono.verification.light.audit import LightAudit, LightVerdict
from unisono.verification.light.draw import Budget
from unisono.verification.light.making import from_weights
from unisono.verification.light.responder import Responder
from unisono.verification.light.secrets import Secrets
from unisono.verification.light.steps import Steps
from unisono.verification.light.trace import Trace
from unisono.verification.receipt import VERSION, Receipt
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.identity import Identity

MODEL = ModelId("ab" * 32)
KEY = Identity(b"node" * 8)
SAMPLING = Sampling(temperature=1 << 16, top_k=20, seed=5)
EVERYTHING = Budget(columns=1 << 20, samples=0, heads=1 << 20)


@dataclass
class Answered:
    """An honest model, and what it answered."""

    config: DecoderConfig
    secrets: Secrets
    weights: BlockWeights
    request: GenerationRequest
    tokens: tuple[int, ...]
    seed: int
    _traces: dict[LayerRange, Trace] = field(default_factory=dict)

    def block(self, start: int, stop: int) -> BlockWeights:
        return tiny_weights(self.config, self.seed, LayerRange(start, stop))

    def trace(
        self,
        layers: LayerRange | None = None,
        steps: type[Steps] = Steps,
        weights: BlockWeights | None = None,
    ) -> Trace:
        """A hop's trace; the hops before it are honest."""
        layers = layers or LayerRange(0, self.config.layer_count)
        if (steps, weights) == (Steps, None):
            if layers not in self._traces:
                self._traces[layers] = self._trace(layers, steps, None)
            return self._traces[layers]
        return self._trace(layers, steps, weights)

    def _trace(self, layers: LayerRange, steps: type[Steps], weights: BlockWeights | None) -> Trace:
        source = [*self.request.prompt, *self.tokens[:-1]]
        weights = weights or self.block(layers.start, layers.stop)
        if layers.start == 0:
            return Trace(self.config, weights, source, steps)
        before = Trace(self.config, self.block(0, layers.start), source)
        return Trace(self.config, weights, before.out, steps)

    def receipt(self, trace: Trace, **changes: str) -> Receipt:
        """A receipt of one hop that signs what a trace holds."""
        claim = HopClaim(
            session=SessionId("00" * 16),
            request="11" * 32,
            gateway=NodeId("22" * 32),
            model=ModelId(changes.get("model", MODEL)),
            node=KEY.node_id,
            hop=0,
            layers=trace.layers,
            positions=trace.positions,
            rows_in=changes.get("rows_in", trace.rows_in),
            rows_out=changes.get("rows_out", trace.rows_out),
            out_tags=b"",
            tokens=tokens_root(self.tokens),
            epoch=0,
        ).signed_by(KEY)
        return Receipt(
            version=VERSION,
            id="33" * 16,
            request=self.request,
            tokens=self.tokens,
            finish_reason="length",
            hops=(claim,),
            gateway=NodeId("22" * 32),
            created=0,
            elapsed_us=0,
            first_token_us=0,
            attempts=1,
        )

    def audit(
        self,
        trace: Trace,
        budget: Budget = EVERYTHING,
        receipt: Receipt | None = None,
        seed: int = 0,
        secrets: Secrets | None = None,
    ) -> LightVerdict:
        """A whole audit: the first verdict that is not VALID, else the last."""
        receipt = receipt or self.receipt(trace)
        responder = Responder(receipt.hops[0], trace, KEY)
        audit = LightAudit(secrets or self.secrets, receipt, 0, budget, random.Random(seed))
        verdict: LightVerdict | None = None
        for challenge in audit.challenges(responder.commit()):
            verdict = audit.judge(challenge, responder.respond(challenge))
            if verdict.verdict != "VALID":
                return verdict
        assert verdict is not None
        return verdict


def answered(
    family: str,
    prompt: Sequence[int] = (3, 1, 4, 1, 5, 9, 2),
    count: int = 5,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
    **changes: object,
) -> Answered:
    """Let an honest decoder, token by token, answer a prompt."""
    config = tiny_config(family, **changes)
    weights = tiny_weights(config, seed)
    secrets = from_weights(MODEL, config, [weights], bytes(range(32)))
    request = GenerationRequest(MODEL, tuple(prompt), count, sampling)
    decoder = make_decoder(config, weights, threads=1, kv_bytes=64 << 20)
    try:
        cache = decoder.new_cache(len(prompt) + count)
        known = [*prompt]
        rows = decoder.forward(decoder.embed(known), [Segment(cache, 0, len(known))])
        for _ in range(count):
            draw = Draw(sampling, np.array(known, dtype=np.int32), len(prompt))
            known.append(decoder.choose(rows, [(len(rows) - 1, len(known), draw)])[0].token)
            place = Segment(cache, len(known) - 1, 1)
            rows = decoder.forward(decoder.embed(known[-1:]), [place])
    finally:
        decoder.close()
    return Answered(config, secrets, weights, request, tuple(known[len(prompt) :]), seed)


def caught(verdict: LightVerdict, operator: str, layer: int | None = None) -> None:
    """The verdict names this operator, its layer, and the node."""
    assert verdict.verdict == "INVALID", "the lie was not caught"
    assert verdict.fault is not None
    assert verdict.operator == operator, verdict.message
    assert operator in verdict.message
    assert verdict.fault.node == KEY.node_id
    if layer is not None:
        assert verdict.layer == layer
        assert verdict.fault.layers == LayerRange(layer, layer + 1)
