from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.tiny_weights import tiny_config, tiny_weights
from unisono.errors import UnisonoError
from unisono.models.decoder import make_decoder
from unisono.models.native_decoder import NativeDecoder
from unisono.models.torch_decoder import TorchDecoder
from unisono.native import library, operators
from unisono.native import self_test as tested
from unisono.native.self_test import self_test
from unisono.numerics import linear


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library is looked for again in this test, and after it."""
    monkeypatch.delenv("UNISONO_NATIVE", raising=False)
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def _needed() -> set[str]:
    loaded = ctypes.CDLL(str(library.path()))
    features = ctypes.addressof(ctypes.c_char.in_dll(loaded, "unisono_features"))
    return set(ctypes.string_at(features).decode().split()) - {"base"}


def _chosen_decoder(device: str = "cpu") -> Any:
    config = tiny_config("llama")
    return make_decoder(config, tiny_weights(config), device, kv_bytes=1 << 20)


def test_a_cpu_computes_with_the_compiled_kernels_where_they_are_built() -> None:
    assert library.load() is not None
    assert library.kernels() in library.KERNELS
    assert isinstance(_chosen_decoder(), NativeDecoder)


def test_tiles_can_be_switched_off_and_on_again() -> None:
    with_tiles = library.kernels()
    operators.enable_tiles(False)
    without = library.kernels()
    operators.enable_tiles(True)
    assert library.kernels() == with_tiles
    assert without == ("vnni" if with_tiles == "tiles" else with_tiles)


@pytest.mark.usefixtures("fresh")
def test_a_library_whose_features_the_processor_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = sorted(_needed())
    if not needed:
        pytest.skip("this build needs no feature that a processor may lack")
    monkeypatch.setattr(library, "_processor_features", lambda: {"fpu", *needed[1:]})
    with caplog.at_level(logging.WARNING):
        assert library.load() is None
    assert f"need {needed[0]}, which this processor lacks" in caplog.text
    assert library.kernels() == "torch"
    assert isinstance(_chosen_decoder(), TorchDecoder)
    with pytest.raises(UnisonoError, match="not available on this machine"):
        NativeDecoder(tiny_config("llama"), tiny_weights(tiny_config("llama")))
    self_test()  # of what computes instead


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("features", [lambda n: {*n, "fpu", "sse2"}, lambda n: set()])
def test_a_library_is_taken_where_nothing_is_known_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, features: Callable[[set[str]], set[str]]
) -> None:
    present = features(_needed())
    monkeypatch.setattr(library, "_processor_features", lambda: present)
    assert library.load() is not None
    self_test()


@pytest.mark.usefixtures("fresh")
def test_the_environment_switches_the_library_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNISONO_NATIVE", "0")
    assert library.load() is None
    assert library.kernels() == "torch"
    assert isinstance(_chosen_decoder(), TorchDecoder)


@pytest.mark.usefixtures("fresh")
def test_an_installation_without_a_compiler_computes_with_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "path", lambda: None)
    assert library.load() is None
    assert library.kernels() == "torch"
    assert isinstance(_chosen_decoder(), TorchDecoder)


def test_what_the_library_cannot_do_is_an_error_that_says_why() -> None:
    config = tiny_config("llama")
    with pytest.raises(UnisonoError, match=r"the compiled kernels failed: .*alloc"):
        NativeDecoder(config, tiny_weights(config), threads=1, kv_bytes=1 << 60)


def test_the_self_test_passes_here() -> None:
    self_test()
    operators.enable_tiles(False)
    self_test()
    operators.enable_tiles(True)


@pytest.mark.parametrize("wrong_from", [1, 10], ids=["any rows", "many rows"])
def test_the_self_test_refuses_a_machine_whose_products_are_not_exact(
    monkeypatch: pytest.MonkeyPatch, wrong_from: int
) -> None:
    def product(x: Any, *given: Any) -> Any:
        return operators.product(x, *given) + (len(x) >= wrong_from)

    monkeypatch.setattr(tested, "product", product)
    with pytest.raises(UnisonoError, match=f"{library.kernels()} product is not exact"):
        self_test()


def test_the_self_test_refuses_a_device_whose_products_are_not_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    self_test()
    exact = linear.from_numpy
    monkeypatch.setattr(linear, "from_numpy", lambda array: exact(array - np.sign(array)))
    with pytest.raises(UnisonoError, match="float64 product is not exact"):
        self_test()
