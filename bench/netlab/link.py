"""The process that carries packets between the namespaces of a `WideArea`.

It reads a plan (one JSON line on standard input), makes a TUN device in every namespace, says
`ready`, and carries packets until standard input ends. Further lines change the network; each is
answered with `done`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from pathlib import Path as File
from typing import Any

if __name__ == "__main__":  # started by its path: it runs beside any working directory
    sys.path.insert(0, str(File(__file__).resolve().parents[2]))

from bench.netlab.burst import segments, target, without
from bench.netlab.lane import Lane, Path
from bench.netlab.namespaces import ip

DEVICE = "wan0"
MAX_HELD_BYTES = 512 << 20
"""Bytes on all lanes together: what a machine can spare, not what a network would hold."""
READS = 64
"""Bursts taken from one device before due ones are delivered."""

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CHECKSUM, _TCP4, _TCP_ECN, _UDP4_AND_6 = 0x01, 0x02, 0x08, 0x60
_MOST = 1 << 17


class Link:
    """All devices and lanes."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._names: list[str] = plan["names"]
        self._lanes: dict[tuple[int, int], Lane] = {}
        for one in range(len(self._names)):
            for other in range(len(self._names)):
                pair = sorted((self._names[one], self._names[other]))
                path = Path(**plan["paths"].get("|".join(pair), plan["path"]))
                draw = random.Random(f"{plan['seed']} {one} {other}")
                self._lanes[one, other] = Lane(path, draw)
        self._targets = {socket.inet_aton(a): i for i, a in enumerate(plan["addresses"])}
        self._devices = [
            _device(f"u{os.getpid()}t{i}", plan["namespaces"][i], plan["addresses"][i])
            for i in range(len(self._names))
        ]
        self._held: list[tuple[float, int, int, bytes]] = []
        self._bytes = 0
        self._count = 0

    def run(self) -> None:
        """Carry packets until standard input ends."""
        watched = [*self._devices, sys.stdin.fileno()]
        held = self._held
        while True:
            now = time.monotonic()
            while held and held[0][0] <= now:
                _, _, device, burst = heapq.heappop(held)
                self._bytes -= len(burst)
                # A device refuses a packet when its namespace is going away.
                with contextlib.suppress(OSError):
                    os.write(device, burst)
            wait = max(0.0, held[0][0] - time.monotonic()) if held else None
            # `select` waits to the microsecond, unlike `poll` and `epoll`.
            for ready in select.select(watched, [], [], wait)[0]:
                if ready == watched[-1]:
                    if not self._told():
                        return
                else:
                    self._take(self._devices.index(ready))

    def _take(self, source: int) -> None:
        """Put what a namespace sent on its lanes."""
        for _ in range(READS):
            try:
                burst = os.read(self._devices[source], _MOST)
            except BlockingIOError:
                return
            address = target(burst)
            to = self._targets.get(address) if address is not None else None
            if to is None:
                continue
            lane = self._lanes[source, to]
            if lane.cut or self._bytes > MAX_HELD_BYTES:
                continue
            lost = lane.losses(segments(burst))
            for part in without(burst, lost):
                due = lane.arrival(time.monotonic(), len(part))
                if due is not None:
                    self._count += 1
                    self._bytes += len(part)
                    heapq.heappush(self._held, (due, self._count, self._devices[to], part))

    def _told(self) -> bool:
        """Carry out one line of standard input; whether there was one."""
        line = sys.stdin.readline()
        if not line:
            return False
        order = json.loads(line)
        place = self._names.index(order["name"])
        for (one, other), lane in self._lanes.items():
            if place in (one, other) and one != other:
                lane.cut = order["cut"]
        print("done", flush=True)
        return True


def _device(name: str, namespace: str, address: str) -> int:
    """A TUN device inside a namespace, as the file that its packets are read from."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    offload = _CHECKSUM | _TCP4 | _TCP_ECN
    try:
        fcntl.ioctl(device, _TUNSETOFFLOAD, offload | _UDP4_AND_6)
    except OSError:  # bursts of UDP came with Linux 6.2
        fcntl.ioctl(device, _TUNSETOFFLOAD, offload)
    ip("link", "set", name, "netns", namespace, "name", DEVICE)
    ip("-n", namespace, "addr", "add", f"{address}/24", "dev", DEVICE)
    ip("-n", namespace, "link", "set", DEVICE, "up", "mtu", "1500", "txqueuelen", "4000")
    ip("-n", namespace, "route", "add", "default", "dev", DEVICE)
    return device


def main() -> None:
    link = Link(json.loads(sys.stdin.readline()))
    # Delays should not grow when the machine is busy; where that is not allowed, they may.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    gc.disable()  # nothing here makes cycles
    print("ready", flush=True)
    link.run()


if __name__ == "__main__":
    main()
