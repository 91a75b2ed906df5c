"""The client of a gateway, on streams as gateways send them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from unisono.cli.client import GatewayClient


def streaming(monkeypatch: pytest.MonkeyPatch, *chunks: dict[str, Any]) -> None:
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    original = httpx.Client
    monkeypatch.setattr(
        "unisono.cli.client.httpx.Client",
        lambda **options: original(
            transport=httpx.MockTransport(lambda request: httpx.Response(200, text=body))
        ),
    )


@pytest.mark.parametrize("note", [{"receipt": "r"}, {"receipt": "r", "verified": False}])
def test_the_last_piece_says_whether_the_answer_can_be_verified(
    monkeypatch: pytest.MonkeyPatch, note: dict[str, Any]
) -> None:
    streaming(
        monkeypatch,
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "Hi"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "unisono": note},
    )
    with GatewayClient("http://here") as client:
        pieces = list(client.chat({}))
    assert [piece.text for piece in pieces] == ["", "Hi", ""]
    assert (pieces[-1].receipt, pieces[-1].finish_reason) == ("r", "stop")
    assert pieces[-1].verified is ("verified" not in note)
    assert all(piece.verified for piece in pieces[:-1])
