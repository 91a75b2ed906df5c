"""Chains made better by exchanging nodes between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unisono.routing.placement.cuts import cut
from unisono.routing.placement.fleet import Fleet, Ints
from unisono.routing.placement.packing import Packed, arranged

_NEAR = 32
_IDLE = -1

Hops = tuple[int, ...]


class _Move(NamedTuple):
    """Replace up to two chains (or add one) by these node sequences."""

    old: tuple[int, ...]
    new: tuple[Hops, ...]


class Exchange:
    """Hill climbing at a fixed price: every accepted move raises the total value.

    In each round every node tries to change places with, or to stand beside, some nodes near it;
    all tries are valued together, and those that gain are made, best first, one per chain.
    """

    def __init__(self, fleet: Fleet, members: Ints, packed: Packed, price: float) -> None:
        self.fleet, self.members, self.price = fleet, members, price
        self.chains: list[Hops] = [tuple(int(i) for i in c) for c in packed.chains]
        self.values = list(packed.values)
        self._draw = np.random.default_rng(len(members))
        self._near = _neighbours(fleet, members)
        self.seen: dict[Hops, float] = {}
        """Every chain that was ever valued, with its value."""

    def run(self, rounds: int, tries: int) -> None:
        """At most `rounds` rounds of `tries` moves."""
        quiet = 0
        for _ in range(rounds):
            quiet = 0 if self._round(tries) else quiet + 1
            if quiet == 3:
                return

    def _round(self, tries: int) -> bool:
        where = np.full(len(self.fleet), _IDLE, dtype=np.int64)
        for i, chain in enumerate(self.chains):
            where[list(chain)] = i
        picked = self._draw.integers(0, len(self.members), tries)
        others = self._near[picked, self._draw.integers(0, self._near.shape[1], tries)]
        kinds = self._draw.integers(0, 4, tries)
        moves: list[_Move] = []
        for u, v, kind in zip(self.members[picked], others, kinds, strict=True):
            move = self._move(int(u), int(v), int(kind), where)
            if move is not None:
                moves.append(move)
        worth = self._worth([chain for move in moves for chain in move.new])
        gains = [sum(worth[c] for c in m.new) - sum(self.values[i] for i in m.old) for m in moves]
        touched: set[int] = set()
        used: set[int] = set()
        done = False
        gone: list[int] = []
        for at in sorted(range(len(moves)), key=lambda i: -gains[i]):
            if gains[at] <= 1e-9 * (1 + abs(self.price)):
                break
            move = moves[at]
            nodes = {n for chain in move.new for n in chain}
            free = {n for n in nodes if where[n] == _IDLE}
            if touched.intersection(move.old) or used & free:
                continue
            touched.update(move.old)
            used |= free
            done = True
            slots = list(move.old)
            for chain in move.new:
                if worth[chain] <= 0:
                    continue
                if slots:
                    slot = slots.pop(0)
                    self.chains[slot], self.values[slot] = chain, worth[chain]
                else:
                    self.chains.append(chain)
                    self.values.append(worth[chain])
            gone += slots
        for slot in sorted(gone, reverse=True):
            del self.chains[slot], self.values[slot]
        return done

    def _move(self, u: int, v: int, kind: int, where: Ints) -> _Move | None:
        a, b = int(where[u]), int(where[v])
        if a == _IDLE:
            if b == _IDLE:
                return None
            u, v, a, b = v, u, b, a
        mine = self.chains[a]
        at = mine.index(u)
        if a == b:
            to = mine.index(v)
            low, high = min(at, to), max(at, to)
            return _Move((a,), (mine[:low] + mine[low : high + 1][::-1] + mine[high + 1 :],))
        theirs = self.chains[b] if b != _IDLE else ()
        if kind == 0:
            # v comes to stand behind u.
            if len(mine) >= self.fleet.model.most_hops:
                return None
            joined = (*mine[: at + 1], v, *mine[at + 1 :])
            left = tuple(n for n in theirs if n != v)
            return _Move((a, b) if theirs else (a,), (joined, left) if len(left) > 1 else (joined,))
        if kind == 1 and theirs:
            # The two chains change their ends.
            to = theirs.index(v)
            one, two = mine[: at + 1] + theirs[to:], theirs[:to] + mine[at + 1 :]
            if max(len(one), len(two)) > self.fleet.model.most_hops:
                return None
            return _Move((a, b), tuple(c for c in (one, two) if len(c) > 1))
        swapped = (*mine[:at], v, *mine[at + 1 :])
        if not theirs:
            return _Move((a,), (swapped,))
        return _Move((a, b), (swapped, tuple(u if n == v else n for n in theirs)))

    def _worth(self, chains: list[Hops]) -> dict[Hops, float]:
        missing: dict[int, list[Hops]] = {}
        for chain in set(chains):
            if chain not in self.seen:
                missing.setdefault(len(chain), []).append(chain)
        for same in missing.values():
            made = cut(self.fleet, arranged(self.fleet, np.array(same)), self.price)
            self.seen.update(zip(same, (float(v) for v in made.value), strict=True))
        return self.seen


def _neighbours(fleet: Fleet, members: Ints) -> Ints:
    """For each member, the nearest other members; distance counts, and a little how alike the
    nodes are in speed."""
    places = fleet.place[members]
    square = (places**2).sum(axis=1)
    away = square[:, None] + square[None] - 2 * places @ places.T
    np.fill_diagonal(away, np.inf)
    count = min(_NEAR, len(members) - 1)
    near = np.argpartition(away, count - 1, axis=1)[:, :count]
    return members[near]
