from __future__ import annotations

from tests.conftest import TinyModels
from unisono.compose.offer import free_memory, model_facts, offered_memory
from unisono.models.cache import PAGE, PageStore
from unisono.models.loading import load_block
from unisono.types import LayerRange


def test_the_facts_of_a_model_are_those_of_its_files(tiny_models: TinyModels) -> None:
    model = tiny_models.gemma
    facts = model_facts(model)
    assert (facts.model, facts.layers) == (model.id, model.layer_count)
    layer = load_block(model, LayerRange(1, 2)).layer[1]
    matrices = [m for m in (layer.query, layer.gate, layer.up, layer.down, layer.output) if m]
    least = sum(m.values.nbytes + m.multipliers.nbytes for m in matrices)
    assert least < facts.layer_bytes < 2 * least
    store = PageStore(model.manifest.config, facts.whole, 1 << 30)
    assert abs(facts.kv_bytes * facts.layers * PAGE - sum(store.bytes)) < facts.layers * PAGE


def test_a_node_offers_what_it_is_told_or_a_share_of_what_is_free() -> None:
    assert offered_memory(12345) == 12345
    assert 0 < offered_memory(None) < 2 * free_memory()
