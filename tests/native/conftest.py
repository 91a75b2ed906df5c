from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unisono.native import library, operators


@pytest.fixture(scope="module", params=["tiles", "dot products"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a module's tests once with matrix tiles and once with dot-product kernels alone.

    On a processor without tiles both are the same.
    """
    assert library.load() is not None, "the compiled kernels are not built"
    operators.enable_tiles(request.param == "tiles")
    yield
    operators.enable_tiles(True)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """torch's threads wait for each other for very long where something else runs as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
