from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.models import gguf_writer, tiny
from tests.models.conftest import Checkpoint
from unisono.errors import ConfigurationError, CorruptModel
from unisono.models import catalog
from unisono.models.catalog import license_notice, open_source, source_fingerprint


def test_a_path_or_folder_opens_by_its_kind(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    model, folder = checkpoint("smollm")
    file = gguf_writer.write(tmp_path / "m.gguf", model, "llama")
    for name in (str(file), str(folder)):
        source = open_source(name)
        assert source.config.hidden_size == 64
        assert source.fingerprint == source_fingerprint(name)
    assert open_source(str(file)).name == "m"


def test_fingerprints_change_with_the_file(tmp_path: Path) -> None:
    file = gguf_writer.write(tmp_path / "m.gguf", tiny.build("smollm"), "llama")
    before = source_fingerprint(str(file))
    with file.open("ab") as handle:
        handle.write(b"\0")
    assert source_fingerprint(str(file)) != before
    shutil.copy(file, tmp_path / "other.gguf")
    assert source_fingerprint(str(tmp_path / "other.gguf")) != before


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "a/b/c", "/x"])
@pytest.mark.parametrize("ask", [open_source, source_fingerprint])
def test_an_unknown_name_lists_what_is_possible(ask: Callable[[str], object], name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no model .*gemma-3-270m.*owner/name"):
        ask(name)


def test_the_default_model_is_known_without_opening_it() -> None:
    fingerprint = source_fingerprint()
    assert fingerprint.startswith("sha256:")
    assert len(fingerprint) == 71


def test_the_license_of_the_default_model_is_short_and_points_to_its_text() -> None:
    notice = license_notice()
    assert notice is not None
    assert len(notice.splitlines()) <= 4
    assert Path(notice.splitlines()[-1].removeprefix("Full text: ")).is_dir()
    assert license_notice("other.gguf") is None


def packaged(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(catalog.CATALOG, "broken", catalog.PackagedModel(name, "dist", "terms"))


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    packaged(monkeypatch, "no_such_package_anywhere")
    with pytest.raises(ConfigurationError, match="pip install dist"):
        open_source("broken")


def test_a_damaged_package_is_a_corrupt_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "damaged_package.py").write_text(
        "EXPECTED_SHA256 = 'x'\ndef assemble(path):\n    raise ValueError('sha256 differs')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    packaged(monkeypatch, "damaged_package")
    with pytest.raises(CorruptModel, match="sha256 differs"):
        open_source("broken")


def test_a_repository_is_downloaded_and_opened_as_a_folder(
    checkpoint: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = checkpoint("qwen3")
    asked: list[str] = []

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        assert "*.safetensors" in allow_patterns
        asked.append(repository)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = open_source("owner/tiny")
    assert (source.name, source.config.architecture) == ("tiny", "qwen3")
    assert source.fingerprint == source_fingerprint("owner/tiny")
    assert asked == ["owner/tiny"] * 2


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repository: str, **_: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ConfigurationError, match=r"cannot download 'owner/tiny'.*folder or \.gguf"):
        open_source("owner/tiny")
