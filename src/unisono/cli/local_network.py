"""A gateway in this process and node processes beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unisono.errors import ConfigurationError, UnisonoError
from unisono.garbage import collection_paused

if TYPE_CHECKING:
    from unisono.compose.chain_settings import ChainSettings
    from unisono.compose.gateway import Front
    from unisono.compose.local import LocalNode
    from unisono.compose.local_chain import LocalChain
    from unisono.compose.node_settings import NodeSettings
    from unisono.models.store import StoredModel
    from unisono.types import PeerAddress
    from unisono.wire.identity import Identity
    from unisono.wire.transports.base import Transport

COVERAGE_SECONDS = 60.0
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0
"""Seconds before a dead node is started again: doubled each time, up to the longest."""
STEADY_SECONDS = 60.0
"""A node that lived this long starts over with the first delay."""
_LOOK_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How to run a local network."""

    model: StoredModel
    others: tuple[StoredModel, ...] = ()
    """More models that the network serves, each on nodes of its own."""
    nodes: int = 3
    copies: int = 1
    """How many times so many nodes share the model."""
    spare: int = 0
    join: str | None = None
    """Addresses of a network that this one becomes a part of; None: it is one by itself."""
    transport: str = "tcp"
    host: str = "127.0.0.1"
    port: int = 0
    bind: str = "127.0.0.1:0"
    """Where the gateway is joined, as HOST:PORT; its nodes listen on the same host."""
    api_keys: tuple[str, ...] = ()
    state: Path | None = None
    """Where keys and receipts are kept; None: they live as long as the network."""
    threads: int | None = None
    """CPU threads of each node; None: the nodes share the cores evenly."""
    draft: bool = True
    """Whether nodes may guess tokens ahead."""
    restart: bool = False
    """Whether nodes that die are started again."""
    audit_rate: int = 5_000
    """Claims per million that committees compute again."""
    epoch_seconds: int = 60
    service_window: int = 86_400
    """Seconds over which service levels are promised."""
    paid: bool = False
    """Whether nodes are paid, over a chain of this machine's own."""
    price_in: int = 20_000
    """Millionths of the test coin per million prompt tokens."""
    price_out: int = 80_000
    log_level: int = logging.WARNING


class _Place:
    """One node of the network, in whatever process it runs now."""

    def __init__(self, number: int, settings: NodeSettings, spare: bool) -> None:
        self.number, self.settings, self.spare = number, settings, spare
        self.node: LocalNode | None = None

    def __str__(self) -> str:
        spare = ", spare" if self.spare else ""
        return f"node {self.number} (layers {self.settings.layers}{spare})"


