"""The HTTP routes.

Where the receipts are: the header `x-unisono-receipt` names one per choice (comma between
choices). A stream's headers go out before its receipts exist: there the ids are good once the
choice has ended, and the chunk that has its `finish_reason` repeats the id in
`unisono.receipt`, or says null if the hops did not sign. `GET /v1/receipts/ID` returns the
receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from unisono.gateway.errors import BodyTooLarge, Closing, NotFound
from unisono.gateway.interruption import Interruption, interruption
from unisono.gateway.race import Overtaken, unless
from unisono.gateway.replies import ChatFormat, Format, TextFormat, collect
from unisono.gateway.requests import Ask, read_chat, read_text
from unisono.gateway.schemas import Listing, ModelCard, ModelList
from unisono.gateway.served import ServedModel, ServedModels
from unisono.gateway.service import GatewayService
from unisono.gateway.settings import GatewaySettings
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


def _authenticate(request: Request) -> None:
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
    """200 if every layer of every served model has a live holder, else 503 and what is missing."""
    service = service_of(request)
    reason = "shutting down" if service.closing.is_set() else service.not_ready()
    return PlainTextResponse(f"{reason or 'ready'}\n", 503 if reason else 200)


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
    """The nodes that routing knows now."""
    return _json(Listing(list(service_of(request).network.nodes())))


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
    form_of: Callable[[Ask, int], Format],
) -> Response:
    service = service_of(request)
    try:
        body = await _body(request, service.settings.max_body_bytes)
    except ClientDisconnect:
        return _client_gone(service)
    if len(body) > LARGE_BODY:
        ask = await asyncio.to_thread(read, body, service.models, service.settings)
    else:
        ask = read(body, service.models, service.settings)
    form = form_of(ask, int(service.clock.now()))
    generation = service.generation(ask)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(generation.close)
        try:
            await unless(interruption(request.receive, service.closing), generation.start())
            if ask.stream:
                cleanup.pop_all()  # the stream closes the generation when it ends
                stream = EventStream(generation, form, service)
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
    receipts = [choice.receipt for choice in choices if choice.receipt is not None]
    if receipts:
        response.headers[RECEIPT_HEADER] = ",".join(receipts)
    return response


async def _body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: it has more than `limit` bytes.
        ClientDisconnect: the client left while sending.
    """
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
