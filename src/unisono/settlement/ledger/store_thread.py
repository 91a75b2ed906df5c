"""The outbox's table behind one thread: the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unisono.errors import SettlementError
from unisono.settlement.ledger.intents import IntentStore

Result = TypeVar("Result")


class StoreThread:
    """Runs work on an `IntentStore`, one piece after the other."""

    def __init__(self, store: IntentStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")
        self._closed = False

    async def run(self, work: Callable[[IntentStore], Result]) -> Result:
        """The result of `work(store)`, durable.

        Raises:
            SettlementError: the file cannot be read or written, or is closed.
        """
        if self._closed:
            raise SettlementError("the outbox is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._store)
        except sqlite3.Error as error:
            raise SettlementError(f"the outbox failed: {error}; is its disk full?") from error

    async def close(self) -> None:
        """Finish what is being written and close the file; idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
            self._thread.shutdown()
