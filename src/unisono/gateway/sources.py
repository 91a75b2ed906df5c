"""Who may answer a request: the network, another model of it, a replica, an endpoint outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from unisono.errors import CoverageMissing
from unisono.gateway.completion import Completion, Engine, Event
from unisono.gateway.errors import FallbackFailed
from unisono.gateway.remote import RemoteEndpoint
from unisono.gateway.remote_completion import RemoteCompletion
from unisono.gateway.requests import Ask
from unisono.gateway.served import ServedModel
from unisono.gateway.watch import Watch


@dataclass(frozen=True, slots=True)
class Origin:
    """What an answer says of where it comes from."""

    model: str
    fingerprint: str | None
    """The model id, if the same request and seed give the same tokens."""
    verified: bool
    """Whether its receipts can be checked."""


class Source(Protocol):
    """One way to have a request answered."""

    @property
    def kind(self) -> str:
        """`network`, `model`, `replica` or `remote`: bounded, for counting."""
        ...

    @property
    def label(self) -> str:
        """The value of `x-unisono-fallback` if this is a fallback."""
        ...

    async def prepare(self, ask: Ask) -> Ask:
        """The request as it is put to this source.

        Raises:
            RequestError: it cannot be put to this source.
            NetworkError: this source cannot answer now, as far as is known without trying.
        """
        ...

    def origin(self, ask: Ask) -> Origin:
        """What answers to the prepared `ask` say of themselves."""
        ...

    def run(
        self, ask: Ask, index: int, receipt_id: str, emit: Callable[[Event], None]
    ) -> Coroutine[Any, Any, None]:
        """Compute choice `index` of the prepared `ask`; see `Completion.run`."""
        ...


class NetworkSource:
    """Nodes that hold the model which was asked for: the gateway's network, or a replica that
    stands by, which is just another network."""

    def __init__(self, engine: Engine, *, replica: bool = False) -> None:
        self._engine = engine
        self.kind = "replica" if replica else "network"
        self.label = self.kind

    async def prepare(self, ask: Ask) -> Ask:
        """See `Source`."""
        return ask

    def origin(self, ask: Ask) -> Origin:
        """See `Source`."""
        return Origin(ask.model.name, ask.model.id, verified=True)

    def run(
        self, ask: Ask, index: int, receipt_id: str, emit: Callable[[Event], None]
    ) -> Coroutine[Any, Any, None]:
        """See `Source`."""
        return Completion(
            self._engine,
            ask.model,
            ask.requests[index],
            index=index,
            receipt_id=receipt_id,
            top_logprobs=ask.top_logprobs,
            quorum=ask.quorum,
            demand=ask.demand,
            emit=emit,
        ).run()


class ModelSource(NetworkSource):
    """Another model that the same network serves."""

    def __init__(self, engine: Engine, model: ServedModel, watch: Watch) -> None:
        super().__init__(engine)
        self.kind = "model"
        self.label = f"model:{model.name}"
        self._model = model
        self._watch = watch

    async def prepare(self, ask: Ask) -> Ask:
        """See `Source`. The prompt is written again with the other model's template and tokens."""
        name = self._model.name
        if ask.ensemble:
            raise FallbackFailed(f"the request asks for an ensemble, and '{name}' is one model")
        if self._model is ask.model:
            raise FallbackFailed(f"'{name}' is the model that was asked for")
        if ask.speaks_tokens:
            raise FallbackFailed(f"the request holds token ids, which '{name}' reads otherwise")
        trouble = self._watch.condition(self._model).trouble
        if trouble is not None:
            raise CoverageMissing(f"'{name}' is in trouble too ({trouble.value})")
        return await asyncio.to_thread(ask.again, self._model)


class RemoteSource:
    """An endpoint outside the network."""

    kind = "remote"

    def __init__(self, engine: Engine, endpoint: RemoteEndpoint) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self.label = f"remote:{endpoint.host}"

    async def prepare(self, ask: Ask) -> Ask:
        """See `Source`."""
        endpoint = self._endpoint
        if ask.speaks_tokens:
            raise FallbackFailed(
                f"the request holds token ids, which {endpoint.host} may read otherwise"
            )
        if ask.quorum > 1:
            raise FallbackFailed(
                f"the request asks for a quorum, and {endpoint.host} is one voice without receipts"
            )
        if ask.ensemble:
            raise FallbackFailed(
                f"the request asks for an ensemble of models, which {endpoint.host} is not"
            )
        if ask.top_logprobs >= 0:
            raise FallbackFailed(
                f"the request asks for log probabilities, which are not passed on from "
                f"{endpoint.host}"
            )
        if endpoint.resting:
            raise FallbackFailed(
                f"{endpoint.host} failed lately and is asked again in {endpoint.resting:.1f} s"
            )
        return ask

    def origin(self, ask: Ask) -> Origin:
        """See `Source`."""
        del ask
        return Origin(self._endpoint.model, None, verified=False)

    def run(
        self, ask: Ask, index: int, receipt_id: str, emit: Callable[[Event], None]
    ) -> Coroutine[Any, Any, None]:
        """See `Source`."""
        return RemoteCompletion(
            self._engine, self._endpoint, ask, index=index, receipt_id=receipt_id, emit=emit
        ).run()

    async def close(self) -> None:
        """Close the endpoint's connections; idempotent."""
        await self._endpoint.close()
