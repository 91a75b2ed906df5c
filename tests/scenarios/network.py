"""A whole network in one process: nodes with engines of their own, members, a swarm."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numpy as np

from unisono.clock import Clock, SystemClock
from unisono.errors import WireError
from unisono.execution.engine import Engine
from unisono.execution.worker import OVERCOMMIT, Worker
from unisono.models.decoder import Choice, Decoder, Draw, Rows, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.models.torch_decoder import TorchDecoder
from unisono.models.weights import BlockWeights
from unisono.numerics.ensemble import choose_jointly
from unisono.routing.membership import Membership
from unisono.routing.placement import even_blocks
from unisono.routing.swarm import Swarm
from unisono.types import (
    Q16,
    GenerationRequest,
    LayerRange,
    PeerAddress,
    SampledToken,
    Sampling,
)
from unisono.verification.receipt import VERSION, Receipt
from unisono.wire.claims import HopClaim
from unisono.wire.frames import FRAME_PREFIX, decode_frame, encode_frame, frame_size
from unisono.wire.identity import Identity
from unisono.wire.messages import Bundle, Message, Multiplex, Open, Ping, Pong, Tokens
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork

KV_BYTES = 64 << 20
PROMPT = tuple((7 * i * i + 11 * i + 3) % 300 for i in range(20))

SAMPLINGS = {
    "greedy": Sampling(),
    "seeded": Sampling(temperature=Q16, seed=11),
    "narrowed": Sampling(temperature=2 * Q16, top_k=40, top_p=62000, min_p=300, seed=5),
    "penalised": Sampling(
        temperature=Q16,
        repetition_penalty=80000,
        presence_penalty=20000,
        frequency_penalty=9000,
        logit_bias=((3, 90000), (17, -200000)),
        seed=2**62 + 1,
    ),
}


def request_for(model: StoredModel, **changes: Any) -> GenerationRequest:
    """Twelve seeded tokens after a prompt of twenty, unless changed."""
    fields: dict[str, Any] = {
        "model": model.id,
        "prompt": PROMPT,
        "max_tokens": 12,
        "sampling": SAMPLINGS["seeded"],
    }
    return GenerationRequest(**(fields | changes))


@cache
def weights(model: StoredModel, layers: LayerRange) -> BlockWeights:
    """A block's weights, read once for all tests."""
    return load_block(model, layers)


MakeDecoder = Callable[[StoredModel, LayerRange, int], Decoder]


def honest(model: StoredModel, layers: LayerRange, kv_bytes: int = KV_BYTES) -> Decoder:
    """The decoder of a node that does as it should."""
    return make_decoder(model.manifest.config, weights(model, layers), kv_bytes=kv_bytes)


def wrong_weights(model: StoredModel, layers: LayerRange, kv_bytes: int = KV_BYTES) -> Decoder:
    """One matrix of the block's last layer has a few weights of no model."""
    good = weights(model, layers)
    last = layers.stop - 1
    down = good.layer[last].down
    values = down.values.copy()
    values[:, :4] = -values[:, :4]
    layer = replace(good.layer[last], down=replace(down, values=values))
    altered = replace(good, layer={**good.layer, last: layer})
    return make_decoder(model.manifest.config, altered, kv_bytes=kv_bytes)


class SkippedLayer(TorchDecoder):
    """The block's last layer is left out, which saves its work."""

    def _layer(self, i: int, rows: Any, *rest: Any) -> Any:
        return rows if i == self.layers.stop - 1 else super()._layer(i, rows, *rest)


class OtherPrompt(TorchDecoder):
    """Computes with another second token than it was given, and than it signs for."""

    def embed(self, ids: Sequence[int]) -> Rows:
        known = [PROMPT[5] if t == PROMPT[1] else t for t in ids]
        return super().embed(known)


class WrongToken(TorchDecoder):
    """Says something else than its own rows say."""

    def choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        found = super().choose(rows, draws)
        return [replace(c, token=(c.token + 1) % self.config.vocabulary_size) for c in found]


