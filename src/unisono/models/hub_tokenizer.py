"""Tokenizer files of a Hugging Face checkpoint, with their settings gathered into one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.models.tokenizer_settings import SETTINGS_FILE, TOKENIZER_FILE, TokenizerSettings

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def hub_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """`tokenizer.json` as it is, and `tokenizer_settings.json` from the files around it.

    End tokens come from `tokenizer_config.json`, `generation_config.json` and `config.json`; the
    chat template from `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`.

    Raises:
        CorruptModel: a file is malformed.
        UnsupportedModel: there is no `tokenizer.json`.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UnsupportedModel(
            f"{folder} has no {TOKENIZER_FILE}; save the tokenizer in that format, e.g. with"
            " transformers' AutoTokenizer.save_pretrained, or use a .gguf file"
        )
    data = path.read_bytes()
    document = _object(path, data)
    try:
        added = cast("list[dict[str, Any]]", document.get("added_tokens") or [])
        ids: dict[str, int] = {str(entry["content"]): int(entry["id"]) for entry in added}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptModel(f"{path}: added_tokens are malformed") from error
    described = _optional(folder / "tokenizer_config.json")
    names: dict[str, str] = {}
    for key in _NAMES:
        value = described.get(key)
        value = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    config = _optional(folder / "config.json")
    stops = {ids[names["eos_token"]]} if names.get("eos_token") in ids else set[int]()
    inner = config.get("text_config")
    for source in (_optional(folder / "generation_config.json"), config, inner):
        if isinstance(source, dict):
            stops |= _ids(cast("dict[str, Any]", source).get("eos_token_id"))
    start = ids.get(names["bos_token"]) if "bos_token" in names else None
    add_start = described.get("add_bos_token")
    try:
        settings = TokenizerSettings(
            start_token=start,
            add_start=add_start if isinstance(add_start, bool) else None,
            stop_tokens=tuple(sorted(stops)),
            chat_template=_template(folder, described),
            names=names,
        )
    except ValueError as error:
        raise CorruptModel(f"{folder}: {error}") from error
    return {TOKENIZER_FILE: data, SETTINGS_FILE: settings.encoded()}


def _template(folder: Path, described: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise CorruptModel(f"{file} is not UTF-8") from error
    value = _optional(folder / "chat_template.json").get("chat_template")
    if value is None:
        value = described.get("chat_template")
    if isinstance(value, list):  # several named templates: the one called default
        entries = [
            cast("dict[str, Any]", e) for e in cast("list[Any]", value) if isinstance(e, dict)
        ]
        found = [e.get("template") for e in entries if e.get("name") == "default"]
        value = found[0] if found else None
    return value if isinstance(value, str) else None


def _ids(value: object) -> set[int]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool)}


def _optional(path: Path) -> dict[str, Any]:
    return _object(path, path.read_bytes()) if path.is_file() else {}


def _object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CorruptModel(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptModel(f"{path} does not hold a JSON object")
    return cast("dict[str, Any]", value)
