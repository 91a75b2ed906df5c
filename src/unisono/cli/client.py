"""A small client of a gateway's HTTP interface."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
import msgspec

from unisono.errors import UnisonoError, WireError

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 120.0


class Piece(msgspec.Struct, frozen=True):
    """Some text of an answer; the last one names the receipt."""

    text: str
    receipt: str | None = None
    finish_reason: str | None = None
    verified: bool = True
    """False in the last piece of an answer that a fallback fetched from outside the network."""
    quorum: str = ""
    """In the last piece of an answer of a quorum: who agreed."""


class GatewayClient:
    """Use it as a context manager."""

    def __init__(self, base_url: str, api_key: str | None = None, *, local: bool = False) -> None:
        """`base_url` with or without `/v1`. `local`: a gateway of this process, which no proxy
        of the environment leads to."""
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=not local,
        )

    def __enter__(self) -> GatewayClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def text(self, body: dict[str, Any]) -> Iterator[Piece]:
        """Stream `/v1/completions`.

        Raises:
            WireError: the gateway cannot be reached, or the stream broke.
            UnisonoError: it refused, or the answer failed.
        """
        for choice, note in self._stream("/v1/completions", body):
            yield _piece(choice.get("text"), choice, note)

    def chat(self, body: dict[str, Any]) -> Iterator[Piece]:
        """Stream `/v1/chat/completions`; raises as `text` does."""
        for choice, note in self._stream("/v1/chat/completions", body):
            delta = cast("dict[str, Any]", choice.get("delta") or {})
            yield _piece(delta.get("content"), choice, note)

    def receipt(self, name: str) -> bytes:
        """A receipt as JSON; raises as `text` does."""
        return self.get(f"/v1/receipts/{name}").content

    def models(self) -> list[str]:
        """The names of the models that are served; raises as `text` does."""
        return [str(card["id"]) for card in self.get("/v1/models").json()["data"]]

    def get(self, path: str, *, accept: tuple[int, ...] = ()) -> httpx.Response:
        """One page; a status of 400 or more that is not in `accept` is an error."""
        with self._reaching():
            response = self._http.get(self.url + path)
        if response.status_code >= 400 and response.status_code not in accept:
            raise UnisonoError(_refusal(response))
        return response

    def _stream(
        self, path: str, body: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        with (
            self._reaching(),
            self._http.stream("POST", self.url + path, json=body | {"stream": True}) as response,
        ):
            if response.status_code >= 400:
                response.read()
                raise UnisonoError(_refusal(response))
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if not line.startswith("data: "):
                    continue
                event = cast("dict[str, Any]", msgspec.json.decode(line[6:]))
                if "error" in event:
                    raise UnisonoError(f"the answer failed: {event['error']['message']}")
                note = cast("dict[str, Any]", event.get("unisono") or {})
                for choice in event.get("choices") or ():
                    yield choice, note
        raise WireError(f"the gateway at {self.url} ended the stream before the answer was whole")

    @contextmanager
    def _reaching(self) -> Generator[None]:
        try:
            yield
        except httpx.InvalidURL as error:
            raise WireError(f"'{self.url}' is not an address: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise WireError(
                f"cannot reach a gateway at {self.url}: {error}; is it running? "
                "'unisono up' starts one"
            ) from error
        except httpx.HTTPError as error:
            raise WireError(
                f"the connection to the gateway at {self.url} broke: "
                f"{error or type(error).__name__}"
            ) from error
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise WireError(f"{self.url} does not answer like a gateway: {error}") from error


def _piece(text: object, choice: dict[str, Any], note: dict[str, Any]) -> Piece:
    return Piece(
        str(text or ""),
        note.get("receipt"),
        choice.get("finish_reason"),
        note.get("verified") is not False,
        _quorum(note.get("quorum")),
    )


def _quorum(note: dict[str, Any] | None) -> str:
    if note is None:
        return ""
    parts = [f"{note.get('agreed')} of {note.get('asked')} chains agree"]
    for chain in note.get("chains") or ():
        if chain.get("outcome") != "agreed":
            nodes = ", ".join(f"{node[:16]}…" for node in chain.get("nodes") or ())
            parts.append(f"{chain.get('outcome')}: {nodes} ({chain.get('reason', '')})")
    return "; ".join(parts)


def _refusal(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text.strip()[:200] or response.reason_phrase
    return f"{response.url} answered {response.status_code}: {message}"
