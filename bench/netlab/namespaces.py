"""Network namespaces that this process owns, and removal of those whose owner is gone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path as File

_NAME = re.compile(r"unisono-(\d+)-[a-z0-9.-]+")


def missing(*programs: str) -> str | None:
    """Why namespaces cannot be made here, as one sentence; None if they can.

    Args:
        programs: what is needed besides `ip`, such as `nft`.
    """
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", *programs):
        if shutil.which(program) is None:
            return f"network namespaces need the program `{program}`"
    if not os.path.exists("/dev/net/tun"):
        return "network namespaces need /dev/net/tun"
    probe = name_of(f"probe{time.monotonic_ns()}")
    try:
        ip("netns", "add", probe)
    except RuntimeError as error:
        return f"network namespaces cannot be made here: {error}"
    remove([probe])
    return None


def name_of(place: str) -> str:
    """The namespace of a place of this process."""
    return f"unisono-{os.getpid()}-{place}"


def add(namespaces: list[str]) -> None:
    """Make namespaces with a loopback device and IPv4 only."""
    sweep()
    for namespace in namespaces:
        ip("netns", "add", namespace)
        inside(namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        ip("-n", namespace, "link", "set", "lo", "up")


def remove(namespaces: list[str]) -> None:
    """Remove namespaces that exist; never raises."""
    for namespace in namespaces:
        with contextlib.suppress(RuntimeError):
            ip("netns", "del", namespace)


def sweep() -> None:
    """Remove namespaces that a killed process left behind."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0] if line.strip() else ""
        found = _NAME.fullmatch(name)
        if found and not File(f"/proc/{found.group(1)}").exists():
            remove([name])


def inside(namespace: str, *command: str) -> str:
    """Run a short command in a namespace; what it printed.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    return ip("netns", "exec", namespace, *command)


def ip(*arguments: str, stdin: str | None = None) -> str:
    """Run `ip`; what it printed.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, input=stdin)
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise RuntimeError(f"`ip {' '.join(arguments)}` failed: {said}")
    return done.stdout