class LocalNetwork:
    """Made by `local_network`."""

    def __init__(
        self,
        settings: LocalSettings,
        say: Say,
        chain: LocalChain | None = None,
        money: ChainSettings | None = None,
    ) -> None:
        self._settings, self._say = settings, say
        self._chain, self._money = chain, money
        self._transport: Transport | None = None
        self._front: Front | None = None
        self._places: list[_Place] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._starting: asyncio.Future[None] | None = None
        self._closing = False

    @property
    def front(self) -> Front:
        """The gateway."""
        assert self._front is not None
        return self._front

    @property
    def url(self) -> str:
        """The gateway's address, without a path."""
        assert self.front.server is not None
        return self.front.server.url

    @property
    def join_address(self) -> PeerAddress:
        """What other nodes join with."""
        assert self.front.address is not None
        return self.front.address

    @property
    def wallet_command(self) -> str | None:
        """How to look at the gateway's money; None: there is none, or it lives as long as this."""
        state, chain = self._settings.state, self._chain
        if chain is None or state is None:
            return None
        return (
            f"unisono wallet show --chain-rpc {chain.url} --deployment {chain.deployment_file} "
            f"--key {_gateway_key(state, chain)}"
        )

    def processes(self) -> list[tuple[str, int]]:
        """Each node's description and process id."""
        return [(str(place), place.node.pid) for place in self._places if place.node is not None]

    async def start(self) -> None:
        """Bind, start the nodes, load the gateway and its tokenizer meanwhile, and wait for all
        layers."""
        with collection_paused(keep=True):
            await self._start()

    async def _start(self) -> None:
        from unisono.compose.node_settings import NodeSettings
        from unisono.models.devices import available_threads
        from unisono.routing.placement import even_blocks
        from unisono.wire.identity import Identity
        from unisono.wire.transports import make_transport

        settings = self._settings
        owned = even_blocks(settings.model.layer_count, settings.nodes)
        identity = Identity.kept_at(_gateway_key(settings.state, self._chain))
        self._transport = make_transport(settings.transport, identity, settings.bind)
        address = await self._transport.bind()
        count = settings.nodes * (settings.copies + len(settings.others))
        threads = settings.threads or max(1, available_threads() // count)
        blocks = [(settings.model, layers) for layers in owned * settings.copies]
        for other in settings.others:
            blocks += [(other, each) for each in even_blocks(other.layer_count, settings.nodes)]
        blocks += [(settings.model, owned[i % len(owned)]) for i in range(settings.spare)]
        for number, (model, layers) in enumerate(blocks):
            key = settings.state / "keys" / f"node-{number}.key" if settings.state else None
            self._places.append(
                _Place(
                    number,
                    NodeSettings(
                        model=model.id,
                        join=str(address),
                        layers=layers,
                        transport=settings.transport,
                        bind=f"{settings.bind.rpartition(':')[0]}:0",
                        key=str(key) if key else None,
                        threads=threads,
                        epoch_seconds=settings.epoch_seconds,
                        service_window=settings.service_window,
                        **self._selling(number),
                    ),
                    spare=number >= count,
                )
            )
        owners = [place for place in self._places if not place.spare]
        # Starting a process waits for the fork server's imports: not in this loop's thread.
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_all, owners))
        # The gateway's libraries take as long to load as a node's weights: only now.
        self._front = _front(settings, self._money, self._transport, identity)
        await self._front.start()
        await asyncio.shield(self._starting)
        await self._ready(owners)
        await self.front.wait_for_coverage(COVERAGE_SECONDS)
        if len(owners) > len(owned):
            await self._known(owners)
        spare = [place for place in self._places if place.spare]
        await asyncio.to_thread(self._start_all, spare)
        await self._ready(spare)
        if settings.restart:
            self._tasks = [asyncio.create_task(self._keep(place)) for place in self._places]

    def _selling(self, number: int) -> dict[str, Any]:
        """A node's part in the money."""
        from unisono.compose.chain_settings import ChainSettings, SellerSettings

        if self._chain is None:
            return {}
        settings, chain = self._settings, self._chain
        state = settings.state / "money" / f"node-{number}" if settings.state else None
        folder = None if state is None else str(state)
        return {
            "chain": ChainSettings(chain.url, str(chain.deployment_file), folder),
            "seller": SellerSettings(settings.price_in, settings.price_out),
        }

    async def close(self) -> None:
        """Stop everything; idempotent."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        nodes = [place.node for place in self._places if place.node is not None]
        self._places = []
        for node in nodes:
            if node.address is None:
                node.kill()  # it is still loading, and would finish that first
        await asyncio.gather(*(node.stop() for node in nodes))
        if self._front is not None:
            await self._front.close()
        elif self._transport is not None:
            await self._transport.close()

    def _start_all(self, places: list[_Place]) -> None:
        from unisono.compose.local import start_node

        for place in places:
            if self._closing:
                return
            try:
                place.node = start_node(place.settings, log_level=self._settings.log_level)
            except (EOFError, OSError) as error:
                raise ConfigurationError(
                    "no node process can be started: the process that they are forked from ended "
                    f"({error or type(error).__name__}); is there enough memory?"
                ) from error

    async def _ready(self, places: list[_Place]) -> None:
        waiting = [asyncio.create_task(place.node.ready()) for place in places if place.node]
        try:
            for task in waiting:
                await task
        finally:
            for task in waiting:
                task.cancel()

    async def _known(self, places: list[_Place]) -> None:
        """Wait until the gateway has heard of all these nodes.

        Raises:
            ConfigurationError: not in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + COVERAGE_SECONDS
        while True:
            heard = {record.node for record in self.front.members.records()}
            missing = [
                p for p in places if p.node and p.node.address and p.node.address.node not in heard
            ]
            if not missing:
                return
            if loop.time() > deadline:
                raise ConfigurationError(
                    f"after {COVERAGE_SECONDS:.0f} s the gateway has not heard of {missing[0]}"
                )
            await asyncio.sleep(_LOOK_SECONDS / 4)

    async def _keep(self, place: _Place) -> None:
        """Start a node again whenever its process ends."""
        loop = asyncio.get_running_loop()
        delay, since = FIRST_DELAY, loop.time()
        while True:
            node = place.node
            if node is not None:
                await asyncio.to_thread(node.process.join)
                if loop.time() - since > STEADY_SECONDS:
                    delay = FIRST_DELAY
                self._say(
                    f"{place}, process {node.pid}, ended {_ending(node.process.exitcode)}; "
                    f"starting it again in {delay:.0f} s"
                )
                await node.stop()
                place.node = None
            await asyncio.sleep(delay)
            delay, since = min(LONGEST_DELAY, 2 * delay), loop.time()
            try:
                # a cancelled start must not leave a process that nobody knows
                self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_all, [place]))
                await asyncio.shield(self._starting)
                await self._ready([place])
            except UnisonoError as error:
                self._say(f"{place} does not start: {error}")
                continue
            assert place.node is not None
            self._say(f"{place} is back as process {place.node.pid}")


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by signal {-code}"
    return f"with exit code {code}"


