from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from unisono.numerics import compiled


@pytest.fixture(scope="module", params=["compiled", "torch"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a module's tests once with the compiled operators and once with the torch forms."""
    with compiled.pure_torch() if request.param == "torch" else nullcontext():
        yield
