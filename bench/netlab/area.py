"""Places of their own network namespace, joined by delayed, jittery, lossy paths."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File
from typing import Any

from bench.netlab.lane import Path
from bench.netlab.namespaces import inside
from bench.netlab.places import Places, end

_CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"


class WideArea(Places):
    """Namespaces that reach each other over one process; a context manager.

    Args:
        names: the places, such as `["gateway", "a", "b"]`; each has one address.
        delay_ms, jitter_ms, loss, mbit: of the path between every two; see `Path`.
        paths: other paths for some pairs of names, in any order.
        congestion: TCP's congestion control at every place, such as `reno`; None leaves what this
            machine uses. It decides how much loss costs: say which when you report figures.
        seed: of jitter and loss.

    Raises:
        RuntimeError: namespaces cannot be made here; see `missing`.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
        loss: float = 0.0,
        mbit: float = 0.0,
        paths: Mapping[tuple[str, str], Path] | None = None,
        congestion: str | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__(names)
        self._path = Path(delay_ms, jitter_ms, loss, mbit)
        self._paths = {"|".join(sorted(pair)): path for pair, path in (paths or {}).items()}
        known = {"|".join(sorted(pair)) for pair in itertools.combinations(self.names, 2)}
        if unknown := self._paths.keys() - known:
            raise ValueError(f"paths between places that are not there: {sorted(unknown)}")
        self._congestion = congestion
        self._seed = seed
        self._link: subprocess.Popen[str] | None = None

    def join(self) -> None:
        if self._congestion is not None:
            for namespace in self.namespaces.values():
                inside(namespace, "sh", "-c", f"echo {self._congestion} > {_CONGESTION}")
        self._link = subprocess.Popen(
            [sys.executable, str(File(__file__).with_name("link.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._tell(
            {
                "names": self.names,
                "namespaces": list(self.namespaces.values()),
                "addresses": [self.address(name) for name in self.names],
                "path": asdict(self._path),
                "paths": {pair: asdict(path) for pair, path in self._paths.items()},
                "seed": self._seed,
            },
            "ready",
        )

    def part(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            assert link.stdin is not None
            link.stdin.close()
            end(link)

    def address(self, name: str) -> str:
        """The IPv4 address of a place."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def congestion(self) -> str:
        """TCP's congestion control at the places."""
        return inside(self.namespaces[self.names[0]], "cat", _CONGESTION).strip()

    def cut(self, name: str) -> None:
        """Let nothing pass to or from a place, silently, until `heal`."""
        self._tell({"name": name, "cut": True}, "done")

    def heal(self, name: str) -> None:
        """Undo `cut`."""
        self._tell({"name": name, "cut": False}, "done")

    def _tell(self, what: dict[str, Any], answer: str) -> None:
        if self._link is None or self._link.stdin is None or self._link.stdout is None:
            raise RuntimeError("this area is not open: use it as a context manager")
        self._link.stdin.write(json.dumps(what) + "\n")
        self._link.stdin.flush()
        if self._link.stdout.readline().strip() != answer:
            raise RuntimeError("the process that carries packets failed; see its errors above")
