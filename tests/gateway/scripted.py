"""A network in one process that answers from a script, and a small tokenizer to go with it."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from unisono.errors import AnswerInterrupted
from unisono.gateway import ServedModel
from unisono.routing.demand import ANY, Demand
from unisono.routing.network import NodeStatus
from unisono.types import (
    GenerationRequest,
    LayerRange,
    ModelId,
    NodeId,
    SampledToken,
    SessionId,
    digest,
    request_hash,
)
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.identity import Identity
from unisono.wire.votes import Vote

START, STOP = 256, 257
MODEL = ModelId(digest("test/model").hex())
CONTEXT = 512


class ByteDecoder:
    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class ByteTokenizer:
    """One token per byte, two special ones, and whatever longer tokens a test wants."""

    start_token = START
    stop_tokens = (STOP,)
    plain_chat_stops = ("\nUser:",)
    vocabulary_hash = "b7" * 32

    def __init__(self, *, chat_template: str | None = None, words: Sequence[bytes] = ()) -> None:
        self.chat_template = chat_template
        self._words = {STOP + 1 + i: word for i, word in enumerate(words)}
        self.vocabulary_size = STOP + 1 + len(words)

    def encode(
        self, text: str, *, add_start: bool = True, allow_special: bool = False
    ) -> list[int]:
        return [START] * add_start + list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def decoder(self) -> ByteDecoder:
        return ByteDecoder(self)

    def token_text(self, token: int) -> str:
        return self.token_bytes(token).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        if token in (START, STOP):
            return b""
        return bytes([token]) if token < START else self._words[token]

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        lines = [f"{m['role'].capitalize()}: {m['content']}" for m in messages]
        text = "\n".join([*lines, "Assistant:"])
        return self.encode(text, add_start=self.chat_template is None)


def babble(request: GenerationRequest) -> list[int]:
    """Words that depend on the prompt and, unless the request is greedy, on the seed."""
    seed = request.sampling.seed if request.sampling.temperature else 0
    words: list[str] = []
    for i in range(12):
        prompt = b"".join(t.to_bytes(4, "little") for t in request.prompt)
        noise = digest("test/babble", prompt, seed.to_bytes(8, "little"), bytes([i]))
        words.append(noise.hex()[: 3 + noise[0] % 5])
    return [*" ".join(words).encode(), STOP]


def says(text: str | bytes) -> Callable[[GenerationRequest], list[int]]:
    """A script that gives the same text, byte by byte, and then stops."""
    data = text.encode() if isinstance(text, str) else text
    return lambda _: [*data, STOP]


class ScriptedAnswer:
    attempts = 1

    def __init__(
        self, network: ScriptedNetwork, request: GenerationRequest, top: int, quorum: int
    ) -> None:
        self.request = request
        self.quorum = quorum
        self.votes: tuple[Vote, ...] = ()
        self.cancelled = asyncio.Event()
        self.finished_with: int | None = None
        self._network = network
        self._top = top

    async def __aiter__(self) -> AsyncIterator[SampledToken]:
        network, request = self._network, self.request
        for i, token in enumerate(network.script(request)[: request.max_tokens]):
            if network.pause is not None:
                await network.pause(i)
            if i == network.fail_after:
                raise AnswerInterrupted("the hop of layers 2:4 is gone and no standby holds them")
            yield SampledToken(
                position=len(request.prompt) + i,
                token=token,
                logprob=-(i + 1) * 1000 if self._top >= 0 else 0,
                top=tuple(((token + j) % 256, -(i + j + 1) * 1000) for j in range(self._top)),
            )
            if token in request.stop_tokens:
                return

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        if self._network.finish_error is not None:
            raise self._network.finish_error
        self.finished_with = tokens
        answer = self._network.script(self.request)[:tokens]
        claims = tuple(
            self._network.claim(self.request, hop, tokens, answer)
            for hop in range(len(self._network.hops))
        )
        if self.quorum > 1:
            self.votes = tuple(self._vote(i, claims, answer) for i in range(self.quorum))
        return claims

    def _vote(self, index: int, claims: tuple[HopClaim, ...], answer: list[int]) -> Vote:
        """All agree but the last `dissenting`, who say another first token and sign nothing."""
        if index >= self.quorum - self._network.dissenting:
            said = answer[0] + 1
            node = NodeId(f"{index:064x}")
            root = tokens_root([said])
            return Vote("dissented", (node,), 1, root, said, reason=f"said token {said}")
        nodes = tuple(claim.node for claim in claims)
        return Vote("agreed", nodes, len(answer), tokens_root(answer), hops=claims)

    async def cancel(self) -> None:
        self.cancelled.set()


class ScriptedNetwork:
    """Two hops with two layers each."""

    def __init__(
        self, script: Callable[[GenerationRequest], list[int]] = babble, *, gateway: Identity
    ) -> None:
        self.script = script
        self.gateway = gateway
        self.hops = [Identity.generate(), Identity.generate()]
        self.alive = [True, True]
        self.held = MODEL
        self.standbys = 0
        """More nodes with all layers, of which the first `standbys_alive` answer."""
        self.standbys_alive = 0
        self.facts: dict[str, dict[str, Any]] = {}
        """More of the status of single nodes."""
        self.answers: list[ScriptedAnswer] = []
        self.dissenting = 0
        """Of the chains of a quorum."""
        self.demands: list[Demand] = []
        self.open_error: Exception | None = None
        self.finish_error: Exception | None = None
        self.fail_after: int | None = None
        self.pause: Callable[[int], Any] | None = None
        """Awaited before each token, with its index."""

    async def open(
        self,
        request: GenerationRequest,
        *,
        top_logprobs: int = -1,
        quorum: int = 1,
        demand: Demand = ANY,
    ) -> ScriptedAnswer:
        self.demands.append(demand)
        await asyncio.sleep(0)
        if self.open_error is not None:
            raise self.open_error
        answer = ScriptedAnswer(self, request, top_logprobs, quorum)
        self.answers.append(answer)
        return answer

    def nodes(self) -> tuple[NodeStatus, ...]:
        return tuple(
            NodeStatus(
                node=identity.node_id,
                address=f"memory://{identity.node_id}@here",
                model=self.held,
                layers=LayerRange(2 * i, 2 * i + 2),
                free_positions=1000 + i,
                sessions=0,
                alive=self.alive[i],
                **self.facts.get(identity.node_id, {}),
            )
            for i, identity in enumerate(self.hops)
        ) + tuple(
            NodeStatus(
                node=NodeId(f"{i:064x}"),
                address=f"memory://{i:064x}@there",
                model=self.held,
                layers=LayerRange(0, 4),
                free_positions=0,
                sessions=0,
                alive=i < self.standbys_alive,
            )
            for i in range(self.standbys)
        )

    async def close(self) -> None:
        return

    def claim(
        self, request: GenerationRequest, hop: int, tokens: int, answer: list[int]
    ) -> HopClaim:
        identity = self.hops[hop]
        unsigned = HopClaim(
            session=SessionId("0" * 32),
            request=request_hash(request),
            gateway=self.gateway.node_id,
            model=request.model,
            node=identity.node_id,
            hop=hop,
            layers=LayerRange(2 * hop, 2 * hop + 2),
            positions=len(request.prompt) + tokens - 1,
            rows_in="00" * 32,
            rows_out="11" * 32,
            out_tags=b"",
            tokens=tokens_root(answer) if hop == len(self.hops) - 1 else "",
            epoch=0,
        )
        signature = identity.sign(unsigned.signed_bytes())
        return HopClaim(**{**_fields(unsigned), "signature": signature})


def _fields(claim: HopClaim) -> dict[str, Any]:
    return {name: getattr(claim, name) for name in claim.__struct_fields__}


def scripted_model(tokenizer: ByteTokenizer | None = None, **changes: Any) -> ServedModel:
    fields: dict[str, Any] = {
        "name": "scripted-1b",
        "id": MODEL,
        "tokenizer": tokenizer or ByteTokenizer(),
        "context_length": CONTEXT,
        "layer_count": 4,
        "aliases": ("default", "lab/scripted"),
    }
    return ServedModel(**{**fields, **changes})
