"""The models that a gateway serves: the one it is for, and those that it falls back on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from unisono.gateway import ServedModel
from unisono.models.store import ModelStore, StoredModel
from unisono.models.tokenizer import Tokenizer


async def served_models(
    store: ModelStore, model: StoredModel, others: Sequence[str] = ()
) -> list[ServedModel]:
    """`model` and `others` (by any name that `store.ensure` takes), with their tokenizers.

    Raises:
        ModelError: one of them cannot be had or used.
    """
    served = [await _served(model, ())]
    for name in others:
        stored = await asyncio.to_thread(store.ensure, name)
        if all(stored.id != each.id for each in served):
            served.append(await _served(stored, () if name == stored.name else (name,)))
    return served


async def _served(model: StoredModel, aliases: tuple[str, ...]) -> ServedModel:
    tokenizer = await asyncio.to_thread(Tokenizer.from_files, model.tokenizer_files())
    return ServedModel(
        name=model.name,
        id=model.id,
        tokenizer=tokenizer,
        context_length=model.manifest.config.context_length,
        layer_count=model.layer_count,
        aliases=tuple(alias for alias in aliases if alias != model.id),
        row_bytes=4 * model.manifest.config.hidden_size,
    )
