"""The name under which `routing.swarm` knew the membership; gone with its last user."""

from __future__ import annotations

from unisono.clock import Clock
from unisono.routing.membership import Membership
from unisono.types import NodeId


class Directory(Membership):
    """A `Membership` of nobody."""

    def __init__(self, clock: Clock, _blocks: object = None) -> None:
        super().__init__(clock, NodeId("00" * 32))
