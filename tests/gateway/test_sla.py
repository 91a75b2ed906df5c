"""`GET /v1/sla`, and what of its answers a gateway counts."""

from __future__ import annotations

from tests.gateway.running import Running, running_gateway
from unisono.errors import CoverageMissing, OfferMissing
from unisono.gateway.sla import ServiceReport, service_report
from unisono.market.service_log import ServiceLog
from unisono.types import NodeId
from unisono.wire.records import LEASE_SECONDS

A, B = NodeId("a" * 64), NodeId("b" * 64)
WINDOW = 600
START = 1_700_000_000 // WINDOW * WINDOW


class Kept:
    """Implements `Levels`."""

    def __init__(self, log: ServiceLog, now: float) -> None:
        self.log, self.now = log, now
        self.ended: list[bool] = []

    def report(self) -> ServiceReport:
        return service_report(self.log, A, self.now)

    def answered(self, good: bool) -> None:
        self.ended.append(good)


def kept() -> Kept:
    log = ServiceLog(None, WINDOW, LEASE_SECONDS, START)
    return Kept(log, START + 100)


def measured(gateway: Running) -> Kept:
    levels = kept()
    gateway.service._levels = levels
    return levels


async def test_the_report_tells_of_each_node_and_of_the_gateway() -> None:
    async with running_gateway() as gateway:
        levels = measured(gateway)
        log = levels.log
        log.heard(B, int((START + LEASE_SECONDS) * 1000), leaving=False, tier=2)
        log.heard(B, int((START + 50 + LEASE_SECONDS) * 1000), leaving=False, tier=2)
        log.session(A, True, START)
        log.session(A, False, START)
        log.settled(START // WINDOW - 1, B, "granted", 7)
        told = (await gateway.http.get("/v1/sla")).json()
    assert told["object"] == "sla"
    assert told["window_seconds"] == WINDOW
    # silent from 15 to 50, and since 65
    (node,) = told["nodes"]
    assert (node["node"], node["tier"], node["promised_uptime"]) == (B, "assured", 990)
    newest, before = node["windows"]
    assert (newest["down_seconds"], newest["over"]) == (35 + 35, False)
    assert newest["uptime"] == told["uptime"] == told["least_uptime"] == 883
    assert not newest["kept"]
    assert (before["outcome"], before["credit"]) == ("granted", 7)
    assert (told["credits"], told["refused"], told["kept"]) == (7, 0, 0)
    (own,) = told["gateway"]
    assert own == {
        "start": START,
        "over": False,
        "availability": 1000,
        "answered": 1,
        "failed": 1,
    }


async def test_a_gateway_that_measures_nothing_says_so() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.get("/v1/sla")
    assert reply.status_code == 404
    assert "measures no service levels" in reply.text


async def test_the_report_is_for_those_with_a_key() -> None:
    async with running_gateway(api_keys=("secret",)) as gateway:
        measured(gateway)
        assert (await gateway.http.get("/v1/sla")).status_code == 401


async def test_answers_count_by_how_they_end_and_refused_requests_do_not() -> None:
    async with running_gateway() as gateway:
        levels = measured(gateway)
        assert (await gateway.chat()).status_code == 200
        assert (await gateway.chat(n=2)).status_code == 200
        assert (await gateway.chat(temperature=-1)).status_code == 400
        assert levels.ended == [True] * 3


async def test_an_answer_that_breaks_or_finds_nobody_counts_against_the_gateway() -> None:
    async with running_gateway() as gateway:
        levels = measured(gateway)
        gateway.network.open_error = CoverageMissing("nobody holds layers 2:4")
        assert (await gateway.chat()).status_code >= 500
        assert levels.ended == [False]
        gateway.network.open_error = OfferMissing("the cheapest chain asks for more")
        assert (await gateway.chat()).status_code == 402
        assert levels.ended == [False]
