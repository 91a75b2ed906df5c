import json
import os
import subprocess
import sys
from pathlib import Path as File

import pytest
from bench.netlab import Path, WideArea, missing
from bench.netlab.namespaces import ip, name_of

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

ROOT = File(__file__).parents[2]
PROBE = [sys.executable, "-m", "bench.netlab.probe"]


def measure(net: WideArea, there: str, here: str, megabytes: int = 0) -> dict:
    address = f"{net.address(there)}:7000"
    served = net.start(there, [*PROBE, "serve", address], cwd=ROOT, stdout=subprocess.PIPE)
    served.stdout.readline()
    done = net.run(
        here,
        [*PROBE, "measure", address, str(megabytes)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=50,
    )
    served.stdout.close()
    return json.loads(done.stdout)


def test_round_trips_take_twice_the_delay_and_bulk_passes_both_ways():
    with WideArea(["gateway", "a", "b"], delay_ms=5, jitter_ms=1) as net:
        figures = measure(net, "a", "gateway", megabytes=20)
    least, median, _ = figures["rtt_ms"]
    assert least >= 10
    assert median < 14
    assert figures["lost"] == 0
    assert min(figures["up_mb_s"], figures["down_mb_s"]) > 20


def test_a_pair_may_have_a_path_of_its_own():
    with WideArea(["a", "b", "c"], delay_ms=1, paths={("c", "a"): Path(delay_ms=20)}) as net:
        assert measure(net, "c", "a")["rtt_ms"][0] >= 40
        assert measure(net, "b", "a")["rtt_ms"][1] < 20


def test_a_lossy_path_loses_packets_and_tcp_recovers():
    with WideArea(["a", "b"], delay_ms=1, loss=0.03) as net:
        figures = measure(net, "b", "a", megabytes=1)
    assert 1 <= figures["lost"] <= 20
    assert figures["up_mb_s"] > 0


def test_quic_passes_in_bursts_over_a_lossy_path():
    node = [sys.executable, "-m", "tests.namespaces.node", "iroh"]
    pipes = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with WideArea(["a", "b"], delay_ms=2, loss=0.005) as net:
        there = net.start("b", [*node, f"{net.address('b')}:7000"], **pipes)
        here = net.start("a", [*node, f"{net.address('a')}:7000"], **pipes)
        address = json.loads(there.stdout.readline())["address"]
        here.stdout.readline()
        here.stdin.write(f"dial {address}\n")
        here.stdin.flush()
        assert json.loads(here.stdout.readline())["same"]


def test_a_cut_place_hears_nothing_until_it_is_healed():
    with WideArea(["a", "b"]) as net:
        command = ["bash", "-c", f"exec 3<>/dev/tcp/{net.address('b')}/7000"]
        assert measure(net, "b", "a")["lost"] == 0
        net.cut("b")
        with pytest.raises(subprocess.TimeoutExpired):
            net.run("a", command, timeout=0.5)
        net.heal("b")
        net.run("a", command, timeout=10, check=True)


def test_nothing_is_left_behind_even_after_a_failure():
    started = []

    def fail() -> None:
        with WideArea(["a", "b"]) as net:
            started.append(net.start("a", ["sleep", "60"]))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert started[0].returncode is not None
    assert name_of("") not in ip("netns", "list")


def test_what_a_killed_process_left_is_removed_by_the_next():
    script = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from bench.netlab import WideArea\n"
        "net = WideArea(['a', 'b']).__enter__()\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    killed.wait()
    assert f"unisono-{killed.pid}-" in ip("netns", "list")
    with WideArea(["a", "b"]):
        assert f"unisono-{killed.pid}-" not in ip("netns", "list")
        assert f"unisono-{os.getpid()}-" in ip("netns", "list")


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_names_must_differ_and_be_two(names):
    with pytest.raises(ValueError, match="different names"):
        WideArea(names)


def test_a_path_to_nowhere_is_refused():
    with pytest.raises(ValueError, match="not there"):
        WideArea(["a", "b"], paths={("a", "z"): Path()})
