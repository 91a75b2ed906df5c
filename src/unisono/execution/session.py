"""One session on one hop: its place in the ring, its cache, and the hashes it will sign."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import UNSET

from unisono.clock import SystemClock
from unisono.errors import PeerCheating, PeerRefused, UnisonoError
from unisono.execution.credit import Meter
from unisono.execution.kept import Recorder
from unisono.execution.outlet import RowsOutlet, TokensOutlet
from unisono.models.cache import PAGE, REACH_BACK, Prefix, SessionCache
from unisono.models.decoder import Draw, Rows
from unisono.types import Q16, Distribution, NodeId, SampledToken, SessionId, stop_rule
from unisono.wire import messages as wire
from unisono.wire.claims import TAG_BYTES, HopClaim, rows_root, tokens_root
from unisono.wire.ensemble import Given, Weighed, distribution_hash, distributions_root
from unisono.wire.identity import Identity
from unisono.wire.link import Link
from unisono.wire.messages import Open, Rewire, Rewired, Spared, Tokens
from unisono.wire.packing import unpack
from unisono.wire.rows import encode_rows


@dataclass(frozen=True, slots=True)
class ArrivedRows:
    """Rows as they came from the hop before."""

    position: int
    tokens: tuple[int, ...]
    values: Rows
    """int64 [n, hidden]."""
    encoded: Sequence[memoryview]
    """The canonical encoding of each."""

    @classmethod
    def of(cls, message: wire.Rows, body: memoryview, hidden: int) -> ArrivedRows:
        """What a message brings.

        Raises:
            PeerCheating: its body is not what its header says.
        """
        count = len(message.widths)
        values = unpack(body, count * hidden, message.low, message.apart).reshape(count, hidden)
        widths, encoded = encode_rows(values)
        if widths != message.widths:
            raise PeerCheating("the widths of rows are not those of their values")
        return cls(message.position, message.tokens, values, encoded)

    @property
    def count(self) -> int:
        return len(self.encoded)

    def first(self, count: int) -> ArrivedRows:
        """The first `count` of them."""
        return ArrivedRows(
            self.position, self.tokens[:count], self.values[:count], self.encoded[:count]
        )

    def after(self, count: int) -> ArrivedRows:
        """Those behind the first `count`."""
        return ArrivedRows(
            self.position + count, self.tokens[count:], self.values[count:], self.encoded[count:]
        )


@dataclass(frozen=True, slots=True)
class NamedPages:
    """The hop before names pages of rows that it would rather not send."""

    peer: NodeId
    """Who that is, though another may have taken its place by the time of the answer."""
    turn: int
    names: tuple[bytes, ...]


Arrival = ArrivedRows | NamedPages | Spared | Tokens | Rewire | Given
_NO_TOKENS = np.empty(0, dtype=np.int32)


class Inbox:
    """What waits for a session. Rows that later ones replace are not kept."""

    def __init__(self) -> None:
        self._items: deque[Arrival] = deque()
        self._filled = asyncio.Event()

    def put(self, item: Arrival) -> None:
        """Add an arrival."""
        if isinstance(item, ArrivedRows):
            self._supersede(item.position)
        self._items.append(item)
        self._filled.set()

    def _supersede(self, position: int) -> None:
        while self._items:
            last = self._items[-1]
            if not isinstance(last, ArrivedRows) or last.position + last.count <= position:
                return
            self._items.pop()
            if last.position < position:
                self._items.append(last.first(position - last.position))
                return

    def forget(self) -> None:
        """Drop what waits of the hop before."""
        others = Rewire | Given | Spared
        self._items = deque(item for item in self._items if isinstance(item, others))

    def take(self) -> Arrival | None:
        """The next arrival, if there is one."""
        return self._items.popleft() if self._items else None

    async def get(self) -> Arrival:
        """The next arrival."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()


