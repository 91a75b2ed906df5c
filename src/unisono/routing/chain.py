"""One attempt at one answer: a session opened on every hop of a chain, and watched."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, WireError
from unisono.types import (
    GenerationRequest,
    NodeId,
    SampledToken,
    SessionId,
    is_complete,
    request_hash,
)
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Claimed, Failed, Finish, Open, Opened, Ping, Pong, Refused, Token
from unisono.wire.records import NodeRecord
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

OPEN_SECONDS = 15.0
PING_SECONDS = 1.0
SILENT_SECONDS = 3.0
"""A hop that answers no ping this long is lost."""
CLAIM_SECONDS = 10.0


class HopLost(WireError):
    """The chain cannot go on; `node` is the hop to replace."""

    def __init__(self, message: str, node: NodeId) -> None:
        super().__init__(message)
        self.node = node


class HopRefused(PeerRefused):
    """A hop said no; `node` is the one."""

    def __init__(self, message: str, code: str, node: NodeId) -> None:
        super().__init__(message, code)
        self.node = node


class Chain:
    """Use: `open`, then `next` until the answer ends, then `finish`; `close` at any time."""

    def __init__(
        self,
        transport: Transport,
        gateway: NodeId,
        hops: Sequence[NodeRecord],
        request: GenerationRequest,
        generated: Sequence[int],
        top_logprobs: int,
        clock: Clock,
        observe_hop: Callable[[NodeId, float], None] | None = None,
    ) -> None:
        """`observe_hop` is told (node, seconds) of every ping's round trip."""
        self._observe_hop = observe_hop
        self._pinged: dict[int, float] = {}
        self._transport = transport
        self._gateway = gateway
        self.hops = tuple(hops)
        self._request = request
        self._tokens = (*request.prompt, *generated)
        self._generated = list(generated)
        self._top_logprobs = top_logprobs
        self._clock = clock
        self.session = SessionId(secrets.token_hex(16))
        self._streams: list[Stream | None] = [None] * len(hops)
        self._heard = [0.0] * len(hops)
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: asyncio.Queue[SampledToken | HopLost] = asyncio.Queue()
        self._claims: list[asyncio.Future[HopClaim]] = []
        self._failed: HopLost | None = None

    async def open(self) -> None:
        """Open the session on every hop, the last one first: each then finds its next.

        Raises:
            HopRefused: a hop is full (`code` "capacity") or refuses otherwise.
            HopLost: a hop cannot be reached.
        """
        for index in reversed(range(len(self.hops))):
            node = self.hops[index].node
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    await self._open_hop(index)
            except TimeoutError:
                raise HopLost(f"node {node[:8]} did not open the session", node) from None
            except (PeerGone, PeerCheating) as error:
                raise HopLost(f"node {node[:8]}: {error}", node) from error
        now = self._clock.monotonic()
        self._heard = [now] * len(self.hops)
        loop = asyncio.get_running_loop()
        self._claims = [loop.create_future() for _ in self.hops]
        for index in range(len(self.hops)):
            self._spawn(self._listen(index))
        self._spawn(self._watch())

    async def _open_hop(self, index: int) -> None:
        request, hops = self._request, self.hops
        last = index == len(hops) - 1
        opened = Open(
            session=self.session,
            request_hash=request_hash(request),
            gateway=self._gateway,
            model=request.model,
            layers=hops[index].layers,
            hop=index,
            hops=len(hops),
            next=None if last else hops[index + 1].address,
            first=hops[0].address if last and index else None,
            sampling=request.sampling,
            prompt=len(request.prompt),
            positions=len(request.prompt) + request.max_tokens,
            start=len(self._tokens),
            max_tokens=request.max_tokens,
            stop_tokens=request.stop_tokens,
            top_logprobs=self._top_logprobs if last else -1,
        )
        ends = index == 0 or last
        body = np.array(self._tokens if ends else (), dtype="<u4").tobytes()
        stream = await self._transport.dial(hops[index].address)
        self._streams[index] = stream
        await stream.send(encode_frame(opened, body))
        reply, _ = decode_frame(await stream.receive())
        if isinstance(reply, Refused):
            node = hops[index].node
            raise HopRefused(f"node {node[:8]}: {reply.message}", reply.code, node)
        if isinstance(reply, Failed):
            raise self._lost(index, reply)
        if not isinstance(reply, Opened) or reply.session != self.session:
            raise PeerCheating(f"{type(reply).__name__} in reply to Open")

    async def next(self) -> SampledToken:
        """The next token.

        Raises:
            HopLost: the chain cannot go on.
        """
        if self._failed is not None:
            raise self._failed
        event = await self._events.get()
        if isinstance(event, HopLost):
            raise event
        return event

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return is_complete(self._request, self._generated)

    async def finish(self, tokens: int) -> tuple[HopClaim, ...]:
        """One signed claim per hop for the first `tokens` tokens, checked.

        Raises:
            HopLost: a hop does not sign, or signs something else.
        """
        message = encode_frame(Finish(self.session, tokens))
        for index, stream in enumerate(self._streams):
            node = self.hops[index].node
            assert stream is not None, "finish() belongs after open()"
            try:
                await stream.send(message)
            except WireError as error:
                raise HopLost(f"node {node[:8]}: {error}", node) from error
        claims: list[HopClaim] = []
        for index, future in enumerate(self._claims):
            node = self.hops[index].node
            try:
                async with asyncio.timeout(CLAIM_SECONDS):
                    claims.append(await asyncio.shield(future))
            except TimeoutError:
                raise HopLost(f"node {node[:8]} did not sign its claim", node) from None
            self._check(claims[-1], index, tokens)
        for before, after in pairwise(claims):
            if before.rows_out != after.rows_in:  # the receipt shows it: a replay names the liar
                log.warning("nodes %s and %s disagree", before.node[:8], after.node[:8])
        return tuple(claims)

    def _check(self, claim: HopClaim, index: int, tokens: int) -> None:
        record = self.hops[index]
        last = index == len(self.hops) - 1
        good = (
            claim.signature_is_good()
            and claim.node == record.node
            and claim.layers == record.layers
            and claim.session == self.session
            and claim.hop == index
            and claim.gateway == self._gateway
            and claim.model == self._request.model
            and claim.request == request_hash(self._request)
            and claim.positions == len(self._request.prompt) + tokens - 1
            and claim.tokens == (tokens_root(self._generated[:tokens]) if last else "")
        )
        if not good:
            raise HopLost(f"node {record.node[:8]} signed another claim than was due", record.node)

    async def close(self) -> None:
        """End the session on every hop."""
        for task in self._tasks:
            task.cancel()
        for stream in self._streams:
            if stream is not None:
                await stream.close()
        for future in self._claims:
            future.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def _listen(self, index: int) -> None:
        """Take what one hop sends on its control stream."""
        stream, node = self._streams[index], self.hops[index].node
        assert stream is not None
        try:
            while True:
                message, body = decode_frame(await stream.receive())
                self._heard[index] = self._clock.monotonic()
                if isinstance(message, Token) and index == len(self.hops) - 1:
                    self._take(message)
                elif isinstance(message, Claimed):
                    if not self._claims[index].done():
                        self._claims[index].set_result(message.joined(body))
                elif isinstance(message, Failed):
                    self._fail(self._lost(index, message))
                elif isinstance(message, Refused):
                    self._fail(HopLost(f"node {node[:8]}: {message.message}", node))
                elif isinstance(message, Pong):
                    sent = self._pinged.get(message.nonce)
                    if sent is not None and self._observe_hop is not None:
                        self._observe_hop(node, self._heard[index] - sent)
                else:
                    raise PeerCheating(f"{type(message).__name__} on a control stream")
        except WireError as error:
            self._fail(HopLost(f"node {node[:8]}: {error}", node))

    def _take(self, message: Token) -> None:
        expected = len(self._request.prompt) + len(self._generated)
        if message.session != self.session or message.token.position != expected or self.ended:
            raise PeerCheating(
                f"a token for position {message.token.position}; {expected} was next"
            )
        self._generated.append(message.token.token)
        self._events.put_nowait(message.token)

    async def _watch(self) -> None:
        """Ping every hop; one that stays silent is lost."""
        nonce = 0
        while True:
            await self._clock.sleep(PING_SECONDS)
            nonce += 1
            self._pinged = {nonce: self._clock.monotonic()}
            for index, stream in enumerate(self._streams):
                node = self.hops[index].node
                assert stream is not None
                silence = self._clock.monotonic() - self._heard[index]
                if silence > SILENT_SECONDS:
                    self._fail(HopLost(f"node {node[:8]} was silent for {silence:.1f} s", node))
                    return
                try:
                    await stream.send(encode_frame(Ping(nonce)))
                except WireError as error:
                    self._fail(HopLost(f"node {node[:8]}: {error}", node))
                    return

    def _lost(self, index: int, failed: Failed) -> HopLost:
        """The hop to replace: the one that is named, if the chain has it, else the speaker."""
        nodes = [hop.node for hop in self.hops]
        named = failed.peer
        at_fault = named if named is not None and named in nodes else nodes[index]
        return HopLost(f"node {nodes[index][:8]} reports: {failed.message}", at_fault)

    def _fail(self, lost: HopLost) -> None:
        """Remember the first failure: later ones follow from it."""
        if self._failed is not None:
            return
        self._failed = lost
        self._events.put_nowait(lost)
        for future in self._claims:
            if not future.done():
                future.set_exception(lost)
                future.exception()  # retrieved here: nobody may be waiting
