"""A gateway: transport, directory, swarm and HTTP server. It never loads torch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from unisono.clock import SystemClock
from unisono.errors import ConfigurationError
from unisono.gateway import (
    GatewayMetrics,
    GatewayServer,
    GatewayService,
    GatewaySettings,
    ReceiptStore,
    ServedModel,
    create_app,
    serve,
)
from unisono.models.store import ModelStore, StoredModel
from unisono.models.tokenizer import Tokenizer
from unisono.routing.directory import Directory
from unisono.routing.placement import even_blocks
from unisono.routing.swarm import Swarm
from unisono.types import PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.transports import make_transport


class FrontSettings(msgspec.Struct, frozen=True):
    """How to run a gateway."""

    model: str
    blocks: int = 1
    """Into how many blocks nodes that bring none of their own cut the model."""
    host: str = "127.0.0.1"
    port: int = 8000
    transport: str = "iroh"
    bind: str = "127.0.0.1:0"
    key: str | None = None
    cache: str | None = None
    receipts: str | None = None
    """SQLite file; None: receipts live as long as the gateway."""
    receipts_kept: int = 10_000
    api_keys: tuple[str, ...] = ()
    max_running_answers: int = 64


class Front:
    """A running gateway. Use: `start`, then `wait` or `close`."""

    def __init__(self, settings: FrontSettings) -> None:
        self._settings = settings
        self.identity = (
            Identity.load_or_create(settings.key) if settings.key else Identity.generate()
        )
        self._clock = SystemClock()
        self._transport = make_transport(settings.transport, self.identity, settings.bind)
        self.address: PeerAddress | None = None
        self.directory: Directory | None = None
        self.swarm: Swarm | None = None
        self.server: GatewayServer | None = None
        self.model: StoredModel | None = None
        self.receipts: ReceiptStore | None = None
        self._serving: asyncio.Task[None] | None = None

    async def bind(self) -> PeerAddress:
        """Open the address that nodes announce to, before anything else is loaded."""
        settings = self._settings
        cache = Path(settings.cache) if settings.cache else None
        self.model = await asyncio.to_thread(ModelStore(cache).ensure, settings.model)
        blocks = even_blocks(self.model.layer_count, settings.blocks)
        self.directory = Directory(self._clock, {self.model.id: blocks})
        self.address = await self._transport.bind()
        self._serving = asyncio.create_task(self._transport.serve(self.directory.handle))
        return self.address

    async def start(self) -> GatewayServer:
        """Load the tokenizer and open the HTTP endpoint.

        Raises:
            UnisonoError: the model cannot be used or the port is taken.
        """
        if self.model is None or self.directory is None:
            await self.bind()
        assert self.model is not None
        assert self.directory is not None
        settings, model = self._settings, self.model
        tokenizer = await asyncio.to_thread(Tokenizer.from_files, model.tokenizer_files())
        metrics = GatewayMetrics()
        self.swarm = Swarm(
            self._transport,
            self.identity.node_id,
            self.directory,
            {model.id: model.layer_count},
            self._clock,
            metrics.observe_hop,
        )
        self.receipts = ReceiptStore(
            Path(settings.receipts) if settings.receipts else None,
            max_count=settings.receipts_kept,
        )
        service = GatewayService(
            network=self.swarm,
            models=[
                ServedModel(
                    name=model.name,
                    id=model.id,
                    tokenizer=tokenizer,
                    context_length=model.manifest.config.context_length,
                    layer_count=model.layer_count,
                )
            ],
            identity=self.identity,
            receipts=self.receipts,
            settings=GatewaySettings(
                api_keys=settings.api_keys,
                max_running_answers=settings.max_running_answers,
            ),
            clock=self._clock,
            metrics=metrics,
        )
        self.server = await serve(create_app(service), settings.host, settings.port)
        return self.server

    async def wait_for_coverage(self, seconds: float) -> None:
        """Return once every layer has a live holder.

        Raises:
            ConfigurationError: not within `seconds`.
        """
        assert self.directory is not None
        assert self.model is not None
        deadline = self._clock.monotonic() + seconds
        while True:
            held = {
                layer
                for r in self.directory.records()
                if r.model == self.model.id
                for layer in range(r.layers.start, r.layers.stop)
            }
            missing = set(range(self.model.layer_count)) - held
            if not missing:
                return
            if self._clock.monotonic() > deadline:
                raise ConfigurationError(
                    f"after {seconds:.0f} s no node holds layers {sorted(missing)}"
                )
            await self._clock.sleep(0.02)

    async def close(self) -> None:
        """Stop everything; idempotent."""
        if self.server is not None:
            await self.server.close(grace_seconds=1)
        if self.swarm is not None:
            await self.swarm.close()
        if self._serving is not None:
            self._serving.cancel()
        await self._transport.close()
        if self.receipts is not None:
            self.receipts.close()
