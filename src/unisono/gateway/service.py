"""The gateway as a composer builds it: a network, models, and what it keeps about them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from unisono.clock import Clock, SystemClock
from unisono.gateway.admission import Admission, KeyRing
from unisono.gateway.audits import Auditing, ConvictedNode
from unisono.gateway.completion import Engine
from unisono.gateway.dispatch import Dispatch
from unisono.gateway.errors import ErrorReply, NotFound, reply_to
from unisono.gateway.fallback import Fallback, source_of
from unisono.gateway.generation import Generation
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.network_map import NetworkMap, network_map
from unisono.gateway.payments import Statement, StatementSource
from unisono.gateway.receipts import ReceiptStore
from unisono.gateway.requests import Ask
from unisono.gateway.served import ServedModel, ServedModels
from unisono.gateway.settings import GatewaySettings
from unisono.gateway.sla import Levels, ServiceReport
from unisono.gateway.sources import NetworkSource, RemoteSource
from unisono.gateway.watch import Watch
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
        fallbacks: Sequence[Fallback] = (),
        audits: Auditing | None = None,
        payments: StatementSource | None = None,
        levels: Levels | None = None,
    ) -> None:
        """`payments` tells what was paid, if nodes are paid at all; `levels` measures service
        levels. `fallbacks` are asked in their order when the network is in trouble; `audits` is
        told of every answer of the network.

        Raises:
            ConfigurationError: there is no model, two share a name, or a fallback names a model
                that is not served here.
        """
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
        self.watch = Watch(
            network,
            self.clock,
            threshold=self.settings.availability_threshold,
            fresh_seconds=self.settings.health_seconds,
        )
        engine = Engine(
            network=network,
            identity=identity,
            receipts=receipts,
            settings=self.settings,
            clock=self.clock,
            metrics=self.metrics,
            audits=audits,
        )
        self._audits = audits
        self._payments = payments
        self._levels = levels
        self._fallbacks = tuple(
            source_of(each, engine, self.models, self.watch) for each in fallbacks
        )
        self._dispatch = Dispatch(NetworkSource(engine), self._fallbacks, self.watch, self.settings)

    def generation(self, ask: Ask) -> Generation:
        """The answer to `ask`, not started yet."""
        ended = None if self._levels is None else self._levels.answered
        return Generation(ask, self._dispatch, self.admission, self.clock, self.metrics, ended)

    def reply_to(self, error: BaseException) -> ErrorReply:
        """The HTTP form of an error, with this gateway's `Retry-After`."""
        return reply_to(error, self.settings.retry_after_seconds)

    def not_ready(self) -> str | None:
        """Why some served model cannot be computed now, or None if all can."""
        reasons: list[str] = []
        for model in self.models:
            missing = self.watch.condition(model).health.missing
            if missing:
                layers = ", ".join(map(str, missing))
                reasons.append(f"no live node holds layers {layers} of '{model.name}'")
        return "; ".join(reasons) or None

    @property
    def stands_in(self) -> str | None:
        """The first fallback that needs nothing of the network, or None."""
        return next((f.label for f in self._fallbacks if f.kind in ("replica", "remote")), None)

    def map(self) -> NetworkMap:
        """The network as it is seen from here now."""
        return network_map(self.watch, self.models, self.convicted())

    def statement(self) -> Statement:
        """What was paid and promised.

        Raises:
            NotFound: this gateway pays nobody.
        """
        if self._payments is None:
            raise NotFound("this gateway pays nobody: it was started without a chain")
        return self._payments()

    def service_report(self) -> ServiceReport:
        """What was promised and kept.

        Raises:
            NotFound: nobody measures it.
        """
        if self._levels is None:
            raise NotFound("this gateway measures no service levels")
        return self._levels.report()

    def convicted(self) -> tuple[ConvictedNode, ...]:
        """The nodes that are proven to have signed something false."""
        return () if self._audits is None else self._audits.convicted()

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        self.metrics.convicted.set(len(self.convicted()))
        return self.metrics.expose(
            nodes=self.watch.nodes(),
            health={model.name: self.watch.condition(model).health for model in self.models},
            running=self.admission.running,
            queued=self.admission.queued,
            receipts=self.receipts.count,
        )

    async def close(self) -> None:
        """Close the connections of remote fallbacks; idempotent."""
        for source in self._fallbacks:
            if isinstance(source, RemoteSource):
                await source.close()
