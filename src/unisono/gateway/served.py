"""The models that a gateway offers, by every name a client may use for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unisono.errors import ConfigurationError, RequestError
from unisono.types import ModelId, is_hex

if TYPE_CHECKING:
    # Only its type: a gateway starts without loading what models need.
    from unisono.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model behind the gateway."""

    name: str
    id: ModelId
    tokenizer: Tokenizer
    context_length: int
    """Positions of prompt and answer together."""
    layer_count: int
    """Readiness and availability ask who holds each of these layers."""
    aliases: tuple[str, ...] = ()
    row_bytes: int | None = None
    """Bytes of a row between two nodes, where it is known."""

    def __post_init__(self) -> None:
        if not is_hex(self.id, 32):
            raise ConfigurationError(
                f"the model id of '{self.name}' is '{self.id}': expected 64 lowercase hex digits"
            )
        if self.context_length < 2 or self.layer_count < 1:
            raise ConfigurationError(
                f"'{self.name}' has context length {self.context_length} and {self.layer_count} "
                "layers: expected at least 2 and 1"
            )


class ServedModels:
    """Finds a model by its name, an alias or its id."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """Raises ConfigurationError if there is no model or two share a name."""
        if not models:
            raise ConfigurationError("a gateway needs at least one model to serve")
        self._models = tuple(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in models:
            for name in (model.name, *model.aliases, model.id):
                if self._by_name.setdefault(name, model) is not model:
                    raise ConfigurationError(
                        f"'{name}' names two served models: give each its own names and aliases"
                    )

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def find(self, name: str) -> ServedModel:
        """The model that goes by `name`.

        Raises:
            RequestError: none does; its code is `model_not_found`.
        """
        model = self._by_name.get(name)
        if model is None:
            names = ", ".join(f"'{each.name}'" for each in self._models)
            raise RequestError(
                f"The model '{name[:200]}' does not exist here; this gateway serves {names}",
                param="model",
                code="model_not_found",
            )
        return model
