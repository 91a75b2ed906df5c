from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.tiny_weights import FAMILIES, tiny_config, tiny_weights
from tests.verification.light.answered import MODEL
from unisono.errors import ConfigurationError
from unisono.models.loading import load_block
from unisono.types import LayerRange, ModelId
from unisono.verification.light import secrets as module
from unisono.verification.light.making import build, from_weights
from unisono.verification.light.secrets import Claimed, Secrets


@pytest.fixture(scope="module")
def made() -> Secrets:
    config = tiny_config("gemma")
    return from_weights(MODEL, config, [tiny_weights(config)], bytes(range(32)))


def same(a: Secrets, b: Secrets) -> bool:
    return (
        (a.model, a.config, a.seed, a.embedding_root)
        == (b.model, b.config, b.seed, b.embedding_root)
        and a.exponents == b.exponents
        and a.sums.keys() == b.sums.keys()
        and all((a.sums[n] == b.sums[n]).all() for n in a.sums)
        and a.vectors.keys() == b.vectors.keys()
        and all((a.vectors[n] == b.vectors[n]).all() for n in a.vectors)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_back_what_was_saved(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    kept = from_weights(MODEL, config, [tiny_weights(config)])
    kept.save(tmp_path / "secrets")
    assert same(Secrets.load(tmp_path / "secrets", MODEL), kept)
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["secrets"]


def test_a_file_takes_eight_bytes_per_input_of_a_matrix(made: Secrets, tmp_path: Path) -> None:
    made.save(tmp_path / "secrets")
    inputs = sum(len(s) for s in made.sums.values())
    values = sum(len(v) for v in made.vectors.values())
    assert (tmp_path / "secrets").stat().st_size <= 8 * inputs + 4 * values + 4096


def test_blocks_may_come_one_by_one(made: Secrets) -> None:
    blocks = [tiny_weights(made.config, 0, LayerRange(i, i + 1)) for i in range(2)]
    assert same(from_weights(MODEL, made.config, blocks, made.seed), made)
    with pytest.raises(ConfigurationError, match="not the whole model"):
        from_weights(MODEL, made.config, blocks[:1], made.seed)


def test_secrets_of_a_stored_model_are_those_of_its_weights(tiny_models: TinyModels) -> None:
    steps: list[tuple[int, int]] = []
    kept = build(tiny_models.gemma, lambda done, count: steps.append((done, count)))
    model = tiny_models.gemma
    weights = load_block(model, LayerRange(0, model.layer_count))
    assert steps[-1] == (model.layer_count, model.layer_count)
    assert same(kept, from_weights(model.id, model.manifest.config, [weights], kept.seed))
    assert kept.embedding_root.hex() == model.manifest.tensors["embedding"].root
    assert kept.seed != build(tiny_models.gemma).seed


def test_a_file_for_another_model_is_refused(made: Secrets, tmp_path: Path) -> None:
    made.save(tmp_path / "secrets")
    with pytest.raises(ConfigurationError, match=r"not of cdcdcd.*make them again"):
        Secrets.load(tmp_path / "secrets", ModelId("cd" * 32))


@pytest.mark.parametrize("at", [0, 25, 60, 400, -1])
def test_a_damaged_file_is_refused(made: Secrets, tmp_path: Path, at: int) -> None:
    path = tmp_path / "secrets"
    made.save(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match="damaged"):
        Secrets.load(path)
    path.write_bytes(data[:-1])
    with pytest.raises(ConfigurationError, match="damaged"):
        Secrets.load(path)


def test_a_file_that_others_may_read_or_that_is_not_there_is_refused(
    made: Secrets, tmp_path: Path
) -> None:
    path = tmp_path / "secrets"
    with pytest.raises(ConfigurationError, match="cannot read"):
        Secrets.load(path)
    made.save(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Secrets.load(path)


def test_a_file_above_the_limit_is_refused(
    made: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.save(tmp_path / "secrets")
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(ConfigurationError, match="damaged"):
        Secrets.load(tmp_path / "secrets")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": b"short"}, "seed"),
        ({"embedding_root": b""}, "root"),
        ({"sums": {}}, "sums"),
        ({"vectors": {}}, "norms"),
        ({"exponents": {}}, "exponents"),
    ],
)
def test_secrets_that_do_not_fit_their_configuration_are_refused(
    made: Secrets, tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    broken = Secrets(made.model, made.config, made.seed, made.embedding_root, {}, {}, {})
    broken.sums, broken.vectors, broken.exponents = made.sums, made.vectors, made.exponents
    for name, value in change.items():
        setattr(broken, name, value)
    broken.save(tmp_path / "secrets")
    with pytest.raises(ConfigurationError, match=problem):
        Secrets.load(tmp_path / "secrets")


def test_the_text_form_shows_no_secret(made: Secrets) -> None:
    assert made.seed.hex() not in repr(made)
    assert repr(made.seed) not in repr(made)
    assert "sums" not in repr(made)


def test_the_first_wrong_product_is_named(made: Secrets) -> None:
    generator = np.random.default_rng(0)
    layer = tiny_weights(made.config).layer[1]
    claimed: list[Claimed] = []
    for name in ("gate", "up", "down"):
        matrix = getattr(layer, name)
        wide = matrix.values.astype(np.int64) * matrix.multipliers.astype(np.int64).repeat(32, 1)
        inputs = generator.integers(-32767, 32768, matrix.inputs)
        claimed.append(Claimed(f"layers.1.{name}", inputs, wide @ inputs))
    assert made.wrong_product(claimed) is None
    assert made.wrong_product(claimed[1:]) is None
    assert made.wrong_product([claimed[0]._replace(matrix="layers.0.gate")]) == 0
    for wrong in ([2], [1, 2], [0, 2]):
        altered = [c._replace(outputs=c.outputs + (i in wrong)) for i, c in enumerate(claimed)]
        assert made.wrong_product(altered) == wrong[0]


def test_errors_of_two_products_do_not_cancel_in_the_sum(made: Secrets) -> None:
    zero = np.zeros(made.config.hidden_size, dtype=np.int64)
    up = np.zeros(made.config.mlp_size, dtype=np.int64)
    one = up.copy()
    one[4] = 1
    claimed = [Claimed("layers.0.gate", zero, one), Claimed("layers.0.up", zero, -one)]
    assert made.wrong_product(claimed) == 0
    assert made.wrong_product([c._replace(outputs=up) for c in claimed]) is None


def test_a_file_of_another_version_is_refused(
    made: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "VERSION", 2)
        made.save(tmp_path / "secrets")
    with pytest.raises(ConfigurationError, match="version 2"):
        Secrets.load(tmp_path / "secrets")