class HopSession:
    """State only; `execution.flow` computes and `execution.worker` moves the bytes."""

    def __init__(
        self,
        opened: Open,
        tokens: Sequence[int],
        cache: SessionCache,
        control: Link,
        meter: Meter | None = None,
    ) -> None:
        self.opened = opened
        self.cache = cache
        self.control = control
        """The link to the gateway."""
        self.previous = opened.previous
        """From whom rows or tokens are taken."""
        self.next = opened.next
        self.tokens = list(tokens)
        """Prompt and answer so far, on the first and the last hop."""
        self.in_hashes: list[bytes] = []
        self.out_hashes: list[bytes] = []
        self.told: list[bytes] = []
        """Hashes of the distributions of the answer's tokens, on the last hop of an ensemble."""
        self.rows_in: Recorder | None = None
        """Keeps what came in, for those who ask later."""
        self.names: list[bytes] = []
        """Of the complete pages that later sessions may begin with (`execution.pages`)."""
        self._furthest = 0
        """Positions that were ever computed: the cache reaches back from there."""
        self.inbox = Inbox()
        self.outlet: RowsOutlet | TokensOutlet = (
            TokensOutlet(opened.session, control, self.tokens, opened.resume)
            if self.is_last
            else RowsOutlet(opened.session, opened.prompt)
        )
        self.progressed: Callable[[], None] = lambda: None
        """Called when rows were computed."""
        self.report: Callable[[UnisonoError], None] = lambda error: None
        """Tells the gateway of a failure."""
        self.reply: Callable[[NodeId, Spared], None] = lambda node, spared: None
        """Sends to a hop before."""
        self.meter = meter or Meter(opened.session, SystemClock())
        """How far this session is paid for."""
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> SessionId:
        return self.opened.session

    @property
    def is_first(self) -> bool:
        return self.opened.hop == 0

    @property
    def is_last(self) -> bool:
        return self.opened.hop == self.opened.hops - 1

    @property
    def generated(self) -> tuple[int, ...]:
        """The answer so far, on the first and the last hop."""
        return tuple(self.tokens[self.opened.prompt :])

    @property
    def ended(self) -> bool:
        """Whether the answer is complete: a stop token, or as many tokens as were asked for."""
        answered = len(self.tokens) - self.opened.prompt
        return answered > 0 and stop_rule(self.opened, answered, self.tokens[-1])

    @property
    def wanted(self) -> int:
        """The first position that this hop still wants from the one before."""
        return len(self.tokens) if self.is_first else len(self.in_hashes)

    def rewired(self) -> Rewired:
        """What the gateway is told when a neighbour was replaced."""
        earliest = 0 if self.is_first else max(0, self._furthest - REACH_BACK)
        return Rewired(self.id, self.wanted, earliest)

    @property
    def last_row(self) -> int:
        """Position of the last row that the longest answer needs."""
        return self.opened.prompt + self.opened.max_tokens - 2

    def record(self, position: int, incoming: Sequence[bytes], outgoing: Sequence[bytes]) -> None:
        """Hashes of rows in and out from `position` on; they replace what was there."""
        self.truncate(position)
        self.in_hashes += incoming
        self.out_hashes += outgoing
        self._furthest = max(self._furthest, len(self.in_hashes))

    def begin(self, prefixes: Sequence[Prefix], names: Sequence[bytes]) -> None:
        """Begin behind pages that an earlier session computed of the same rows."""
        for prefix in prefixes:
            if self.rows_in is not None:
                self.rows_in.put(len(self.in_hashes), prefix.rows)
            self.in_hashes += prefix.hashes[0]
            self.out_hashes += prefix.hashes[1]
        self.names[:] = names
        self._furthest = len(self.in_hashes)
        if isinstance(self.outlet, RowsOutlet):
            self.outlet.begin(len(self.in_hashes))

    def truncate(self, position: int) -> None:
        """Rows from `position` on are void."""
        del self.names[position // PAGE :]
        del self.in_hashes[position:], self.out_hashes[position:]
        del self.told[max(0, position - self.opened.prompt + 1) :]
        if self.rows_in is not None:
            self.rows_in.truncate(position)

    def draws(self, position: int, ids: Sequence[int]) -> tuple[Draw, ...]:
        """What to sample after rows whose tokens are `ids`, the first at `position`: after that of
        the last known token, and after the guesses that follow it."""
        known, weigh = len(self.tokens), self.opened.weigh
        # an ensemble's last hop signs what it says of every token, those given at the start too
        first = max(self.opened.prompt if weigh else known, position + 1) - 1
        count = min(position + len(ids), self.last_row + 1) - first
        if not self.is_last or count <= 0 or first > known - 1 or (self.ended and not weigh):
            return ()
        s = self.opened.sampling
        penalised = s.repetition_penalty != Q16 or s.presence_penalty or s.frequency_penalty
        if not penalised:  # only penalties look at the tokens: copying them would cost O(length)
            return (Draw(s, _NO_TOKENS, 0, self.opened.top_logprobs, weigh),) * count
        guessed = ids[max(0, known - position) :]
        tokens = np.array([*self.tokens, *guessed], dtype=np.int32)
        prompt, logprobs = self.opened.prompt, self.opened.top_logprobs
        return tuple(
            Draw(s, tokens[: first + 1 + i], prompt, logprobs, weigh) for i in range(count)
        )

    def accept(
        self, position: int, ids: Sequence[int], sampled: Sequence[SampledToken]
    ) -> list[SampledToken]:
        """Take in what was drawn after rows with tokens `ids` from `position` on: up to the first
        token that is not the one that was guessed. Rows behind it are void."""
        accepted: list[SampledToken] = []
        for token in sampled:
            at = token.position - position
            self.tokens.append(token.token)
            accepted.append(token)
            if self.ended or at >= len(ids) or ids[at] != token.token:
                break
        if sampled:
            self.truncate(len(self.tokens) - 1)
        return accepted

    def tell(self, position: int, said: Sequence[Distribution]) -> list[Weighed]:
        """Take note of what the model says after rows, the last of them at `position` - 1; returns
        what the gateway has to hear: what concerns the token that is not known yet."""
        self.told += [distribution_hash(each) for each in said]
        if not said or position != len(self.tokens) or self.ended:
            return []
        return [Weighed(self.id, position, said[-1])]

    def give(self, given: Given, vocabulary: int) -> SampledToken | None:
        """Take in the token that an ensemble chose; None if it is known.

        Raises:
            PeerRefused: it is not the one that is due.
        """
        known = len(self.tokens)
        if given.position < known and self.tokens[given.position] == given.token:
            return None
        due = self.opened.prompt + len(self.told) - 1
        if self.ended or not given.position == known == due or given.token >= vocabulary:
            raise PeerRefused(
                f"token {given.token} was given for position {given.position}; {known} is next, of "
                f"a vocabulary of {vocabulary}",
                "malformed",
            )
        self.tokens.append(given.token)
        return SampledToken(known, given.token)

    @property
    def adoptable(self) -> int:
        """Complete pages of what was given. The last token is never part of one: its row must be
        computed for the answer to begin. In an ensemble every row of the answer must."""
        known = self.opened.prompt if self.opened.weigh else self.opened.start
        return (known - 1) // PAGE

    def usable(self, arrived: ArrivedRows) -> ArrivedRows | None:
        """Those of the rows that are worth computing; None if none are.

        On the last hop, rows behind a wrong guess are not: what follows the right token comes.

        Raises:
            PeerCheating: rows leave a gap, go back too far, or have no tokens where they must.
        """
        position, count = arrived.position, arrived.count
        if self.is_last:
            known = len(self.tokens)
            if not arrived.tokens and position + count > self.opened.prompt:
                raise PeerCheating(
                    f"a row came for position {position + count - 1} without its token"
                )
            # nothing follows the last token, so that its row is not needed
            wanted = known - 1 - position if self.ended else count
            if self.opened.weigh:  # nothing is guessed
                wanted = min(wanted, known - position)
            if arrived.tokens and (position >= known or wanted <= 0):
                return None
            for i, token in enumerate(arrived.tokens[: known - position]):
                if token != self.tokens[position + i]:
                    wanted = min(wanted, i)
                    break
            if wanted <= 0:
                return None
            arrived = arrived.first(wanted) if wanted < count else arrived
        due = len(self.in_hashes)
        if position > due:
            raise PeerCheating(f"rows from position {position} came when position {due} was next")
        if position < self._furthest - REACH_BACK:
            raise PeerCheating(
                f"rows from position {position} replace more than {REACH_BACK} of {self._furthest}"
            )
        return arrived

    def give_up_previous(self, error: PeerCheating) -> None:
        """The hop before broke the protocol: nothing more is taken from it, and this hop waits for
        the gateway to put another in its place."""
        self.report(error)
        self.previous = None
        self.inbox.forget()  # else who sent what follows would not be known any more

    def cancel(self) -> None:
        """Stop what computes or moves for this session."""
        for task in tuple(self.tasks):
            task.cancel()

    def claim(self, tokens: int, identity: Identity, epoch: int) -> HopClaim:
        """Sign, in this epoch, the part of the answer that ends with its `tokens`-th token.

        Raises:
            PeerRefused: this hop has not computed that far.
        """
        positions = self.opened.prompt + tokens - 1
        if tokens < 1 or positions > len(self.out_hashes):
            raise PeerRefused(
                f"{tokens} tokens need {positions} positions; {len(self.out_hashes)} are computed",
                code="not_computed",
            )
        out = self.out_hashes[:positions]
        answer = self.generated[:tokens]
        if self.is_last and len(answer) < tokens:
            raise PeerRefused(f"only {len(answer)} tokens were sampled", code="not_computed")
        unsigned = HopClaim(
            session=self.opened.session,
            request=self.opened.request_hash,
            gateway=self.opened.gateway,
            model=self.opened.model,
            node=identity.node_id,
            hop=self.opened.hop,
            layers=self.opened.layers,
            positions=positions,
            rows_in=rows_root(self.in_hashes[:positions]),
            rows_out=rows_root(out),
            out_tags=b"".join(h[:TAG_BYTES] for h in out),
            tokens=tokens_root(answer) if self.is_last else "",
            distributions=(
                distributions_root(self.told[:tokens])
                if self.is_last and self.opened.weigh
                else UNSET
            ),
            epoch=epoch,
        )
        return unsigned.signed_by(identity)
