"""What a gateway falls back on, as an operator writes it, and where the keys for it are.

    model:NAME              another model of the catalog that the network serves
    replica                 a replica on this machine, made by the composer
    remote:MODEL@URL        an endpoint that speaks OpenAI's interface, and its name of the model

A key is named, never written: `env:VARIABLE` or `file:PATH`, for one host as `HOST=env:VARIABLE`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from unisono.errors import ConfigurationError, RequestError
from unisono.gateway.completion import Engine
from unisono.gateway.remote import RemoteEndpoint, RemoteLimits
from unisono.gateway.served import ServedModels
from unisono.gateway.sources import ModelSource, NetworkSource, RemoteSource
from unisono.gateway.watch import Watch
from unisono.routing.network import Network

MAX_KEY_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class ModelFallback:
    """Another model of the catalog that the network serves."""

    name: str


@dataclass(frozen=True, slots=True)
class ReplicaFallback:
    """A network of its own that holds the same models whole."""

    network: Network


@dataclass(frozen=True, slots=True)
class RemoteFallback:
    """An endpoint outside the network; its answers cannot be verified."""

    url: str
    model: str
    key: str | None = dataclasses.field(default=None, repr=False)
    limits: RemoteLimits | None = None


Fallback = ModelFallback | ReplicaFallback | RemoteFallback


def parse_fallbacks(
    chain: Sequence[str], keys: Sequence[str] = (), replica: Network | None = None
) -> tuple[Fallback, ...]:
    """The fallbacks that an operator wrote, in their order, with their keys read.

    Args:
        chain: `model:NAME`, `replica` or `remote:MODEL@URL` each.
        keys: `[HOST[:PORT]=]env:VARIABLE` or `[HOST[:PORT]=]file:PATH` each; without a host it is
            for every endpoint that has none of its own.
        replica: what `replica` stands for.

    Raises:
        ConfigurationError: a fallback or a key cannot be read; never quotes a key.
    """
    by_host = dict(_read_key(each) for each in keys)
    used: set[str] = set()
    parsed: list[Fallback] = []
    for text in chain:
        kind, _, rest = text.partition(":")
        if kind == "model" and rest:
            parsed.append(ModelFallback(rest))
        elif text == "replica":
            if replica is None:
                raise ConfigurationError(
                    "the fallback 'replica' needs a replica on this machine, and none runs"
                )
            parsed.append(ReplicaFallback(replica))
        elif kind == "remote" and "@http" in rest:
            # The last one: a model's name may hold an @, a host cannot follow one twice.
            at = rest.rindex("@http")
            model, url = rest[:at], rest[at + 1 :]
            host = _host(url)
            name = host if host in by_host else ""
            used.add(name)
            parsed.append(RemoteFallback(url, model, by_host.get(name)))
        else:
            raise ConfigurationError(
                f"'{text}' is no fallback: expected model:NAME, replica, or remote:MODEL@URL such "
                "as remote:llama-3.1-8b@https://api.example.com/v1"
            )
    unused = ", ".join(sorted(host or "every endpoint" for host in by_host.keys() - used))
    if unused:
        raise ConfigurationError(
            f"a key for {unused} is given and no remote fallback uses it: correct its host, "
            "written as in the URL, or leave it out"
        )
    return tuple(parsed)


def wants_replica(chain: Sequence[str]) -> bool:
    """Whether the composer must make a replica before `parse_fallbacks`."""
    return "replica" in chain


def fallback_models(chain: Sequence[str]) -> tuple[str, ...]:
    """The models that must be served too, by the names that the operator wrote."""
    names = (text.removeprefix("model:") for text in chain if text.startswith("model:"))
    return tuple(dict.fromkeys(name for name in names if name))


def source_of(
    fallback: Fallback, engine: Engine, models: ServedModels, watch: Watch
) -> ModelSource | NetworkSource | RemoteSource:
    """The fallback, ready to be asked.

    Raises:
        ConfigurationError: it names a model that is not served, or its URL is none.
    """
    if isinstance(fallback, ReplicaFallback):
        return NetworkSource(dataclasses.replace(engine, network=fallback.network), replica=True)
    if isinstance(fallback, RemoteFallback):
        endpoint = RemoteEndpoint(
            fallback.url, fallback.model, engine.clock, key=fallback.key, limits=fallback.limits
        )
        return RemoteSource(engine, endpoint)
    try:
        return ModelSource(engine, models.find(fallback.name), watch)
    except RequestError as error:
        raise ConfigurationError(
            f"the fallback model '{fallback.name}' is not served by this gateway: {error}"
        ) from error


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"a fallback's URL is none: {error}") from error
    return parsed.host if parsed.port is None else f"{parsed.host}:{parsed.port}"


def _read_key(text: str) -> tuple[str, str]:
    """Host (empty for all) and key of one `[HOST=]env:VARIABLE` or `[HOST=]file:PATH`."""
    host, found, where = text.partition("=")
    if not found or host.startswith(("env:", "file:")):
        host, where = "", text
    kind, _, name = where.partition(":")
    if kind == "env" and name:
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigurationError(f"the variable {name} holds no key: set it, or name another")
    elif kind == "file" and name:
        try:
            with Path(name).expanduser().open("rb") as file:
                data = file.read(MAX_KEY_BYTES + 1)
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the key in {name}: {error.strerror}; name a file that this user "
                "may read"
            ) from error
        key = data.decode(errors="replace").strip()
    else:
        # The text is not repeated: somebody may have written the key itself.
        raise ConfigurationError(
            "a fallback's key is named as env:VARIABLE, file:PATH, or HOST=env:VARIABLE for one "
            "host; the key itself must not be written there"
        )
    if not key.isascii() or not key.isprintable() or " " in key or len(key) > MAX_KEY_BYTES:
        raise ConfigurationError(
            f"what {kind}:{name} holds is no key: expected one word of printable ASCII characters"
        )
    return host, key
