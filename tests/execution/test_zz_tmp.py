import pytest
from tests.execution.test_speculation import (guesses_are_always_worth_it, strategies_of, hear, guessing, undrafted, killer, request_for, tiny_network, PROMPT)

@pytest.mark.parametrize("n", range(14))
@pytest.mark.parametrize("victims", [[0, 2], [0], [0,1]], ids=str)
async def test_rep(tiny_models, victims, n):
    stored = tiny_models.gemma
    request = request_for(stored, max_tokens=180)
    async with tiny_network(stored, 3, spares=1) as net:
        expected = await undrafted(net, request)
        truth = [t.token for t in expected.tokens]
        for node in net.nodes[2::3]:
            net.hub.set_delay(net.gateway.node_id, node.identity.node_id, 0.02*n)
        async with guessing(strategies_of(truth, len(PROMPT), n)[["wrong every ninth time","random","right now and then"][n%3]]):
            heard = await hear(net, request, on_token=killer(net, victims, 15+3*n))
        assert not heard.differences(expected)
