"""Real address translation: homes behind routers made of network namespaces and nftables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File

import pytest
from bench.netlab import Town, missing

WHY_NOT = missing("nft")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
]

ROOT = File(__file__).parents[2]
NODE = [sys.executable, "-m", "tests.namespaces.node"]


class Node:
    """A process at a place; see `tests.namespaces.node`."""

    def __init__(self, town: Town, place: str, transport: str, *more: str) -> None:
        self.process = town.start(
            place,
            [*NODE, transport, f"{town.address(place)}:7000", *more],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = json.loads(self.process.stdout.readline())["address"]

    def ask(self, order: str) -> dict:
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def address(self) -> str:
        return self.ask("address")["address"]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def town(
    transport: str, one: str, other: str
) -> Iterator[tuple[Town, Node, Node, tuple[Node, Node]]]:
    """A node in each of two homes, and their relays."""
    with Town(["relay", "second"], {"alice": one, "bob": other}) as made:
        relays = (
            Node(made, "relay", transport, "--relay"),
            Node(made, "second", transport, "--relay"),
        )
        ways = [relay.first for relay in relays]
        alice = Node(made, "alice", transport, *ways)
        bob = Node(made, "bob", transport, *ways)
        yield made, alice, bob, relays


def dial_until_direct(caller: Node, target: str, seconds: float) -> dict:
    until = time.monotonic() + seconds
    while True:
        answer = caller.ask(f"dial {target}")
        if time.monotonic() > until or answer.get("relayed") is False:
            return answer
        time.sleep(0.5)


def test_two_homes_meet_directly_and_then_need_no_relay():
    with town("iroh", "cone", "cone") as (made, alice, bob, relays):
        assert f"{made.router_address('alice')}:7000" in alice.address
        assert alice.address.count("relay/iroh://") == 2
        assert alice.ask("nat") == {"nat": True}
        assert relays[0].ask("nat") != {"nat": True}
        first = alice.ask(f"dial {bob.address}")
        assert first["same"]
        later = dial_until_direct(alice, bob.address, 20)
        assert later["same"]
        assert later["relayed"] is False
        for relay in relays:
            relay.end()
        after = alice.ask(f"dial {bob.first}")
        assert after["same"]
        assert after["relayed"] is False


@pytest.mark.parametrize(("one", "other"), [("symmetric", "symmetric"), ("cone", "symmetric")])
def test_what_cannot_be_direct_goes_through_a_relay(one, other):
    with town("iroh", one, other) as (made, alice, bob, _):
        # A symmetric router shows everyone another port: none of them is believed.
        assert f"{made.router_address('bob')}:" not in bob.address
        for caller, target in ((alice, bob), (bob, alice)):
            answer = caller.ask(f"dial {target.address}")
            assert answer["same"]
            assert answer["relayed"] is True
            assert answer["opened_s"] < 2


def test_a_public_node_reaches_a_home_through_its_relay_and_then_directly():
    with Town(["relay", "server"], {"home": "cone"}) as made:
        relay = Node(made, "relay", "iroh", "--relay")
        server = Node(made, "server", "iroh")
        home = Node(made, "home", "iroh", relay.first)
        assert server.ask(f"dial {home.address}")["same"]
        assert dial_until_direct(server, home.address, 20)["relayed"] is False


def test_a_relay_that_dies_is_replaced_by_the_other():
    with town("iroh", "symmetric", "symmetric") as (_, alice, bob, relays):
        assert alice.ask(f"dial {bob.address}")["relayed"] is True
        relays[0].end()
        answer = alice.ask(f"dial {bob.first}")
        assert answer["same"]
        assert answer["relayed"] is True


def test_tcp_between_homes_goes_through_a_relay():
    with town("tcp", "cone", "cone") as (_, alice, bob, _):
        answer = alice.ask(f"dial {bob.address}")
        assert answer["same"]
        assert answer["relayed"] is True
        assert alice.ask("again")["same"]