class AlteredRow(TorchDecoder):
    """One value of the row at one position is off by one."""

    position = 9

    def forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        out = np.array(super().forward(rows, segments))
        first = 0
        for s in segments:
            if s.start <= self.position < s.start + s.count:
                out[first + self.position - s.start, 7] += 1
            first += s.count
        return out


def cheat(kind: type[TorchDecoder]) -> MakeDecoder:
    """A node that computes with `kind` in place of an honest decoder."""
    return lambda model, layers, kv_bytes: kind(
        model.manifest.config, weights(model, layers), kv_bytes=kv_bytes
    )


class TinyNode:
    """One node of the network."""

    def __init__(
        self,
        network: TinyNetwork,
        layers: LayerRange,
        make: MakeDecoder = honest,
        kv_bytes: int = KV_BYTES,
        overcommit: float = OVERCOMMIT,
        worker: type[Worker] = Worker,
        model: StoredModel | None = None,
    ) -> None:
        """`model`: another than the network's own."""
        self.model = model or network.model
        self.identity = Identity.generate()
        self.layers = layers
        self.engine = Engine(make(self.model, layers, kv_bytes))
        self._network = network
        self._overcommit = overcommit
        self._worker_kind = worker
        self.transport = network.hub.transport(self.identity)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.address = await self.transport.bind()
        self.worker = self._worker_kind(
            self.engine,
            self.model.id,
            self.identity,
            self.transport,
            self.address,
            overcommit=self._overcommit,
            clock=self._network.clock,
        )
        self._serving = asyncio.create_task(self.transport.serve(self.worker.handle))
        self.announce()

    def announce(self) -> None:
        """Renew the lease."""
        self._network.members.accept(self.worker.record(), self.identity.node_id)

    def kill(self) -> None:
        """Vanish without a word."""
        self._network.hub.kill(self.identity.node_id)

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
        await self.transport.close()
        await self.engine.close()


class TinyNetwork:
    """Nodes, and a gateway that routes over them."""

    def __init__(
        self,
        model: StoredModel,
        clock: Clock | None = None,
        others: Sequence[StoredModel] = (),
    ) -> None:
        self.model = model
        self.clock = clock or SystemClock()
        self.hub = MemoryNetwork(self.clock)
        self.gateway = Identity.generate()
        self.transport = self.hub.transport(self.gateway)
        self.members = Membership(self.clock, self.gateway.node_id)
        self.swarm = Swarm(
            self.transport,
            self.gateway.node_id,
            self.members,
            {each.id: each.layer_count for each in (model, *others)},
            self.clock,
            combine=choose_jointly,
        )
        self.nodes: list[TinyNode] = []

    async def add(self, layers: LayerRange, **options: Any) -> TinyNode:
        """Start one more node."""
        node = TinyNode(self, layers, **options)
        self.nodes.append(node)
        await node.start()
        return node

    def burden(self, node: TinyNode, sessions: int = 9) -> None:
        """Let the gateway think that it has so many sessions on a node."""
        for _ in range(sessions):
            self.swarm.experience.load.open([node.worker.record()], 1)

    def unburdened(self) -> bool:
        """Whether the gateway has no session on any node."""
        load = self.swarm.experience.load
        return all(load.own(node.identity.node_id) == 0 for node in self.nodes)

    @property
    def sessions(self) -> int:
        """Sessions that nodes hold, all together."""
        return sum(node.worker.sessions for node in self.nodes)

    async def idle(self) -> None:
        """Wait until no node holds a session.

        Raises:
            AssertionError: some do, after five seconds.
        """
        for _ in range(1000):
            if self.sessions == 0:
                assert all(n.worker._promised == 0 for n in self.nodes)
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{self.sessions} sessions are left after five seconds")

    async def answer(
        self,
        request: GenerationRequest,
        *,
        on_token: Callable[[int], None] | None = None,
        before_finish: Callable[[], None] | None = None,
    ) -> Answered:
        """A whole answer with its claims; `on_token` is told how many tokens there are."""
        answer = await self.swarm.open(request)
        tokens: list[int] = []
        try:
            async for token in answer:
                assert token.position == len(request.prompt) + len(tokens)
                tokens.append(token.token)
                if on_token is not None:
                    on_token(len(tokens))
            if before_finish is not None:
                before_finish()
            claims = await answer.finish(len(tokens))
        finally:
            await answer.cancel()
        return Answered(self, request, tuple(tokens), claims, answer.attempts)

    async def connect(self, identity: Identity | None = None) -> Peer:
        """A peer of its own, for tests that speak the protocol themselves."""
        transport = self.hub.transport(identity or Identity.generate())
        await transport.bind()
        return Peer(transport)

    async def close(self) -> None:
        await self.swarm.close()
        for node in self.nodes:
            await node.close()
        await self.transport.close()


