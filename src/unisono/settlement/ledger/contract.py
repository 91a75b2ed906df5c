"""Calls of a contract as bytes, and its answers and events as values, by its ABI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_hash.auto import keccak

from unisono.errors import ConfigurationError, LedgerUnreachable
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.ledger import Log
from unisono.types import EvmAddress

Abi = Iterable[dict[str, Any]]


class Contract:
    """A contract's address and interface. Values are those of `eth_abi`: int, bytes, str, tuple;
    addresses come back checksummed."""

    def __init__(self, address: EvmAddress, abi: Abi) -> None:
        self.address = address
        self._functions: dict[str, dict[str, Any]] = {}
        self._events: dict[bytes, dict[str, Any]] = {}
        for item in abi:
            if item.get("type") == "function":
                # Vyper's default arguments give one name several forms; the longest has all.
                known = self._functions.get(item["name"])
                if known is None or len(known["inputs"]) < len(item["inputs"]):
                    self._functions[item["name"]] = item
            elif item.get("type") == "event":
                self._events[keccak(_signature(item).encode())] = item

    def encode(self, function: str, *arguments: object) -> bytes:
        """The data of a message that calls a function.

        Raises:
            ConfigurationError: there is no such function, or the arguments do not fit it.
        """
        item = self._function(function)
        return keccak(_signature(item).encode())[:4] + encode_arguments(
            item["inputs"], arguments, f"{function} of {self.address}"
        )

    def decode(self, function: str, data: bytes) -> Any:
        """What a call returned: one value, or a tuple of several or none.

        Raises:
            LedgerUnreachable: the bytes are not of the function's type; is it another contract?
        """
        outputs = self._function(function)["outputs"]
        try:
            values = decode([_type(output) for output in outputs], data)
        except (DecodingError, OverflowError) as error:
            raise LedgerUnreachable(
                f"{function} of {self.address} answered with {len(data)} bytes that are not its "
                "type: does the deployment file belong to this chain?"
            ) from error
        shaped = tuple(_shaped(o, v) for o, v in zip(outputs, values, strict=True))
        return shaped[0] if len(shaped) == 1 else shaped

    def topic(self, event: str) -> bytes:
        """The first topic of an event's logs, by which they are found.

        Raises:
            ConfigurationError: there is no such event.
        """
        for topic, item in self._events.items():
            if item["name"] == event:
                return topic
        raise ConfigurationError(f"the contract {self.address} has no event '{event}'")

    def event(self, log: Log) -> tuple[str, dict[str, Any]] | None:
        """An event's name and fields, or None if the log is not of this contract's events.

        Raises:
            LedgerUnreachable: it is one by its topic, and its bytes are not.
        """
        item = self._events.get(log.topics[0]) if log.topics else None
        if item is None or log.address != self.address:
            return None
        indexed = [field for field in item["inputs"] if field["indexed"]]
        plain = [field for field in item["inputs"] if not field["indexed"]]
        try:
            values = dict(
                zip(
                    (field["name"] for field in [*indexed, *plain]),
                    (
                        *(
                            decode([_type(field)], topic)[0]
                            for field, topic in zip(indexed, log.topics[1:], strict=True)
                        ),
                        *decode([_type(field) for field in plain], log.data),
                    ),
                    strict=True,
                )
            )
        except (DecodingError, OverflowError, ValueError) as error:
            raise LedgerUnreachable(
                f"an event {item['name']} of {self.address} has not the form of its type"
            ) from error
        return item["name"], {
            field["name"]: _shaped(field, values[field["name"]]) for field in item["inputs"]
        }

    def _function(self, name: str) -> dict[str, Any]:
        try:
            return self._functions[name]
        except KeyError:
            raise ConfigurationError(
                f"the contract {self.address} has no function '{name}'; it has "
                f"{', '.join(sorted(self._functions))}"
            ) from None


def encode_arguments(inputs: list[dict[str, Any]], arguments: tuple[object, ...], to: str) -> bytes:
    """Arguments in the ABI's form.

    Raises:
        ConfigurationError: they do not fit; `to` names what they were for.
    """
    kinds = [_type(field) for field in inputs]
    try:
        if len(kinds) != len(arguments):
            raise ValueError(f"{len(arguments)} arguments, not {len(kinds)}")
        return encode(kinds, list(arguments))
    except (EncodingError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{to} takes ({', '.join(kinds)}): {error}") from error


def _signature(item: dict[str, Any]) -> str:
    return f"{item['name']}({','.join(_type(field) for field in item['inputs'])})"


def _type(field: dict[str, Any]) -> str:
    kind: str = field["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_type(part) for part in field['components'])}){kind[5:]}"


def _shaped(field: dict[str, Any], value: Any) -> Any:
    """Addresses checksummed, at any depth of lists; structs stay tuples."""
    kind: str = field["type"]
    if kind.startswith("address"):
        return _addresses(value)
    if kind == "tuple":
        pairs = zip(field["components"], value, strict=True)
        return tuple(_shaped(part, item) for part, item in pairs)
    return value


def _addresses(value: Any) -> Any:
    if isinstance(value, str):
        return parse_address(value)
    return tuple(_addresses(item) for item in cast("tuple[Any, ...]", value))
