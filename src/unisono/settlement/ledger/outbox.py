"""The settlement worker: brings what an account means to do onto a chain, exactly once.

It may be killed at any moment, the chain may be away, forget transactions or reorganise: the worker
reads from its store what it may have done, and asks the chain what became of it. All transactions
of one intent share a nonce, so the chain itself lets at most one of them happen.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from unisono.clock import Clock, SystemClock
from unisono.config import state_directory
from unisono.errors import (
    ConfigurationError,
    InsufficientFunds,
    LedgerUnreachable,
    SettlementError,
    TransactionRefused,
)
from unisono.settlement.ledger.delivery import LONGEST_RETRY, Delivery, OutboxSettings, what
from unisono.settlement.ledger.intents import (
    OPEN,
    Entry,
    Intent,
    IntentId,
    IntentStore,
    State,
)
from unisono.settlement.ledger.ledger import ChainReceipt, Ledger
from unisono.settlement.ledger.store_thread import StoreThread
from unisono.settlement.signature import SettlementKey

_log = logging.getLogger(__name__)


class Outbox:
    """The outbox of one key on one chain. Made by `Outbox.open`; `run` must run for progress."""

    def __init__(
        self,
        store: StoreThread,
        delivery: Delivery,
        name_of: tuple[int, SettlementKey],
        settings: OutboxSettings,
        clock: Clock,
        lock: FileLock,
    ) -> None:
        self._store = store
        self._delivery = delivery
        self._chain_id, key = name_of
        self.account = key.address
        """Whose transactions these are."""
        self._settings = settings
        self._clock = clock
        self._lock = lock
        self._submitted = asyncio.Event()
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(
        cls,
        path: Path | str | None,
        ledger: Ledger,
        key: SettlementKey,
        *,
        settings: OutboxSettings | None = None,
        clock: Clock | None = None,
        locks: Path | None = None,
    ) -> Outbox:
        """Open or begin the outbox of a key in `path`; None keeps it in memory.

        Args:
            locks: the folder that says which keys are in use on this machine.

        Raises:
            ConfigurationError: another worker of this machine has the key, the file belongs to
                another key or chain, or it cannot be used.
            LedgerUnreachable: the chain does not answer.
        """
        settings, clock = settings or OutboxSettings(), clock or SystemClock()
        chain_id = await ledger.chain_id()
        genesis = await ledger.block(0)
        if genesis is None:
            raise LedgerUnreachable("the chain has no first block: is it still starting?")
        lock = _locked(locks or state_directory() / "settlement" / "locks", chain_id, key)
        try:
            store = IntentStore(path)
            differing = store.bind(
                {"chain": str(chain_id), "account": key.address, "first block": genesis.hash}
            )
            if differing:
                store.close()
                name, (before, now) = next(iter(differing.items()))
                raise ConfigurationError(
                    f"the outbox {path} is of {name} {before}, not {now}: give the file that "
                    "belongs to this key and chain, or move it away if that chain is no more"
                )
        except BaseException:
            lock.release()
            raise
        thread = StoreThread(store)
        delivery = Delivery(thread, ledger, key, chain_id, settings, clock)
        return cls(thread, delivery, (chain_id, key), settings, clock, lock)

    async def submit(self, intent: Intent) -> IntentId:
        """Queue an intent; when this returns, it survives the end of the process.

        An intent that is known already, open or over, is the same intent and not done twice. One
        that was refused or cancelled is tried again.

        Raises:
            SettlementError: the store cannot be written, or the outbox is closed.
        """
        name = intent.id(self._chain_id, self.account)
        await self._store.run(lambda s: s.put(name, intent, self._now()))
        self._delivery.problems.pop(name, None)
        self._submitted.set()
        return name

    async def final(self, name: IntentId, timeout: float | None = None) -> ChainReceipt:
        """The receipt of an intent, once it can no longer be undone.

        Args:
            name: what `submit` returned.
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            TransactionRefused: the contract reverted or would, or it was cancelled.
            InsufficientFunds: the account cannot pay for it. The intent stays queued, and is sent
                when the account has the funds; `cancel` takes it back.
            SettlementError: unknown, not final in time (says how far it is), or closed.
        """
        until = None if timeout is None else self._clock.monotonic() + timeout
        while True:
            turn = self._turn
            entry = await self.entry(name)
            if entry.state is State.final and entry.receipt is not None:
                return entry.receipt
            if entry.state not in OPEN:
                raise TransactionRefused(f"{what(entry)}: {entry.problem or entry.state.value}")
            problem = self._delivery.problems.get(name)
            if isinstance(problem, InsufficientFunds):
                raise problem
            if until is not None and self._clock.monotonic() >= until:
                why = f" ({entry.problem})" if entry.problem else ""
                raise SettlementError(
                    f"{what(entry)} is only {entry.state.value} after {timeout:g} s{why}; it goes "
                    "on: wait for it again"
                )
            await self._until(turn, until)

    async def perform(self, intent: Intent, timeout: float | None = None) -> ChainReceipt:
        """`submit`, then `final`."""
        return await self.final(await self.submit(intent), timeout)

    async def entry(self, name: IntentId) -> Entry:
        """How far an intent is.

        Raises:
            SettlementError: unknown, or the outbox is closed.
        """
        entry = await self._store.run(lambda s: s.get(name))
        if entry is None:
            raise SettlementError(f"the outbox knows no intent {name[:16]}…: submit it first")
        return entry

    async def open_entries(self) -> tuple[Entry, ...]:
        """All intents that are not over."""
        return await self._store.run(lambda s: s.open_entries())

    async def cancel(self, name: IntentId) -> bool:
        """Take an intent back; False if it was signed already and may happen."""
        done = await self._store.run(lambda s: s.cancel(name, self._now()))
        self._end_turn()
        return done

    async def run(self) -> None:
        """Work until cancelled. While the chain is away it is asked ever more rarely, at least
        once a minute.

        Raises:
            SettlementError: the store cannot be used.
        """
        oldest = self._now() - self._settings.keep_seconds
        await self._store.run(lambda s: s.forget(oldest))
        failures = 0
        while True:
            self._submitted.clear()
            try:
                active = await self.step()
                failures = 0
            except LedgerUnreachable as error:
                failures += 1
                _log.warning("the chain cannot be reached (%d): %s", failures, error)
                wait = self._settings.poll_seconds * 2.0 ** min(failures, 16)
                await self._clock.sleep(min(wait, LONGEST_RETRY))
                continue
            if active:
                await self._until_submitted(self._settings.poll_seconds)
            else:
                await self._submitted.wait()

    async def step(self) -> bool:
        """One round of work. True if anything is open.

        Raises:
            LedgerUnreachable: the chain went away; the next round goes on from what is stored.
            SettlementError: the store cannot be used.
        """
        try:
            return await self._delivery.round()
        finally:
            self._end_turn()

    async def close(self) -> None:
        """Close the file and give up the key's lock; idempotent. Cancel `run` before."""
        await self._store.close()
        self._lock.release()
        self._end_turn()

    def _now(self) -> int:
        return int(self._clock.now())

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, asyncio.get_running_loop().create_future()
        if not turn.done():
            turn.set_result(None)

    async def _until(self, turn: asyncio.Future[None], until: float | None) -> None:
        """The end of a round, or a moment."""
        if until is None:
            await asyncio.shield(turn)
            return
        sleep = asyncio.ensure_future(self._clock.sleep(until - self._clock.monotonic()))
        try:
            await asyncio.wait({turn, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()

    async def _until_submitted(self, seconds: float) -> None:
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        submitted = asyncio.ensure_future(self._submitted.wait())
        try:
            await asyncio.wait({sleep, submitted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            submitted.cancel()


def _locked(folder: Path, chain_id: int, key: SettlementKey) -> FileLock:
    path = folder / f"{chain_id}-{key.address}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(path, timeout=0, mode=0o600, thread_local=False)
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(
            f"another process works for {key.address} on chain {chain_id}: give this one an "
            "account of its own (--account), or stop the other"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot lock {path}: {error.strerror}") from error
    return lock


async def stop(worker: asyncio.Task[None]) -> None:
    """End the task of `Outbox.run`."""
    worker.cancel()
    with suppress(asyncio.CancelledError, SettlementError):
        await worker
