"""Measures a path from inside two namespaces: round trips of UDP, and TCP in bulk.

    python -m bench.netlab.probe serve HOST:PORT
    python -m bench.netlab.probe measure HOST:PORT [MEGABYTES]

`serve` echoes datagrams and swallows or sends what a connection asks for; `measure` prints one
JSON object: round trips in milliseconds (`rtt_ms`: least, median, most), how many of them were
lost, and megabytes per second up and down.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import threading
import time

ROUND_TRIPS = 50
CHUNK = bytes(1 << 18)


def serve(host: str, port: int) -> None:
    """Answer until killed."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((host, port))
    connections = socket.create_server((host, port))
    threading.Thread(target=_echo, args=(datagrams,), daemon=True).start()
    print("serving", flush=True)
    while True:
        connection, _ = connections.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _echo(datagrams: socket.socket) -> None:
    while True:
        data, sender = datagrams.recvfrom(2048)
        datagrams.sendto(data, sender)


def _answer(connection: socket.socket) -> None:
    with connection:
        asked = int(connection.recv(16, socket.MSG_WAITALL))
        if asked < 0:
            _receive(connection, -asked)
            connection.sendall(b"!")
        else:
            _send(connection, asked)


def _send(connection: socket.socket, count: int) -> None:
    while count > 0:
        connection.sendall(CHUNK[: min(count, len(CHUNK))])
        count -= len(CHUNK)


def _receive(connection: socket.socket, count: int) -> None:
    room = memoryview(bytearray(1 << 18))
    while count > 0:
        got = connection.recv_into(room)
        if not got:
            raise ConnectionError("the other side closed early")
        count -= got


def round_trips(host: str, port: int) -> tuple[list[float], int]:
    """Milliseconds of each UDP round trip that came back, and how many did not."""
    times: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(1.0)
        datagrams.connect((host, port))
        for number in range(ROUND_TRIPS):
            start = time.perf_counter()
            datagrams.send(number.to_bytes(4, "little"))
            try:
                while datagrams.recv(2048) != number.to_bytes(4, "little"):
                    pass
            except TimeoutError:
                continue
            times.append((time.perf_counter() - start) * 1e3)
    return times, ROUND_TRIPS - len(times)


def rate(host: str, port: int, megabytes: int, up: bool) -> float:
    """Megabytes per second of one connection, slow start included."""
    count = megabytes * 1_000_000
    with socket.create_connection((host, port)) as connection:
        start = time.perf_counter()
        connection.sendall(f"{-count if up else count:16d}".encode())
        if up:
            _send(connection, count)
            connection.recv(1)
        else:
            _receive(connection, count)
        return megabytes / (time.perf_counter() - start)


def main() -> None:
    what, address = sys.argv[1:3]
    host, _, port = address.rpartition(":")
    if what == "serve":
        serve(host, int(port))
        return
    megabytes = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    times, lost = round_trips(host, int(port))
    figures = {
        "rtt_ms": [min(times), statistics.median(times), max(times)] if times else [],
        "lost": lost,
        "up_mb_s": rate(host, int(port), megabytes, up=True) if megabytes else 0.0,
        "down_mb_s": rate(host, int(port), megabytes, up=False) if megabytes else 0.0,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
