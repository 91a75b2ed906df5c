"""What clients ask of a simulated fleet."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from bench.fleet import Fleet, Gateway, Request


@dataclass(slots=True)
class Traffic:
    """Requests of drawn lengths."""

    rng: random.Random
    made: int = 0

    def draw(self) -> Request:
        """A prompt around 120 tokens with a long tail, an answer around 60."""
        self.made += 1
        prompt = min(2000, max(8, round(self.rng.lognormvariate(math.log(120), 0.8))))
        tokens = min(400, max(8, round(self.rng.lognormvariate(math.log(60), 0.6))))
        return Request((self.made, *range(1, prompt)), tokens)


def offered(fleet: Fleet, traffic: Traffic, rate: float, count: int) -> float:
    """`count` requests that come at random, `rate` per second, and are awaited.

    Returns the tokens per second until the last has ended.
    """
    left, start, before = count, fleet.events.time, fleet.tokens

    def end() -> None:
        nonlocal left
        left -= 1

    at = 0.0
    for number in range(count):
        at += traffic.rng.expovariate(rate)
        gateway, request = fleet.gateways[number % len(fleet.gateways)], traffic.draw()
        fleet.events.after(at, lambda g=gateway, r=request: g.ask(r, end))
    fleet.events.run(done=lambda: left == 0)
    return (fleet.tokens - before) / (fleet.events.time - start)


def crowded(fleet: Fleet, traffic: Traffic, clients: int, seconds: float) -> float:
    """Clients that ask again as soon as they are answered, for so long; the last answers are
    awaited. Returns the tokens per second until nobody asked again."""
    start, before, left = fleet.events.time, fleet.tokens, clients

    def again(gateway: Gateway) -> None:
        nonlocal left
        if fleet.events.time < start + seconds:
            gateway.ask(traffic.draw(), lambda: fleet.events.after(0.01, lambda: again(gateway)))
        else:
            left -= 1

    for number in range(clients):
        gateway = fleet.gateways[number % len(fleet.gateways)]
        fleet.events.after(traffic.rng.uniform(0, 0.5), lambda g=gateway: again(g))
    fleet.events.run(start + seconds)
    rate = (fleet.tokens - before) / seconds
    fleet.events.run(done=lambda: left == 0)
    return rate
