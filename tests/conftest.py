"""Small random models, converted once, for every test that runs a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from unisono.models.store import ModelStore, StoredModel


@dataclass(frozen=True)
class TinyModels:
    """A store with two models that have nothing in common but their size."""

    store: ModelStore
    gemma: StoredModel
    """Six layers with windows of 8, query/key norms, post norms, GeGLU, a tied head."""
    llama: StoredModel
    """Four layers, SwiGLU, Llama 3's rotary scaling, a head of its own."""
    folders: dict[str, Path]
    """Name of the field → the checkpoint that it was converted from."""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    # Late, since transformers takes seconds to load and most tests do without.
    from tests.models import tiny

    root = tmp_path_factory.mktemp("tiny")
    shapes = {"gemma": ("gemma3", 6), "llama": ("llama", 4)}
    folders: dict[str, Path] = {}
    for name, (family, layers) in shapes.items():
        model = tiny.build(family, num_hidden_layers=layers, max_position_embeddings=1024)
        folders[name] = tiny.save(model, root / f"tiny-{name}")
    store = ModelStore(root / "store")
    stored = {name: store.ensure(str(folder)) for name, folder in folders.items()}
    return TinyModels(store, stored["gemma"], stored["llama"], folders)
