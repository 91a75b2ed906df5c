"""The client contract, in front of a scripted network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.contract import OpenAIClientContract
from tests.gateway.running import Running, gateway_in_a_thread

KEY = "sk-a-key-for-tests"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    with gateway_in_a_thread(api_keys=("sk-another", KEY)) as running:
        yield running


@pytest.fixture
def base_url(gateway: Running) -> str:
    return f"{gateway.server.url}/v1"


@pytest.fixture
def model_name(gateway: Running) -> str:
    return gateway.model


@pytest.fixture
def api_key() -> str:
    return KEY


class TestClientsOfAScriptedNetwork(OpenAIClientContract):
    pass