def usual_transport(join: Sequence[str] | None, bind: str) -> str:
    """How members reach each other unless it is said: as those of the network that is joined do;
    over TCP where only this machine can dial them, which takes a millisecond less per hop and
    token (docs/performance.md); else over iroh, which leads out of private networks.

    Raises:
        ConfigurationError: an address is malformed.
    """
    from unisono.compose.node_settings import join_addresses
    from unisono.wire.transports.addresses import is_loopback

    for address in join_addresses(join):
        return address.transport
    return "tcp" if is_loopback(bind) else "iroh"


@asynccontextmanager
async def local_network(settings: LocalSettings, say: Say) -> AsyncGenerator[LocalNetwork]:
    """A running network that covers the model; everything ends with the block.

    Raises:
        UnisonoError: a part cannot start.
    """
    import anyio

    chain, money = None, None
    if settings.paid:
        chain, money = await _money(settings)
    network = LocalNetwork(settings, say, chain, money)
    try:
        await network.start()
        yield network
    finally:
        with anyio.CancelScope(shield=True):
            await network.close()
            if chain is not None:
                await chain.close()


def _front(
    settings: LocalSettings,
    money: ChainSettings | None,
    transport: Transport,
    identity: Identity,
) -> Front:
    from unisono.compose.gateway import Front, FrontSettings

    state = settings.state
    return Front(
        FrontSettings(
            model=settings.model.id,
            also=tuple(other.id for other in settings.others),
            join=settings.join,
            host=settings.host,
            port=settings.port,
            receipts=str(state / "receipts.sqlite") if state else None,
            api_keys=settings.api_keys,
            audit_rate=settings.audit_rate,
            draft=settings.draft,
            epoch_seconds=settings.epoch_seconds,
            service_window=settings.service_window,
            chain=money,
        ),
        transport=transport,
        identity=identity,
    )


def _gateway_key(state: Path | None, chain: LocalChain | None) -> str | None:
    """The gateway's key file: its money is its key's, so that with a chain there is one."""
    if state is not None:
        return str(state / "keys" / "gateway.key")
    return None if chain is None else str(chain.folder / "gateway.key")


async def _money(settings: LocalSettings) -> tuple[LocalChain, ChainSettings]:
    """A chain of this machine's own with the contracts, and coins for the gateway.

    Raises:
        UnisonoError: it does not start, or does not do what it should.
    """
    import anyio

    from unisono.compose.chain_settings import ChainSettings
    from unisono.compose.local_chain import LocalChain
    from unisono.compose.wallet import settlement_key
    from unisono.wire.identity import Identity

    state = settings.state
    chain = LocalChain(state / "chain" if state else None)
    try:
        await chain.start()
        folder = str(state / "money" / "gateway") if state else None
        money = ChainSettings(chain.url, str(chain.deployment_file), folder)
        identity = Identity.load_or_create(str(_gateway_key(state, chain)))
        key = settlement_key(money, identity)
        await chain.deploy(key)
        await chain.endow(key, key.address)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await chain.close()
        raise
    return chain, money


@contextmanager
def running(settings: LocalSettings, say: Say) -> Generator[LocalNetwork]:
    """A local network on a thread of its own, for a caller that reads, prints and waits.

    Ctrl-C reaches the caller's thread, leaves the block, and so ends the network.

    Raises:
        ConfigurationError: more nodes than layers.
        UnisonoError: a part cannot start.
    """
    from anyio.from_thread import start_blocking_portal

    for model in (settings.model, *settings.others):
        layers = model.layer_count
        if settings.nodes > layers:
            raise ConfigurationError(
                f"'{model.name}' has {layers} layers, too few for {settings.nodes} nodes: "
                f"choose --nodes between 1 and {layers}"
            )
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(local_network(settings, say)) as network,
    ):
        yield network
