"""`unisono status` on maps as gateways send them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from unisono.cli import status
from unisono.cli.app import app
from unisono.cli.network_view import runs

MODEL = "7b" * 32


def node(number: int, start: int, stop: int, **changes: Any) -> dict[str, Any]:
    return {
        "node": f"{number:064x}"[::-1],
        "address": "memory://here",
        "model": MODEL,
        "layers": {"start": start, "stop": stop},
        "free_positions": 12345,
        "sessions": 2,
        "alive": True,
        "leaving": False,
        "queue": 0,
        "step_us": 0,
        "rtt_us": 0,
        "bandwidth": 0,
        "coordinate": [0, 0, 0, 0],
        "price_in": 0,
        "price_out": 0,
        **changes,
    }


def network(**changes: Any) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            node(1, 0, 6, rtt_us=12_300, bandwidth=12_500_000, step_us=850),
            node(2, 6, 12, alive=False),
            node(3, 6, 12, leaving=True, queue=7),
        ],
        "departed": [node(4, 0, 6)],
        "models": [
            {
                "name": "gemma\x1b[2J",
                "id": MODEL,
                "layers": 14,
                "availability": 0.333,
                "alive": 1,
                "known": 3,
                "holders": [2] * 6 + [1] * 6 + [0] * 2,
                "room": [5] * 14,
                "missing": [{"start": 12, "stop": 14}],
                "trouble": "coverage",
            }
        ],
        "links": [
            {
                "source": f"{1:064x}"[::-1],
                "target": f"{3:064x}"[::-1],
                "rtt_us": 80_000,
                "bandwidth": 0,
                "estimated": True,
            }
        ],
        **changes,
    }


Serve = Callable[..., None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Lets the verb find this map and readiness at any gateway."""
    original = httpx.Client

    def served(shown: Any, ready: int = 200, message: str = "ready\n", sla: Any = None) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/readyz":
                return httpx.Response(ready, text=message)
            if isinstance(shown, Exception):
                raise shown
            if request.url.path == "/v1/sla":
                return httpx.Response(404 if sla is None else 200, json=sla or {})
            return httpx.Response(200, json=shown)

        monkeypatch.setattr(
            "unisono.cli.client.httpx.Client",
            lambda **options: original(transport=httpx.MockTransport(answer)),
        )

    return served


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["status", *arguments])


def test_the_map_shows_nodes_links_coverage_and_availability(serve: Serve) -> None:
    serve(network(), 503, "no live node holds layers 12:14 of 'gemma'\n")
    done = run()
    assert done.exit_code == 1
    lines = done.stdout.splitlines()

    def line(*words: str) -> str:
        return next(each for each in lines if all(word in each for word in words))

    assert line("100000000000…", "0:6", "12.3 ms", "12.5 MB/s", "0.85 ms", "12,345", "alive")
    assert line("200000000000…", "6:12", "unreachable")
    assert line("300000000000…", " 7 ", "leaving")
    assert line("400000000000…", "gone")
    assert line("gemma[2J", "availability 33.3% (1 of 3 nodes answer)", "coverage")
    assert line("layers", "222222111111··")
    assert line("0:6 2 nodes", "6:12 1 node ", "12:14 0 nodes")
    assert line("100000000000…", "300000000000…", "~80 ms")
    assert lines[-1] == "no live node holds layers 12:14 of 'gemma'"
    assert "\x1b[2J" not in done.stdout
    assert "price" not in done.stdout


def levels(**changes: Any) -> dict[str, Any]:
    return {
        "uptime": 987,
        "least_uptime": 950,
        "kept": 2,
        "credits": 1_200,
        "refused": 1,
        "nodes": [{}, {}, {}],
        "gateway": [{"availability": 999, "answered": 1_234, "failed": 1}],
        **changes,
    }


def test_service_levels_are_one_line(serve: Serve) -> None:
    serve(network(), sla=levels())
    lines = " ".join(run().stdout.split())
    assert (
        "service levels uptime 98.7% (least 95.0%), 2 of 3 nodes keep theirs; this gateway 99.9%, "
        "1,234 of 1,235 answers; 0.001200 came back; 1 credits refused"
    ) in lines
    quiet = levels(uptime=None, credits=0, refused=0, gateway=[])
    serve(network(), sla=quiet)
    assert "service levels\n" in run().stdout
    serve(network())
    assert "service levels" not in run().stdout
    assert json.loads(run("--json").stdout)["sla"] is None


def test_convicted_nodes_are_named_with_the_reason(serve: Serve) -> None:
    culprit = network()["data"][0]["node"]
    found = {"node": culprit, "epoch": 7, "kind": "rows_out", "message": "computed other rows"}
    serve(network(convicted=[found]))
    lines = run().stdout.splitlines()
    assert any(culprit[:12] in each and each.rstrip().endswith("convicted") for each in lines)
    assert any("computed other rows" in each for each in lines)
    assert json.loads(run("--json").stdout)["convicted"] == [found]


def test_json_has_everything(serve: Serve) -> None:
    serve(network())
    done = run("--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["ready"] is True
    assert len(report["nodes"]) == 3
    assert len(report["departed"]) == 1
    assert report["links"][0]["rtt_us"] == 80_000
    assert report["models"][0]["coverage"] == [
        {"start": 0, "stop": 6, "nodes": 2},
        {"start": 6, "stop": 12, "nodes": 1},
        {"start": 12, "stop": 14, "nodes": 0},
    ]


def test_a_large_network_is_drawn_in_part(serve: Serve) -> None:
    links = network()["links"] * 30
    serve(network(data=[node(i, 0, 6) for i in range(1, 1001)], links=links, departed=[]))
    done = run()
    assert "and 960 more" in done.stdout
    assert "and 18 more" in done.stdout


def test_an_empty_network_is_drawn_too(serve: Serve) -> None:
    serve(network(data=[], departed=[], links=[]), 503, "nothing\n")
    done = run()
    assert done.exit_code == 1
    assert "Traceback" not in done.output


@pytest.mark.parametrize("shown", [[], {"data": []}, "text", network(models=[{"holders": [1]}])])
def test_what_is_no_map_is_refused_in_one_line(serve: Serve, shown: Any) -> None:
    serve(shown)
    done = run()
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_goes_on_until_ctrl_c_and_outlives_a_gateway_that_is_away(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            serve_now(httpx.ConnectError("refused"))
        elif len(waits) == 2:
            serve_now(network())
        else:
            raise KeyboardInterrupt

    state: list[Any] = [network()]

    def serve_now(shown: Any) -> None:
        state[0] = shown

    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(state[0], Exception):
            raise state[0]
        if request.url.path == "/readyz":
            return httpx.Response(200, text="ready")
        return httpx.Response(200, json=state[0])

    original = httpx.Client
    monkeypatch.setattr(
        "unisono.cli.client.httpx.Client",
        lambda **options: original(transport=httpx.MockTransport(answer)),
    )
    monkeypatch.setattr(status.time, "sleep", sleep)
    done = run("--watch", "--interval", "0.5", *(["--json"] if as_json else []))
    assert done.exit_code == 0
    assert waits == [0.5] * 3
    if as_json:
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        assert [report["ready"] for report in reports] == [True, False, True]
        assert "cannot reach a gateway" in reports[1]["message"]


def test_runs_of_layers_are_those_with_equally_many_holders() -> None:
    assert runs([2, 2, 1, 0, 0, 1]) == [(0, 2, 2), (2, 3, 1), (3, 5, 0), (5, 6, 1)]
    assert runs([]) == []
