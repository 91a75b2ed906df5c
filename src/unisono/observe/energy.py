"""Electricity that this machine's processors use, where it can be read."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Meter:
    """A start: `joules` tells what was used since."""

    started: float
    counters: dict[Path, int]

    @classmethod
    def start(cls) -> Meter:
        return cls(time.perf_counter(), _counters())

    def joules(self) -> float | None:
        """Of all CPU packages (Linux RAPL) since the start, and of NVIDIA cards at their present
        draw; None where neither can be read."""
        seconds = time.perf_counter() - self.started
        now = _counters()
        used = [
            (now[path] - before) % (_range(path) or 1 << 62)
            for path, before in self.counters.items()
            if path in now
        ]
        watts = _gpu_watts()
        if not used and watts is None:
            return None
        return sum(used) / 1e6 + (watts or 0.0) * seconds


def _counters() -> dict[Path, int]:
    """Microjoules of each package."""
    found: dict[Path, int] = {}
    for zone in sorted(_RAPL.glob("intel-rapl:[0-9]")):
        try:
            found[zone] = int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            continue  # readable by root only on most systems
    return found


def _range(zone: Path) -> int | None:
    """Where a package's counter starts over."""
    try:
        return int((zone / "max_energy_range_uj").read_text()) + 1
    except (OSError, ValueError):
        return None


def _gpu_watts() -> float | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return sum(float(line) for line in done.stdout.split())
    except (subprocess.SubprocessError, ValueError):
        return None
