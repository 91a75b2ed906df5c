from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.models import tiny

Checkpoint = tuple[PreTrainedModel, Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Family name → (transformers model, folder it was saved to), made once per session."""
    made: dict[str, Checkpoint] = {}

    def get(family: str) -> Checkpoint:
        if family not in made:
            model = tiny.build(family)
            made[family] = (model, tiny.save(model, tmp_path_factory.mktemp(family)))
        return made[family]

    return get
