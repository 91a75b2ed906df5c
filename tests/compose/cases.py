"""A committee in memory: what its contract does for a case whose seats were drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from unisono.clock import VirtualClock
from unisono.errors import TransactionRefused
from unisono.settlement.committees import CaseState, Phase
from unisono.types import EvmAddress

COMMIT, REVEAL = 120, 60
NODE = b"\x77" * 32


@dataclass
class Committee:
    """In the place of a `JuryHouse`; time is the clock's."""

    clock: VirtualClock
    states: dict[bytes, CaseState] = field(default_factory=dict[bytes, CaseState])
    seats: dict[tuple[bytes, int], tuple[EvmAddress, bytes]] = field(
        default_factory=dict[tuple[bytes, int], tuple[EvmAddress, bytes]]
    )
    results: dict[tuple[bytes, int], bytes] = field(default_factory=dict[tuple[bytes, int], bytes])
    contested: list[bytes] = field(default_factory=list[bytes])
    block: int = 1000
    sent: list[str] = field(default_factory=list[str])

    @property
    def ledger(self) -> Any:
        return self

    async def head(self) -> Any:
        return SimpleNamespace(number=self.block, timestamp=int(self.clock.now()))

    async def rules(self) -> Any:
        return SimpleNamespace(commit_seconds=COMMIT, reveal_seconds=REVEAL)

    async def state(self, case: bytes) -> CaseState:
        return self.states[case]

    async def seat(self, case: bytes, seat: int) -> tuple[EvmAddress, bytes]:
        return self.seats[case, seat]

    async def lapse(self, case: bytes, state: CaseState) -> bool:
        return False

    def is_past(self, head: Any, second: int) -> bool:
        return head.timestamp > second

    async def named(self, event: str, first: int, **fields: object) -> tuple[dict[str, Any], ...]:
        found: list[dict[str, Any]] = []
        if event == "Seated":
            for (case, seat), (operator, _) in self.seats.items():
                if self.states[case].block >= first:
                    found.append({"case": case, "seat": seat, "operator": operator, "node": NODE})
        if event == "Opened":
            found += [{"case": c, "operator": s.operator} for c, s in self.states.items()]
        return tuple(x for x in found if all(x[name] == want for name, want in fields.items()))

    async def send(self, function: str, *arguments: Any, key: str = "") -> None:
        del key
        self.sent.append(function)
        case = arguments[0]
        state = self.states[case]
        if function == "contest":
            self.states[case] = replace(state, phase=Phase.CONTESTED)
            self.contested.append(case)
            return
        seat, bit = arguments[1], 1 << arguments[1]
        now = self.clock.now()
        if function == "commit":
            if now > state.deadline or state.committed & bit:
                raise TransactionRefused("too late, or committed already")
            self.seats[case, seat] = (self.seats[case, seat][0], arguments[2])
            state = replace(state, committed=state.committed | bit)
            if state.committed == state.full:
                state = replace(state, deadline=int(now))
        elif function == "reveal":
            assert state.committed == state.full or now > state.deadline
            self.results[case, seat] = arguments[2]
            state = replace(state, revealed=state.revealed | bit)
        self.states[case] = state

    def drawn(self, case: bytes, opener: EvmAddress, *members: EvmAddress) -> None:
        """A case in which these sit."""
        nobody = EvmAddress("0x" + "00" * 20)
        self.states[case] = CaseState(
            *(b"\1" * 32, NODE, nobody, opener, 10, 0, 0, bytes(32), Phase.VOTING),
            *(len(members), len(members), 1, 0, 0, self.block, 9),
            *(int(self.clock.now()) + COMMIT, int(self.clock.now())),
        )
        for seat, member in enumerate(members):
            self.seats[case, seat] = (member, bytes(32))

    def contradicted(self, case: bytes, operator: EvmAddress) -> None:
        """A case whose accused may contest."""
        self.drawn(case, operator)
        self.states[case] = replace(self.states[case], phase=Phase.ACCUSED, operator=operator)

    def over(self, case: bytes) -> None:
        """The case is closed."""
        self.states[case] = replace(self.states[case], phase=Phase.OVER)
