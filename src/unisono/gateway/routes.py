"""The HTTP routes.

Where the receipts are: the header `x-unisono-receipt` names one per choice (comma between
choices). A stream's headers go out before its receipts exist: there the ids are good once the
choice has ended, and the chunk that has its `finish_reason` repeats the id in
`unisono.receipt`, or says null if the hops did not sign. `GET /v1/receipts/ID` returns the
receipt.

What the headers say of the network (also of streams, and of errors of the network) is in
`dispatch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from unisono.gateway.errors import BodyTooLarge, BodyTooSlow, Closing, NotFound
from unisono.gateway.interruption import Interruption, interruption
from unisono.gateway.race import Overtaken, unless
from unisono.gateway.replies import ChatFormat, Format, TextFormat, collect
from unisono.gateway.requests import Ask, read_chat, read_text
from unisono.gateway.schemas import ModelCard, ModelList
from unisono.gateway.served import ServedModel, ServedModels
from unisono.gateway.service import GatewayService
from unisono.gateway.settings import GatewaySettings
from unisono.gateway.sources import Origin
from unisono.gateway.streaming import EventStream

RECEIPT_HEADER = "x-unisono-receipt"
JSON = "application/json"
CLIENT_GONE = 499
"""What nginx calls it; nobody is left to read it, but it is counted."""
LARGE_BODY = 64 << 10
"""Bytes above which tokenizing would hold up other answers, so a thread does it."""


def service_of(request: Request) -> GatewayService:
    """The gateway that an application was made for."""
    service: GatewayService = request.app.state.gateway
    return service


def set_headers(request: Request, headers: dict[str, str]) -> None:
    """Note headers that the response gets if the request fails."""
    request.state.error_headers = headers


async def _authenticate(request: Request) -> None:
    # not a plain function: those are called in a thread of a pool
    service_of(request).keys.check(request.headers.get("authorization"))


open_routes = APIRouter()
"""For machines that watch the gateway; they need no key."""
api_routes = APIRouter(prefix="/v1", dependencies=[Depends(_authenticate)])


@open_routes.get("/healthz")
async def healthz() -> Response:
    """200: the process is up."""
    return PlainTextResponse("ok\n")


@open_routes.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 if every layer of every served model has a live holder, or a fallback stands in that
    needs no node; else 503. Says what is missing."""
    service = service_of(request)
    if service.closing.is_set():
        return PlainTextResponse("shutting down\n", 503)
    reason = service.not_ready()
    if reason is None:
        return PlainTextResponse("ready\n")
    if service.stands_in is None:
        return PlainTextResponse(f"{reason}\n", 503)
    return PlainTextResponse(f"ready by fallback to {service.stands_in}: {reason}\n")


@open_routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(
        service_of(request).exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


@api_routes.get("/models")
async def list_models(request: Request) -> Response:
    """OpenAI's list of models."""
    service = service_of(request)
    return _json(ModelList([_card(model, service) for model in service.models]))


@api_routes.get("/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    """One model, by name, alias or id."""
    service = service_of(request)
    return _json(_card(service.models.find(name), service))


@api_routes.get("/network")
async def network(request: Request) -> Response:
    """The live map: see `network_map.NetworkMap`."""
    return _json(service_of(request).map())


@api_routes.get("/payments")
async def payments(request: Request) -> Response:
    """What this gateway paid to nodes, channel by channel."""
    return _json(service_of(request).statement())


@api_routes.get("/sla")
async def sla(request: Request) -> Response:
    """What nodes and this gateway promise and keep: see `sla.ServiceReport`."""
    return _json(service_of(request).service_report())


@api_routes.get("/receipts/{name}")
async def receipt(request: Request, name: str) -> Response:
    """A receipt as `verification.receipt.from_json` reads it."""
    stored = await service_of(request).receipts.get(name)
    if stored is None:
        raise NotFound(
            f"There is no receipt '{name[:80]}': it was never made here, or is too old to be kept"
        )
    return Response(stored, media_type=JSON)


@api_routes.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions."""
    return await _answer(request, read_chat, ChatFormat)


@api_routes.post("/completions")
async def completions(request: Request) -> Response:
    """OpenAI's (legacy) text completions."""
    return await _answer(request, read_text, TextFormat)


async def _answer(
    request: Request,
    read: Callable[[bytes, ServedModels, GatewaySettings], Ask],
    form_of: Callable[[Ask, Origin, int], Format],
) -> Response:
    service = service_of(request)
    try:
        body = await _body(request, service)
    except ClientDisconnect:
        return _client_gone(service)
    if len(body) > LARGE_BODY:
        ask = await asyncio.to_thread(read, body, service.models, service.settings)
    else:
        ask = read(body, service.models, service.settings)
    generation = service.generation(ask)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(generation.close)
        try:
            try:
                await unless(interruption(request.receive, service.closing), generation.start())
            finally:
                set_headers(request, generation.headers())
            form = form_of(generation.ask, generation.origin, int(service.clock.now()))
            if ask.stream:
                cleanup.pop_all()  # the stream closes the generation when it ends
                stream = EventStream(generation, form, service)
                stream.headers.update(generation.headers())
                stream.headers[RECEIPT_HEADER] = ",".join(generation.receipt_ids)
                return stream
            choices = await unless(
                interruption(request.receive, service.closing), collect(generation)
            )
        except Overtaken as stop:
            if stop.event is Interruption.GONE:
                return _client_gone(service)
            raise Closing("The gateway is shutting down: try another one") from None
    response = _json(form.whole(choices))
    response.headers.update(generation.headers())
    receipts = [choice.receipt for choice in choices if choice.receipt is not None]
    if receipts:
        response.headers[RECEIPT_HEADER] = ",".join(receipts)
    return response


async def _body(request: Request, service: GatewayService) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: it has more bytes than the settings allow.
        BodyTooSlow: it did not arrive in the time that they allow.
        ClientDisconnect: the client left while sending.
    """
    seconds = service.settings.body_seconds
    try:
        return await unless(
            service.clock.sleep(seconds), _receive(request, service.settings.max_body_bytes)
        )
    except Overtaken:
        # What still comes is not read: the connection cannot serve another request.
        set_headers(request, {"connection": "close"})
        raise BodyTooSlow(
            f"The body did not arrive within {seconds:g} seconds: send it faster, or less"
        ) from None


async def _receive(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        # A client reads the refusal only after it has sent its body: let it, within reason.
        elif size > 8 * limit:
            break
    if size > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes: send less")
    return b"".join(chunks)


def _client_gone(service: GatewayService) -> Response:
    service.metrics.disconnects.inc()
    return Response(status_code=CLIENT_GONE)


def _card(model: ServedModel, service: GatewayService) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=service.started,
        context_length=model.context_length,
        aliases=model.aliases,
        model_hash=model.id,
    )


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)
