"""A node: transport, weights, engine, worker, and its place in a network."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from unisono.clock import Clock, SystemClock
from unisono.compose.node_settings import NodeSettings as NodeSettings
from unisono.errors import ConfigurationError, PeerCheating, PeerGone, PeerRefused, WireError
from unisono.execution.engine import Engine
from unisono.execution.worker import Worker
from unisono.models.decoder import Decoder, make_decoder
from unisono.models.devices import choose_device
from unisono.models.loading import load_block
from unisono.models.store import ModelStore, StoredModel
from unisono.native.self_test import self_test
from unisono.types import LayerRange, ModelId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.records import LEASE_SECONDS, Announce, Announced, NodeRecord
from unisono.wire.transports import make_transport
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 3.0
JOIN_SECONDS = 600.0
"""A node that cannot reach its network this long gives up."""
REPLY_SECONDS = 10.0
_MAX_BACK_OFF = 10.0


class Node:
    """Use: `start`, then `run` until cancelled, then `close`."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        transport: Transport | None = None,
        identity: Identity | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        if identity is None:
            identity = (
                Identity.load_or_create(settings.key) if settings.key else (Identity.generate())
            )
        self.identity = identity
        self._transport = transport or make_transport(settings.transport, identity, settings.bind)
        self._clock = clock or SystemClock()
        self._directory = PeerAddress.parse(settings.join) if settings.join else None
        self._engine: Engine | None = None
        self._serving: asyncio.Task[None] | None = None
        self.worker: Worker | None = None
        self.layers: LayerRange | None = settings.layers

    async def start(self, report: Callable[[str], None] | None = None) -> PeerAddress:
        """Bind, find a block, load it, serve it; returns the node's address.

        Raises:
            UnisonoError: the model, the block, the address or the machine is unusable.
        """
        say = report or log.info
        settings = self._settings
        device = await asyncio.to_thread(choose_device, settings.device)
        await asyncio.to_thread(self_test, device)
        address = await self._transport.bind()
        store = ModelStore(Path(self._settings.cache) if self._settings.cache else None)
        say("opening the model")
        model = await asyncio.to_thread(store.ensure, self._settings.model)
        if self.layers is None:
            self.layers = await self._ask_for_layers(address, model.id, model.layer_count)
        say(f"loading layers {self.layers} of {model.name}")
        self._engine = Engine(await asyncio.to_thread(self._load, model, self.layers, device))
        self.worker = Worker(
            self._engine,
            model.id,
            self.identity,
            self._transport,
            address,
            clock=self._clock,
        )
        self._serving = asyncio.create_task(self._transport.serve(self.worker.handle))
        return address

    def _load(self, model: StoredModel, layers: LayerRange, device: str) -> Decoder:
        settings = self._settings
        return make_decoder(
            model.manifest.config,
            load_block(model, layers),
            device,
            threads=settings.threads,
            kv_bytes=settings.kv_bytes,
        )

    async def run(self) -> None:
        """Keep announcing the node to its network (or just serve, without one).

        Raises:
            PeerGone: the network could not be reached for `JOIN_SECONDS`.
            PeerRefused: it refuses the node.
        """
        assert self.worker is not None
        assert self._serving is not None
        if self._directory is None:
            await self._serving
            return
        back_off, reached = 0.5, self._clock.monotonic()
        while True:
            try:
                stream = await self._transport.dial(self._directory)
                try:
                    while True:
                        await stream.send(encode_frame(Announce(self.worker.record())))
                        await self._announced(stream)
                        back_off, reached = 0.5, self._clock.monotonic()
                        await self._clock.sleep(ANNOUNCE_SECONDS)
                finally:
                    await stream.close()
            except (PeerGone, PeerCheating) as error:
                silent = self._clock.monotonic() - reached
                if silent > JOIN_SECONDS:
                    raise PeerGone(
                        f"the network at {self._directory} did not answer for {silent:.0f} s: "
                        f"{error}"
                    ) from error
                log.info("cannot announce: %s; trying again in %.1f s", error, back_off)
                await self._clock.sleep(back_off)
                back_off = min(_MAX_BACK_OFF, 2 * back_off)

    async def close(self) -> None:
        """Stop serving and release everything; idempotent."""
        if self._serving is not None:
            self._serving.cancel()
        await self._transport.close()
        if self._engine is not None:
            await self._engine.close()

    async def _announced(self, stream: Stream) -> Announced:
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                message, _ = decode_frame(await stream.receive())
        except TimeoutError:
            raise PeerGone(f"the network was silent for {REPLY_SECONDS:.0f} s") from None
        if isinstance(message, Refused):
            raise PeerRefused(f"the network refuses this node: {message.message}", message.code)
        if not isinstance(message, Announced):
            raise PeerCheating(f"{type(message).__name__} in reply to an announcement")
        return message

    async def _ask_for_layers(self, address: PeerAddress, model: ModelId, count: int) -> LayerRange:
        """The block that the network gives this node; the whole model without a network."""
        if self._directory is None:
            return LayerRange(0, count)
        now = int(self._clock.now() * 1000)
        record = NodeRecord(
            node=self.identity.node_id,
            address=address,
            model=ModelId(""),
            layers=LayerRange(0, 0),
            free_positions=0,
            sessions=0,
            sequence=now,
            expires=now + int(LEASE_SECONDS * 1000),
        ).signed_by(self.identity)
        try:
            stream = await self._transport.dial(self._directory)
            await stream.send(encode_frame(Announce(record)))
            given = await self._announced(stream)
            await stream.close()
        except WireError as error:
            raise ConfigurationError(
                f"cannot join the network at {self._directory}: {error}. Is its gateway running?"
            ) from error
        if given.layers is None or given.model != model:
            raise ConfigurationError(
                f"the network serves model {(given.model or 'none')[:12]}…, this node has "
                f"{model[:12]}…: start it with --model of the network's model"
            )
        return given.layers
