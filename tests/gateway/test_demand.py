"""What a request may ask of the market, and the answer when nobody serves on its terms."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.gateway.running import running_gateway
from unisono.errors import OfferMissing
from unisono.routing.demand import Demand


async def test_a_limit_and_a_level_reach_the_network_shared_by_the_choices() -> None:
    async with running_gateway() as gateway:
        assert (await gateway.chat(max_cost=0.000009, tier="assured", n=3)).status_code == 200
        assert (await gateway.chat()).status_code == 200
        assert gateway.network.demands == [*[Demand(3, tier=2)] * 3, Demand()]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"max_cost": -1}, "max_cost"),
        ({"max_cost": 1e9}, "max_cost"),
        ({"max_cost": "cheap"}, "max_cost"),
        ({"tier": "gold"}, "tier"),
    ],
)
async def test_terms_that_make_no_sense(asked: dict[str, Any], field: str) -> None:
    async with running_gateway() as gateway:
        response = await gateway.chat(**asked)
        assert response.status_code == 400
        assert field in response.json()["error"]["message"]


async def test_no_offer_is_a_402_that_names_the_cheapest() -> None:
    async with running_gateway() as gateway:
        gateway.network.open_error = OfferMissing("the cheapest offer for this request is 0.25")
        response = await gateway.chat(max_cost=0.1)
        assert response.status_code == 402
        error = response.json()["error"]
        assert error["code"] == "offer_missing"
        assert "0.25" in error["message"]
        with pytest.raises(openai.APIStatusError) as raised:
            await gateway.openai.completions.create(
                model="default", prompt="x", extra_body={"max_cost": 0.1}
            )
        assert raised.value.status_code == 402
