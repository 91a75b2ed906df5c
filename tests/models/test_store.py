from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TinyModels
from unisono.errors import ConfigurationError, CorruptModel
from unisono.models import conversion
from unisono.models.loading import load_block
from unisono.models.store import ModelStore, StoredModel, default_root
from unisono.types import LayerRange, ModelId

PARTS = ["embedding", "layers.0", "layers.1", "layers.2", "layers.3", "head"]


@pytest.fixture
def copy(tiny_models: TinyModels, tmp_path: Path) -> StoredModel:
    """The llama-like model in a store that a test may damage."""
    root = tmp_path / "store"
    shutil.copytree(tiny_models.store.root, root)
    return ModelStore(root).get(tiny_models.llama.id)


def contents(model: StoredModel) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(model.path.iterdir())
    }


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_two_conversions_give_the_same_id_and_the_same_bytes(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    again = ModelStore(tmp_path).ensure(str(tiny_models.folders["llama"]))
    assert again.id == tiny_models.llama.id
    assert contents(again) == contents(tiny_models.llama)


def test_a_model_lies_under_the_hash_of_its_manifest_in_one_file_per_layer(
    tiny_models: TinyModels,
) -> None:
    model = tiny_models.llama
    assert model.path == tiny_models.store.root / "models" / model.id
    assert model.manifest.model_id == model.id
    assert {f.stem for f in model.path.glob("*.safetensors")} == set(PARTS)
    assert not list(tiny_models.store.root.glob("convert-*"))
    assert not list(model.path.glob("*.part"))


def test_other_weights_are_another_model(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_models.folders["llama"], folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("layers.2.mlp.down_proj.weight"))
    tensors[name][0] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    other = ModelStore(tmp_path / "store").ensure(str(folder))
    assert other.id != tiny_models.llama.id
    differing = {
        name
        for name, entry in other.manifest.tensors.items()
        if entry != tiny_models.llama.manifest.tensors[name]
    }
    assert differing == {"layers.2.down"}


def test_a_second_ensure_does_not_convert(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(conversion, "convert", refuse)
    again = ModelStore(tiny_models.store.root).ensure(str(tiny_models.folders["llama"]))
    assert again.id == tiny_models.llama.id
    assert tiny_models.store.ensure(tiny_models.llama.id).path == tiny_models.llama.path


def test_a_source_that_changed_is_converted_again(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(tiny_models.folders["llama"], folder)
    store = ModelStore(tmp_path / "store")
    first = store.ensure(str(folder))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t * 2 for n, t in tensors.items()}, file, metadata={"format": "pt"})
    second = store.ensure(str(folder))
    assert second.id != first.id
    assert {m.id for m in store.list()} == {first.id, second.id}


def test_conversion_reports_every_tensor(tiny_models: TinyModels, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    model = ModelStore(tmp_path).ensure(
        str(tiny_models.folders["llama"]), lambda *progress: seen.append(progress)
    )
    assert [name for _, _, name in seen] == [*model.manifest.tensors]
    assert [done for done, _, _ in seen] == [*range(len(seen))]
    assert {total for _, total, _ in seen} == {len(seen)}


def test_a_conversion_that_fails_leaves_nothing_behind(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == 9:
            raise CorruptModel("half way")

    store = ModelStore(tmp_path)
    with pytest.raises(CorruptModel, match="half way"):
        store.ensure(str(tiny_models.folders["llama"]), stop)
    assert {p.name for p in tmp_path.iterdir()} <= {"convert.lock"}
    assert store.list() == []
    assert store.ensure(str(tiny_models.folders["llama"])).id == tiny_models.llama.id


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_that_need_the_same_model_convert_it_once(
    tiny_models: TinyModels, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    real = conversion.convert

    def counted(*given: Any) -> Path:
        runs.append("run")
        return real(*given)

    monkeypatch.setattr(conversion, "convert", counted)
    source = str(tiny_models.folders["llama"])
    with ThreadPoolExecutor(threads) as pool:
        ids = list(pool.map(lambda _: ModelStore(tmp_path).ensure(source).id, range(threads)))
    assert set(ids) == {tiny_models.llama.id}
    assert len(runs) == 1


def _convert(source: str, root: str, results: Any) -> None:
    model = ModelStore(Path(root)).ensure(source)
    load_block(model, LayerRange(0, model.layer_count))
    results.put(model.id)


@pytest.mark.slow
def test_processes_that_need_the_same_model_do_not_disturb_each_other(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    source = str(tiny_models.folders["llama"])
    workers = [
        context.Process(target=_convert, args=(source, str(tmp_path), results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert {results.get(timeout=90) for _ in workers} == {tiny_models.llama.id}
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0


def test_a_block_has_its_own_weights_and_the_ends_where_it_has_them(
    tiny_models: TinyModels,
) -> None:
    def ends(model: StoredModel, start: int, stop: int) -> tuple[list[int], bool, bool, bool]:
        block = load_block(model, LayerRange(start, stop))
        some = (block.embedding, block.final_norm, block.head)
        return [*block.layer], *(part is not None for part in some)

    llama, gemma = tiny_models.llama, tiny_models.gemma
    assert ends(llama, 0, 4) == ([0, 1, 2, 3], True, True, True)
    assert ends(llama, 0, 2) == ([0, 1], True, False, False)
    assert ends(llama, 1, 3) == ([1, 2], False, False, False)
    assert ends(llama, 3, 4) == ([3], False, True, True)
    # The head of this one is its embedding.
    assert ends(gemma, 5, 6) == ([5], False, True, True)
    whole = load_block(gemma, LayerRange(0, 6))
    assert whole.head is not None
    assert whole.embedding is not None
    assert np.array_equal(whole.head.values, whole.embedding.values)


@pytest.mark.parametrize(
    ("start", "stop", "needed"),
    [
        (0, 1, {"embedding", "layers.0"}),
        (1, 3, {"layers.1", "layers.2"}),
        (3, 4, {"layers.3", "head"}),
    ],
)
def test_a_block_is_read_without_the_files_of_others(
    copy: StoredModel, start: int, stop: int, needed: set[str]
) -> None:
    for part in set(PARTS) - needed:
        (copy.path / f"{part}.safetensors").unlink()
    assert load_block(copy, LayerRange(start, stop)).layers == LayerRange(start, stop)
    for part in needed:
        file = copy.path / f"{part}.safetensors"
        hidden = file.rename(file.with_suffix(".hidden"))
        with pytest.raises(CorruptModel, match=f"{part}.safetensors"):
            load_block(copy, LayerRange(start, stop))
        hidden.rename(file)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (-1, 2), (2, 2), (3, 2), (4, 5)])
def test_layers_that_the_model_does_not_have_are_a_configuration_error(
    tiny_models: TinyModels, start: int, stop: int
) -> None:
    with pytest.raises(ConfigurationError, match="which has layers 0:4"):
        load_block(tiny_models.llama, LayerRange(start, stop))


@pytest.mark.parametrize("part", PARTS)
def test_one_altered_bit_in_a_weight_is_found_and_the_tensor_is_named(
    copy: StoredModel, part: str
) -> None:
    file = copy.path / f"{part}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptModel) as error:
        load_block(copy, LayerRange(0, 4))
    assert f"of {file} does not have the hash" in str(error.value)
    assert "tensor '" in str(error.value)
    assert "convert the model again" in str(error.value)


@pytest.mark.parametrize("size", [0, 4, 100, -1000])
def test_a_truncated_file_is_found(copy: StoredModel, size: int) -> None:
    file = copy.path / "layers.1.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CorruptModel, match=r"cannot read tensor 'layers\.1\..*layers\.1\.safetens"):
        load_block(copy, LayerRange(1, 2))


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.to(torch.int32),
        lambda t: t[:-1].contiguous(),
        lambda t: t.reshape(-1),
        lambda t: t.t().contiguous(),
    ],
    ids=["dtype", "fewer rows", "shape", "transposed"],
)
def test_a_tensor_of_another_dtype_or_shape_is_found(copy: StoredModel, edit: Any) -> None:
    file = copy.path / "layers.2.safetensors"
    tensors = load_file(file)
    name = "layers.2.down.values"
    save_file(tensors | {name: edit(tensors[name])}, file)
    with pytest.raises(CorruptModel, match=r"'layers\.2\.down'"):
        load_block(copy, LayerRange(2, 3))


def test_a_tensor_that_is_missing_from_its_file_is_named(copy: StoredModel) -> None:
    file = copy.path / "layers.2.safetensors"
    tensors = load_file(file)
    del tensors["layers.2.gate.multipliers"]
    save_file(tensors, file)
    with pytest.raises(CorruptModel, match=r"'layers\.2\.gate'"):
        load_block(copy, LayerRange(2, 3))


def test_an_altered_manifest_no_longer_has_the_models_id(copy: StoredModel) -> None:
    path = copy.path / "manifest.json"
    document = json.loads(path.read_text())
    document["tensors"]["layers.0.gate"]["exponent"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptModel, match="not to its folder's name"):
        ModelStore(copy.path.parents[1]).get(copy.id)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"numerics": 1}'])
def test_a_manifest_that_is_none_is_found(copy: StoredModel, text: str) -> None:
    (copy.path / "manifest.json").write_text(text)
    with pytest.raises(CorruptModel, match=r"cannot read .*manifest\.json"):
        ModelStore(copy.path.parents[1]).get(copy.id)


OTHER_TABLES = dict.fromkeys(("cosine", "exp2", "gate", "log2"), "00" * 32)


@pytest.mark.parametrize(
    "changes", [{"numerics": 99}, {"version": 3}, {"tables": OTHER_TABLES}, {"tables": {}}], ids=str
)
def test_a_model_of_other_numerics_must_be_converted_again(
    copy: StoredModel, changes: dict[str, Any]
) -> None:
    manifest = msgspec.structs.replace(copy.manifest, **changes)
    folder = copy.path.rename(copy.path.with_name(manifest.model_id))
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(CorruptModel, match="convert the model again"):
        ModelStore(folder.parents[1]).get(manifest.model_id)


def test_a_model_of_the_first_version_says_what_to_do_and_is_converted_anew(
    tiny_models: TinyModels, copy: StoredModel
) -> None:
    """Its manifest had no version, and one hash for each tensor's bytes."""
    store = ModelStore(copy.path.parents[1])
    document = json.loads((copy.path / "manifest.json").read_text())
    del document["version"]
    for entry in document["tensors"].values():
        entry["sha256"] = entry.pop("root")
    document["tables"] = "12" * 32
    old = copy.path.rename(copy.path.with_name("ab" * 32))
    (old / "manifest.json").write_text(json.dumps(document))
    shutil.rmtree(store.root / "sources")  # notes of sources had other names
    with pytest.raises(CorruptModel, match=r"version 1 and this program reads version 2; delete"):
        store.get(ModelId("ab" * 32))
    assert [m.id for m in store.list()] == [tiny_models.gemma.id]
    assert store.ensure(str(tiny_models.folders["llama"])).id == copy.id


def test_a_source_is_converted_again_where_conversion_has_changed(
    tiny_models: TinyModels, copy: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = ModelStore(copy.path.parents[1]), str(tiny_models.folders["llama"])
    assert store.cached(source) is not None
    monkeypatch.setattr("unisono.models.store.CONVERSION_VERSION", 1)
    assert store.cached(source) is None
    assert store.get(copy.id).id == copy.id
    assert store.ensure(source).id == copy.id


@pytest.mark.parametrize(
    "changes",
    [
        {"root": "zz" * 32},
        {"root": ""},
        {"shape": ()},
        {"shape": (1, 2, 3)},
        {"exponent": 1 << 40},
        {"kind": "norm"},
    ],
    ids=str,
)
def test_a_tensor_that_cannot_be_one_is_refused(copy: StoredModel, changes: dict[str, Any]) -> None:
    document = json.loads((copy.path / "manifest.json").read_text())
    document["tensors"]["layers.1.up"] |= changes
    (copy.path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(CorruptModel):
        ModelStore(copy.path.parents[1]).get(copy.id)


def test_a_manifest_whose_tensors_do_not_fit_its_configuration_is_refused(
    copy: StoredModel,
) -> None:
    tensors = dict(copy.manifest.tensors)
    odd = tensors.pop("layers.1.up")
    for changed in (tensors, {**tensors, "layers.1.up": odd}, {**copy.manifest.tensors, "x": odd}):
        with pytest.raises(CorruptModel, match="do not fit its configuration"):
            msgspec.structs.replace(copy.manifest, tensors=changed).check()
    wrong = {**copy.manifest.tensors, "layers.1.up": copy.manifest.tensors["layers.1.down"]}
    with pytest.raises(CorruptModel, match=r"tensor 'layers\.1\.up' has shape"):
        msgspec.structs.replace(copy.manifest, tensors=wrong).check()


def test_an_altered_or_missing_tokenizer_is_found(copy: StoredModel) -> None:
    assert set(copy.tokenizer_files()) >= {"tokenizer.json"}
    file = copy.path / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(CorruptModel, match=r"tokenizer\.json does not have the hash"):
        copy.tokenizer_files()
    file.unlink()
    with pytest.raises(CorruptModel, match=r"cannot read .*tokenizer\.json"):
        copy.tokenizer_files()


def test_a_damaged_model_is_converted_again_from_its_source(
    tiny_models: TinyModels, copy: StoredModel
) -> None:
    store = ModelStore(copy.path.parents[1])
    (copy.path / "manifest.json").write_text("{}")
    (copy.path / "layers.0.safetensors").unlink()
    assert [m.id for m in store.list()] == [tiny_models.gemma.id]
    healed = store.ensure(str(tiny_models.folders["llama"]))
    assert contents(healed) == contents(tiny_models.llama)


def test_a_damaged_note_of_a_source_is_made_anew(
    tiny_models: TinyModels, copy: StoredModel
) -> None:
    store = ModelStore(copy.path.parents[1])
    for note in (store.root / "sources").iterdir():
        note.write_text("?")
    assert store.ensure(str(tiny_models.folders["llama"])).id == copy.id


@pytest.mark.parametrize("name", ["00" * 32, "", "..", "../models", "A" * 64, "0" * 63])
def test_a_model_id_that_is_unknown_or_none_says_what_to_do(
    tiny_models: TinyModels, name: str
) -> None:
    with pytest.raises(CorruptModel, match=r"is not in .*convert it first"):
        tiny_models.store.get(ModelId(name))


def test_an_unknown_id_is_not_taken_for_a_file(tiny_models: TinyModels) -> None:
    with pytest.raises(CorruptModel, match="is not in"):
        tiny_models.store.ensure("ab" * 32)


def test_a_source_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        ModelStore(tmp_path).ensure(str(tmp_path / "nothing.gguf"))
    with pytest.raises(ConfigurationError, match="there is no model 'nothing'"):
        ModelStore(tmp_path).ensure("nothing")


def test_the_store_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNISONO_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_root() == tmp_path / "a"
    monkeypatch.delenv("UNISONO_CACHE")
    assert default_root() == tmp_path / "b" / "unisono"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert ModelStore().root == tmp_path / "c" / ".cache" / "unisono"