class Answered:
    """What an answer left behind."""

    def __init__(
        self,
        network: TinyNetwork,
        request: GenerationRequest,
        tokens: tuple[int, ...],
        claims: tuple[HopClaim, ...],
        attempts: int,
    ) -> None:
        self.request = request
        self.tokens = tokens
        self.claims = claims
        self.attempts = attempts
        self._gateway = network.gateway

    def receipt(self, **changes: Any) -> Receipt:
        """The receipt as a gateway makes it."""
        stopped = self.tokens[-1] in self.request.stop_tokens
        fields: dict[str, Any] = {
            "version": VERSION,
            "id": self.claims[0].session,
            "request": self.request,
            "tokens": self.tokens,
            "finish_reason": "stop" if stopped else "length",
            "hops": self.claims,
            "gateway": self._gateway.node_id,
            "created": 1_700_000_000,
            "elapsed_us": 120_000,
            "first_token_us": 40_000,
            "attempts": self.attempts,
        }
        return Receipt(**(fields | changes)).signed_by(self._gateway)


class Peer:
    """Someone who dials nodes and sends what they like."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.node_id = transport.node_id

    async def dial(self, node: TinyNode) -> Stream:
        return await self.transport.dial(node.address)

    async def link(self, node: TinyNode) -> Line:
        """A link with a node."""
        line = Line(await self.dial(node))
        await line.send(Multiplex())
        return line

    async def listen(self) -> PeerAddress:
        """Take the links that nodes dial; `caller` gives them."""
        address = await self.transport.bind()
        self._lines = asyncio.Queue[Line]()

        async def take(stream: Stream) -> None:
            assert await receive(stream) == Multiplex()
            self._lines.put_nowait(Line(stream))
            await asyncio.Event().wait()

        self.serving = asyncio.create_task(self.transport.serve(take))
        return address

    async def caller(self) -> Line:
        """The next link that a node dialled."""
        async with asyncio.timeout(10):
            return await self._lines.get()

    async def ask(self, node: TinyNode, message: Message, body: bytes = b"") -> Message:
        """The first reply to a message on a new stream, which is then closed."""
        stream = await self.dial(node)
        try:
            await stream.send(encode_frame(message, body))
            return await receive(stream)
        finally:
            await stream.close()


class Line:
    """The other end of a node's link, held by a test. By itself it only answers pings."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._waiting: deque[tuple[Message, bytes]] = deque()

    async def send(self, message: Message, body: bytes = b"") -> None:
        await self.stream.send(encode_frame(message, body))

    async def receive(self) -> tuple[Message, bytes]:
        """The next message that is no ping, and its body.

        Raises:
            WireError: the link is lost.
            TimeoutError: nothing comes.
        """
        async with asyncio.timeout(10):
            while not self._waiting:
                frame = await self.stream.receive()
                for message, body in unbundled(frame):
                    if isinstance(message, Ping):
                        await self.send(Pong(message.nonce))
                    elif not isinstance(message, Pong):
                        self._waiting.append((message, body))
        return self._waiting.popleft()

    async def message(self) -> Message:
        """The next message that is no ping."""
        return (await self.receive())[0]

    async def tokens(self, count: int) -> list[SampledToken]:
        """As many tokens as come next.

        Raises:
            AssertionError: something else comes, or more.
        """
        found: list[SampledToken] = []
        while len(found) < count:
            message = await self.message()
            assert isinstance(message, Tokens), message
            found += message.tokens
        assert len(found) == count
        return found

    async def is_quiet(self, seconds: float = 0.05) -> bool:
        """Whether nothing but pings comes for a while."""
        try:
            async with asyncio.timeout(seconds):
                self._waiting.appendleft(await self.receive())
        except TimeoutError:
            return True
        return False

    async def is_lost(self) -> bool:
        """Whether the node ends the link, whatever it says before."""
        with contextlib.suppress(TimeoutError):
            try:
                while True:
                    await self.receive()
            except WireError:
                return True
        return False

    async def close(self) -> None:
        await self.stream.close()


