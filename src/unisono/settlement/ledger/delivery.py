"""One round of the settlement worker: what the chain says, and what is signed and sent for it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from unisono.clock import Clock
from unisono.errors import SettlementError, TransactionRefused
from unisono.settlement.ledger.fees import GWEI, FeeRule
from unisono.settlement.ledger.intents import Entry, IntentId, State
from unisono.settlement.ledger.ledger import Call, ChainReceipt, Head, Ledger
from unisono.settlement.ledger.shortfall import shortfall
from unisono.settlement.ledger.store_thread import StoreThread
from unisono.settlement.ledger.transaction import signed_attempt
from unisono.settlement.signature import SettlementKey

_log = logging.getLogger(__name__)

WEI_DECIMALS = 18
DAY = 86_400
LONGEST_RETRY = 60.0
"""Seconds between two tries at most, whatever failed."""
_DISPLACED_ROUNDS = 3
"""So often the chain must say that a nonce is taken by another before that is believed."""
_REFUSALS_BEFORE_BUMP = 5
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """How the worker treats a chain."""

    confirmations: int = 0
    """Blocks on top that make a transaction final; 0 for a chain without reorganisations."""
    poll_seconds: float = 1.0
    """Between two looks at the chain while something is open."""
    fees: FeeRule = field(default_factory=FeeRule)
    in_flight: int = 16
    """So many transactions may wait for a block at a time."""
    keep_seconds: int = 90 * DAY
    """What is over is remembered so long, and not done again if it is submitted again."""


@dataclass(slots=True)
class _Patience:
    """What this process knows about an open intent beside the store; lost with it, harmlessly."""

    tried: float = _NEVER
    refusals: int = 0
    displaced: int = 0


class Delivery:
    """Brings the intents of a store onto a chain, a round at a time."""

    def __init__(
        self,
        store: StoreThread,
        ledger: Ledger,
        key: SettlementKey,
        chain_id: int,
        settings: OutboxSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._key = key
        self._chain_id = chain_id
        self._settings = settings
        self._clock = clock
        self._patience: dict[IntentId, _Patience] = {}
        self.problems: dict[IntentId, SettlementError] = {}
        """Why queued intents cannot be paid for."""

    async def round(self) -> bool:
        """Follow what was signed, then sign what is queued. True if anything is open.

        Raises:
            LedgerUnreachable: the chain went away; the next round goes on from what is stored.
            SettlementError: the store failed.
        """
        # The head comes first: whatever is in it or before is seen by the questions that follow.
        head = await self._ledger.head()
        mined_to = await self._ledger.nonce(self._key.address)
        for entry in await self._entries():
            if entry.nonce is not None:
                await self._follow(entry, entry.nonce, head, mined_to)
        while await self._sign_next():
            pass
        left = await self._entries()
        self._patience = {e.id: p for e in left if (p := self._patience.get(e.id))}
        return bool(left)

    # What was signed

    async def _follow(self, entry: Entry, nonce: int, head: Head, mined_to: int) -> None:
        patience = self._patience.setdefault(entry.id, _Patience())
        receipt = await self._receipt(entry)
        if receipt is not None:
            patience.displaced = 0
            await self._is_mined(entry, receipt, head)
            return
        if entry.state is State.mined:
            _log.warning("%s left its block: sending it again", what(entry))
            await self._note(entry, State.signed)
            patience.tried = _NEVER
        if mined_to <= nonce:
            patience.displaced = 0
            await self._push(await self._entry(entry), patience, head, first=nonce == mined_to)
        elif await self._is_displaced(nonce, head):
            patience.displaced += 1
            if patience.displaced >= _DISPLACED_ROUNDS:
                _log.warning("%s lost its nonce %d to another transaction", what(entry), nonce)
                await self._store.run(lambda s: s.requeue(entry, self._now()))

    async def _receipt(self, entry: Entry) -> ChainReceipt | None:
        """Of whichever of its transactions a canonical block has."""
        for attempt in reversed(entry.attempts):
            receipt = await self._ledger.receipt(attempt.hash)
            if receipt is not None:
                block = await self._ledger.block(receipt.block)
                if block is not None and block.hash == receipt.block_hash:
                    return receipt
        return None

    async def _is_mined(self, entry: Entry, receipt: ChainReceipt, head: Head) -> None:
        state, problem = State.mined, ""
        if head.number - receipt.block >= self._settings.confirmations:
            state = State.final if receipt.succeeded else State.failed
        if state is State.failed:
            problem = "the contract reverted in its block: nothing changed, the gas was paid"
        if (entry.state, entry.receipt) != (state, receipt):
            await self._store.run(lambda s: s.mined(entry, state, receipt, self._now(), problem))

    async def _is_displaced(self, nonce: int, head: Head) -> bool:
        """Whether a transaction that is final has the nonce, and it is none of ours."""
        deep = head.number - self._settings.confirmations
        return deep >= 0 and await self._ledger.nonce(self._key.address, deep) > nonce

    async def _push(self, entry: Entry, patience: _Patience, head: Head, *, first: bool) -> None:
        """Send what this process has not sent, again what waits long, dearer if it is in turn."""
        rule, bumps = self._settings.fees, len(entry.attempts) - 1
        waited = self._clock.monotonic() - patience.tried
        if patience.refusals:
            pause = self._settings.poll_seconds * 2.0 ** min(patience.refusals, 16)
            if waited < min(pause, LONGEST_RETRY):
                return
            dearer = patience.refusals >= _REFUSALS_BEFORE_BUMP
        else:
            if waited < rule.wait(bumps):
                return
            dearer = patience.tried != _NEVER
        if dearer and first and bumps < rule.bumps:
            entry = await self._dearer(entry, head)
        await self._send(entry, patience)

    async def _dearer(self, entry: Entry, head: Head) -> Entry:
        """The entry with one more transaction, unless the limit forbids it."""
        last = entry.attempts[-1]
        fee = self._settings.fees.higher(last.fee, head.base_fee, await self._ledger.tip())
        if fee is None or entry.nonce is None:
            return entry
        attempt = signed_attempt(
            self._key,
            entry.intent,
            chain_id=self._chain_id,
            nonce=entry.nonce,
            gas=last.gas,
            fee=fee,
        )
        await self._store.run(lambda s: s.bump(entry, attempt, self._now()))
        _log.info("%s offers %.3f gwei now", what(entry), fee.most / GWEI)
        return await self._entry(entry)

    async def _send(self, entry: Entry, patience: _Patience) -> None:
        patience.tried = self._clock.monotonic()
        try:
            await self._ledger.send(entry.attempts[-1].raw)
        except TransactionRefused as error:
            if not error.known:
                # Perhaps it is in a block by now, or an older attempt waits: the next round sees.
                patience.refusals += 1
                await self._note(entry, State.signed, str(error))
                return
        patience.refusals = 0
        await self._note(entry, State.sent)

    # What is queued

    async def _sign_next(self) -> bool:
        """Sign and send the intent whose turn it is; False if there is none or it has to wait."""
        entries = await self._entries()
        flying = [e for e in entries if e.state in (State.signed, State.sent)]
        entry = next((e for e in entries if e.state is State.queued), None)
        if entry is None or len(flying) >= self._settings.in_flight:
            return False
        intent, account = entry.intent, self._key.address
        head = await self._ledger.head()
        message = Call(intent.to, intent.data, intent.wei, account)
        try:
            used = await self._ledger.estimate_gas(message)
        except TransactionRefused as error:
            # It may build on what is under way.
            return not flying and await self._cannot_run(entry, str(error))
        gas = min(used + used // 4 + 5_000, head.gas_limit)
        fee = self._settings.fees.first(head.base_fee, await self._ledger.tip())
        if fee is None:
            await self._too_dear(entry, head.base_fee)
            return False
        reserved = sum(e.intent.wei + e.attempts[-1].gas * e.attempts[-1].fee.most for e in flying)
        need = intent.wei + gas * fee.most
        balance = await self._ledger.balance(account)
        if balance < reserved + need:
            if not flying:
                await self._cannot_pay(entry, balance, need)
            return False
        next_nonce = await self._store.run(lambda s: s.next_nonce())
        on_chain = await self._ledger.nonce(account)
        gap = set(range(on_chain, next_nonce)) - {e.nonce for e in entries}
        if gap:
            await self._note(entry, State.queued, _forgotten(len(gap)))
            return False
        nonce = max(next_nonce, on_chain)
        attempt = signed_attempt(
            self._key, intent, chain_id=self._chain_id, nonce=nonce, gas=gas, fee=fee
        )
        self.problems.pop(entry.id, None)
        if await self._store.run(lambda s: s.sign(entry, nonce, attempt, self._now())):
            patience = self._patience.setdefault(entry.id, _Patience())
            await self._send(await self._entry(entry), patience)
        return True

    async def _cannot_run(self, entry: Entry, reason: str) -> bool:
        """The contract would revert, or there is not even the money to try. True if it is over."""
        balance = await self._ledger.balance(self._key.address)
        if balance <= entry.intent.wei:
            await self._cannot_pay(entry, balance, entry.intent.wei + 1)
            return False
        await self._note(entry, State.refused, reason)
        return True

    async def _cannot_pay(self, entry: Entry, have: int, need: int) -> None:
        problem = shortfall(
            have,
            need,
            what=f"balance of {self._key.address}",
            purpose=f"the gas of {what(entry)}",
            remedy=f"send {{missing}} of the chain's own coin to {self._key.address}",
            decimals=WEI_DECIMALS,
        )
        self.problems[entry.id] = problem
        await self._note(entry, State.queued, str(problem))

    async def _too_dear(self, entry: Entry, base_fee: int) -> None:
        limit = self._settings.fees.limit
        problem = (
            f"gas costs {base_fee / GWEI:.3f} gwei, above the limit of {limit / GWEI:.3f}: it "
            "waits until gas is cheaper; raise the limit if it should not"
        )
        await self._note(entry, State.queued, problem)

    # Plumbing

    def _now(self) -> int:
        return int(self._clock.now())

    async def _entries(self) -> tuple[Entry, ...]:
        return await self._store.run(lambda s: s.open_entries())

    async def _entry(self, entry: Entry) -> Entry:
        """The same, as it is stored now."""
        return await self._store.run(lambda s: s.get(entry.id)) or entry

    async def _note(self, entry: Entry, state: State, problem: str = "") -> None:
        if (entry.state, entry.problem) != (state, problem):
            await self._store.run(lambda s: s.note(entry, state, self._now(), problem))


def _forgotten(count: int) -> str:
    return (
        f"the chain no longer has {count} transactions that were final: it was restored from a "
        "copy, or reorganised deeper than the confirmations that were waited for; check what is "
        "missing, then begin a new outbox"
    )


def what(entry: Entry) -> str:
    """An intent in words."""
    return entry.intent.purpose or f"intent {entry.id[:16]}…"
