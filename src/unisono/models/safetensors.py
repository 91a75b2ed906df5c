"""Checkpoints as Hugging Face publishes them: a folder with `config.json` and safetensors files."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from unisono.errors import ConfigurationError, CorruptModel, UnsupportedModel
from unisono.models.config import DecoderConfig, tensor_shapes
from unisono.models.fingerprint import files_fingerprint
from unisono.models.hub_tokenizer import hub_tokenizer_files
from unisono.models.safetensors_config import decoder_config
from unisono.models.safetensors_file import FLOATS, StoredTensor, read_floats, stored_tensors

INDEX_FILE = "model.safetensors.index.json"
MODEL_PATTERNS = ("*.json", "*.safetensors", "*.jinja")
"""What of a folder or repository belongs to a model here."""

_MAX_JSON_BYTES = 1 << 26
_PREFIXES = ("model.", "model.language_model.", "language_model.model.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")
_NORMS = (
    "attention_norm",
    "mlp_norm",
    "post_attention_norm",
    "post_mlp_norm",
    "query_norm",
    "key_norm",
    "final_norm",
)
_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "output_bias": "self_attn.o_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


class SafetensorsSource:
    """A `ModelSource` over a folder with `config.json` and one or several safetensors files.

    `name` and `fingerprint` replace the folder's name and the fingerprint of its files.

    Raises:
        ConfigurationError: a file cannot be opened.
        CorruptModel: malformed JSON, a missing shard or tensor; names file and tensor.
        UnsupportedModel: an architecture or feature outside the decoder definition.
    """

    def __init__(
        self, folder: Path | str, *, name: str | None = None, fingerprint: str | None = None
    ) -> None:
        self._folder = Path(folder)
        self._name = name or self._folder.resolve().name
        self._fingerprint = fingerprint or folder_fingerprint(self._folder)
        path = self._folder / "config.json"
        self._config = decoder_config(_read_json(path), str(path))
        self._shapes = tensor_shapes(self._config)
        self._headers: dict[Path, dict[str, StoredTensor]] = {}
        self._shards = self._find_shards()
        found = [p for p in _PREFIXES if f"{p}embed_tokens.weight" in self._shards]
        if not found:
            raise CorruptModel(
                f"{self._folder} lacks tensor '{_PREFIXES[0]}embed_tokens.weight': it is"
                " incomplete, download it again"
            )
        self._prefix = found[0]
        self._refuse_surplus()

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def config(self) -> DecoderConfig:
        return self._config

    def _find_shards(self) -> dict[str, Path]:
        """Tensor name → file that holds it."""
        index = self._folder / INDEX_FILE
        if not index.exists():
            shards: dict[str, Path] = {}
            files = sorted(self._folder.glob("*.safetensors"))
            if not files:
                raise CorruptModel(f"{self._folder} holds no safetensors file")
            for file in files:
                shards |= dict.fromkeys(self._names(file), file)
            return shards
        mapping = _read_json(index).get("weight_map")
        if not isinstance(mapping, dict):
            raise CorruptModel(f"{index}: weight_map is missing")
        files_by_name: dict[str, Path] = {}
        for shard in sorted({str(v) for v in cast("dict[str, Any]", mapping).values()}):
            if Path(shard).name != shard:
                raise CorruptModel(f"{index}: '{shard}' is not a plain file name")
            if not (self._folder / shard).exists():
                raise CorruptModel(f"{index} names {shard}, which is missing: download it again")
            files_by_name[shard] = self._folder / shard
        return {str(k): files_by_name[str(v)] for k, v in cast("dict[str, Any]", mapping).items()}

    def _names(self, file: Path) -> list[str]:
        try:
            return list(self._header(file))
        except (SafetensorError, OSError) as error:
            raise CorruptModel(
                f"{file} is not a readable safetensors file ({error}); download it again"
            ) from error

    def _refuse_surplus(self) -> None:
        """A bias or norm that the configuration does not mention would be ignored in silence."""
        first = f"{self._prefix}layers.0."
        leaves = {k.removeprefix(first) for k in self._shards if k.startswith(first)}
        wanted = {self._foreign("layers.0." + leaf).removeprefix(first) for leaf in self._leaves()}
        known = set(_LAYER.values()) | set(_SANDWICH.values())
        surplus = sorted((leaves & known) - wanted)
        if surplus:
            raise UnsupportedModel(
                f"{self._folder}: tensor '{first}{surplus[0]}' is not part of what config.json"
                " describes"
            )

    def _leaves(self) -> list[str]:
        start = "layers.0."
        return [name.removeprefix(start) for name in self._shapes if name.startswith(start)]

    def _foreign(self, name: str) -> str:
        if name == "embedding":
            return f"{self._prefix}embed_tokens.weight"
        if name == "final_norm":
            return f"{self._prefix}norm.weight"
        if name == "head":
            return next((head for head in _HEADS if head in self._shards), _HEADS[0])
        _, layer, leaf = name.split(".")
        leaves = _LAYER | _SANDWICH if self._config.post_norms else _LAYER
        return f"{self._prefix}layers.{layer}.{leaves[leaf]}"

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor with this canonical name, float32, in the shape of `tensor_shapes`.

        Raises:
            CorruptModel: missing, of another shape, or its file is truncated; names both.
            UnsupportedModel: stored in a type other than float32, float16 and bfloat16.
            KeyError: not a canonical name of this configuration.
        """
        return self.read_rows(name, 0, self._shapes[name][0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start:stop` of `read(name)`, and nothing else of the file; raises as it does.

        Several threads may read at once.
        """
        shape, foreign = self._shapes[name], self._foreign(name)
        file = self._shards.get(foreign)
        if file is None:
            raise CorruptModel(
                f"{self._folder} lacks tensor '{foreign}': it is incomplete, download it again"
            )
        try:
            tensor = self._header(file).get(foreign)
            if tensor is None:
                raise OSError("it is not in the file")
            if tensor.shape != shape:
                raise CorruptModel(
                    f"{file}: tensor '{foreign}' has shape {tensor.shape}; config.json needs"
                    f" {shape}"
                )
            if tensor.dtype not in FLOATS:
                raise UnsupportedModel(
                    f"{file}: tensor '{foreign}' is stored as {tensor.dtype}; supported are"
                    f" {', '.join(FLOATS)}"
                )
            rows = read_floats(file, tensor, start, stop)
        except (SafetensorError, OSError) as error:
            raise CorruptModel(
                f"{file}: tensor '{foreign}' cannot be read ({error}); download the file again"
            ) from error
        # Gemma's checkpoints hold the distance of each norm weight from 1.
        if self._config.architecture == "gemma3" and name.rpartition(".")[2] in _NORMS:
            rows += np.float32(1)
        return rows

    def _header(self, file: Path) -> dict[str, StoredTensor]:
        if file not in self._headers:
            self._headers[file] = stored_tensors(file)
        return self._headers[file]

    def tokenizer_files(self) -> dict[str, bytes]:
        """`tokenizer.json` as published, and `tokenizer_settings.json`.

        Raises:
            CorruptModel: a tokenizer file is malformed.
            UnsupportedModel: there is no `tokenizer.json`.
        """
        return dict(self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        return hub_tokenizer_files(self._folder)


def folder_fingerprint(folder: Path) -> str:
    """`safetensors:` and 64 hex digits over path, size and time of the files of a model folder.

    Raises:
        ConfigurationError: the folder has no `config.json` or cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder} is not a model folder: it has no config.json")
    files = {path for pattern in MODEL_PATTERNS for path in folder.glob(pattern)}
    return f"safetensors:{files_fingerprint(files)}"


def download(repository: str) -> Path:
    """The folder with a Hugging Face repository's newest files, downloaded where they are not yet.

    Without a connection the copy from before is used.

    Raises:
        ConfigurationError: no such repository, no access, or no connection and no copy.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = cast("Any", huggingface_hub).snapshot_download(
            repository, allow_patterns=list(MODEL_PATTERNS)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigurationError(
            f"cannot download '{repository}' from Hugging Face ({error}); check the name, log in"
            " with `hf auth login` if the model is gated, or give a folder or .gguf file"
        ) from error
    return Path(str(folder))


def resolve(model: str) -> SafetensorsSource:
    """Open a folder, or download the Hugging Face repository `owner/name` and open it.

    Raises:
        ConfigurationError: cannot be found or downloaded.
        CorruptModel, UnsupportedModel: as `SafetensorsSource`.
    """
    path = Path(model)
    if path.is_dir():
        return SafetensorsSource(path)
    return SafetensorsSource(download(model), name=model.rpartition("/")[2])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_JSON_BYTES:
        raise CorruptModel(f"{path} has {len(data)} bytes; at most {_MAX_JSON_BYTES} are expected")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise CorruptModel(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CorruptModel(f"{path} does not hold a JSON object")
    return cast("dict[str, Any]", document)