def unbundled(frame: bytes) -> list[tuple[Message, bytes]]:
    """The messages of a frame, which may be a bundle."""
    message, body = decode_frame(frame)
    if not isinstance(message, Bundle):
        return [(message, bytes(body))]
    found: list[tuple[Message, bytes]] = []
    while body:
        size = frame_size(body[:FRAME_PREFIX])
        part, rest = decode_frame(bytes(body[:size]))
        found.append((part, bytes(rest)))
        body = body[size:]
    assert len(found) == message.count
    return found


async def receive(stream: Stream) -> Message:
    """The next message.

    Raises:
        WireError: the stream ended.
    """
    async with asyncio.timeout(10):
        return decode_frame(await stream.receive())[0]


async def is_dropped(stream: Stream) -> bool:
    """Whether the other side ends the stream, whatever it says before."""
    with contextlib.suppress(TimeoutError):
        try:
            while True:
                await receive(stream)
        except WireError:
            return True
    return False


def open_message(network: TinyNetwork, node: TinyNode, gateway: str, **changes: Any) -> Open:
    """An `Open` that `node` accepts as the only hop of a session, unless changed."""
    fields: dict[str, Any] = {
        "session": "5e" * 16,
        "request_hash": "4e" * 32,
        "gateway": gateway,
        "model": network.model.id,
        "layers": node.layers,
        "hop": 0,
        "hops": 1,
        "previous": None,
        "next": None,
        "resume": 4,
        "sampling": Sampling(),
        "prompt": 4,
        "positions": 12,
        "start": 4,
        "max_tokens": 8,
        "stop_tokens": (),
        "top_logprobs": -1,
        "draft": True,
    }
    return Open(**(fields | changes))


def tokens_body(*tokens: int) -> bytes:
    """The body of an `Open`."""
    return b"".join(t.to_bytes(4, "little") for t in tokens)


def with_sampling(request: GenerationRequest, name: str) -> GenerationRequest:
    """The same request with one of `SAMPLINGS`."""
    return msgspec.structs.replace(request, sampling=SAMPLINGS[name])


@asynccontextmanager
async def tiny_network(
    model: StoredModel,
    blocks: int | Sequence[LayerRange] = 3,
    *,
    spares: int = 0,
    make: dict[int, MakeDecoder] | None = None,
    clock: Clock | None = None,
    others: Sequence[tuple[StoredModel, int]] = (),
    **options: Any,
) -> AsyncIterator[TinyNetwork]:
    """A running network of one node per block, and `spares` more nodes for every block.

    `make`: for some nodes, by index, a decoder that is not the honest one. `others`: more models,
    each cut into so many blocks.
    """
    network = TinyNetwork(model, clock, [other for other, _ in others])
    cut = even_blocks(model.layer_count, blocks) if isinstance(blocks, int) else tuple(blocks)
    try:
        await network.transport.bind()
        for index, layers in enumerate(cut * (1 + spares)):
            await network.add(layers, make=(make or {}).get(index, honest), **options)
        for other, count in others:
            for layers in even_blocks(other.layer_count, count) * (1 + spares):
                made = (make or {}).get(len(network.nodes), honest)
                await network.add(layers, model=other, make=made, **options)
        yield network
    finally:
        await network.close()
