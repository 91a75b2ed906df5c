"""One answer on its way through the network, and how long its prompt takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from unisono.routing.experience import Trial
from unisono.simulation.events import SECOND
from unisono.simulation.workload import Request
from unisono.simulation.world import Machine, latency_us
from unisono.types import NodeId
from unisono.wire.records import NodeRecord

CHUNK = 128
"""Rows of a prompt that travel together."""


class State(IntEnum):
    """Where an answer is."""

    OPENING = 0
    PREFILL = 1
    DECODING = 2
    STALLED = 3
    """A hop is gone, and the gateway does not know yet or looks for another chain."""
    ENDED = 4


@dataclass(slots=True, eq=False)
class Session:
    """A request, the chain that serves it now, and what became of it."""

    request: Request
    served_by: int
    """The gateway's number."""
    gateway: Machine
    """The machine that it runs on."""
    state: State = State.OPENING
    hops: list[Machine] = field(default_factory=lambda: [])
    path: list[NodeRecord] = field(default_factory=lambda: [])
    """The hops' records, as the gateway chose them."""
    trial: Trial | None = None
    """The gateway's watch over the present chain."""
    row: int = -1
    """In the table of decoding sessions."""
    tokens: int = 0
    attempts: int = 0
    """Chains that were begun, repaired ones included."""
    refusals: int = 0
    """Hops that said no or did not answer while a chain was opened."""
    turned_away: int = 0
    """Gateways that could not serve it."""
    avoid: frozenset[NodeId] = frozenset()
    refusing: frozenset[NodeId] = frozenset()
    watched: int = 0
    """Tokens that it had when the present chain gave its first."""
    mended: int = -1
    """The place in the chain of a hop that is being replaced; −1: none."""
    version: int = 0
    """What was planned for an earlier version is void."""
    first_token: int = 0
    """When it reached the client; 0 before."""
    stalled_at: int = 0
    longest_pause: int = 0

    @property
    def known(self) -> int:
        """Tokens that a new chain has to read."""
        return self.request.prompt + self.tokens

    @property
    def positions(self) -> int:
        """Room that every hop reserves."""
        return self.request.prompt + self.request.max_tokens


def loop_links_us(hops: Sequence[Machine], row_bytes: int) -> int:
    """The network's part of one token's way around the chain: a row over every link, the token
    from the last hop back to the first."""
    if len(hops) == 1:
        return 0
    total = latency_us(hops[-1], hops[0])
    for a, b in pairwise(hops):
        total += latency_us(a, b) + row_bytes * SECOND // min(a.up, b.down)
    return total


def prefill_us(
    hops: Sequence[Machine],
    rows: int,
    row_bytes: int,
    now: int,
    shares: Sequence[float],
    sending_until: dict[int, int],
    sender: Machine | None = None,
) -> int:
    """When the last hop has computed the last row of a prompt that starts now.

    Chunks flow through the hops as in a pipeline. A hop takes prompts in turn, each with the
    share of its time that decoding leaves (`shares`, 0 to 1); a line sends one prompt's rows
    after another's. `sender`: who has the rows for the first hop, if not its own tokens. Moves
    `Machine.prefill_until` and `sending_until` (by machine) forward.
    """
    chunk = min(rows, CHUNK)
    first = last = now
    for index, hop in enumerate(hops):
        before = hops[index - 1] if index else sender
        if before is not None:
            line = min(before.up, hop.down)
            begins = max(first, sending_until.get(before.index, 0))
            sent = max(begins + rows * row_bytes * SECOND // line, last)
            sending_until[before.index] = sent
            travel = latency_us(before, hop)
            first = begins + chunk * row_bytes * SECOND // line + travel
            last = sent + travel
        per_row = hop.row_us / shares[index]
        begun = max(first, hop.prefill_until)
        done = begun + round(per_row * rows)
        hop.prefill_until = done
        first = begun + round(per_row * chunk)
        last = max(done, last + round(per_row * chunk))
    return last + hops[-1].step_us
