"""The gateway as a composer builds it: a network, models, and what it keeps about them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from unisono.clock import Clock, SystemClock
from unisono.gateway.admission import Admission, KeyRing
from unisono.gateway.completion import Engine
from unisono.gateway.errors import ErrorReply, reply_to
from unisono.gateway.generation import Generation
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.receipts import ReceiptStore
from unisono.gateway.requests import Ask
from unisono.gateway.served import ServedModel, ServedModels
from unisono.gateway.settings import GatewaySettings
from unisono.routing.network import Network
from unisono.wire.identity import Identity


class GatewayService:
    """Everything behind the HTTP routes. Closing the network and the store is the composer's."""

    def __init__(
        self,
        *,
        network: Network,
        models: Sequence[ServedModel],
        identity: Identity,
        receipts: ReceiptStore,
        settings: GatewaySettings | None = None,
        clock: Clock | None = None,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        """Raises ConfigurationError if there is no model or two share a name."""
        self.network = network
        self.models = ServedModels(models)
        self.identity = identity
        self.receipts = receipts
        self.settings = settings or GatewaySettings()
        self.clock = clock or SystemClock()
        self.metrics = metrics or GatewayMetrics()
        self.keys = KeyRing(self.settings.api_keys)
        self.admission = Admission(self.settings, self.clock)
        self.closing = asyncio.Event()
        """Set at shutdown: every running answer ends with an error at once."""
        self.started = int(self.clock.now())
        """Unix seconds."""
        self._engine = Engine(
            network=network,
            identity=identity,
            receipts=receipts,
            settings=self.settings,
            clock=self.clock,
            metrics=self.metrics,
        )

    def generation(self, ask: Ask) -> Generation:
        """The answer to `ask`, not started yet."""
        return Generation(ask, self._engine, self.admission)

    def reply_to(self, error: BaseException) -> ErrorReply:
        """The HTTP form of an error, with this gateway's `Retry-After`."""
        return reply_to(error, self.settings.retry_after_seconds)

    def not_ready(self) -> str | None:
        """Why some served model cannot be computed now, or None if all can."""
        nodes = self.network.nodes()
        reasons: list[str] = []
        for model in self.models:
            held = [node.layers for node in nodes if node.alive and node.model == model.id]
            missing = model.missing_layers(held)
            if missing is not None:
                reasons.append(f"no live node holds layers {missing} of '{model.name}'")
        return "; ".join(reasons) or None

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return self.metrics.expose(
            nodes=self.network.nodes(),
            running=self.admission.running,
            queued=self.admission.queued,
            receipts=self.receipts.count,
        )
