"""From the bytes of a `tokenizer.json` to the `tokenizers` library's object, quickly."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as LibraryTokenizer

from unisono.errors import CorruptModel

_LARGE = 1 << 20
_MODEL_KEYS = {
    "type",
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "vocab",
    "merges",
}


def load_library_tokenizer(data: bytes, document: dict[str, Any], where: str) -> LibraryTokenizer:
    """The library's tokenizer for the file `data`, whose parsed form is `document`.

    Large byte-pair vocabularies go around the library's own JSON reader, which holds every value
    twice: for 262,144 tokens and 236,245 merges parsing with msgspec and calling the constructor
    takes 1.5 s where `Tokenizer.from_buffer` takes 2.4 s (same busy machine).

    Raises:
        CorruptModel: the library refuses the file.
    """
    try:
        if len(data) > _LARGE and set(document["model"]) <= _MODEL_KEYS:
            quick = _from_parts(document)
            if quick is not None:
                return quick
        return LibraryTokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise CorruptModel(f"{where} is not a usable tokenizer: {error}") from error


def _from_parts(document: dict[str, Any]) -> LibraryTokenizer | None:
    """None where this shortcut would not give the same tokenizer."""
    model = cast("dict[str, Any]", document["model"])
    merges = cast("list[Any]", model.get("merges", []))
    if model.get("type") != "BPE" or not merges:
        return None
    lists = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    if any(len(pair) != 2 for pair in lists):
        return None
    pairs = [(str(left), str(right)) for left, right in lists]
    empty: dict[str, Any] = model | {"vocab": {}, "merges": [], "unk_token": None}
    shell: dict[str, Any] = document | {"model": empty, "added_tokens": []}
    tokenizer = LibraryTokenizer.from_buffer(msgspec.json.encode(shell))
    options = {k: v for k, v in model.items() if k not in ("type", "vocab", "merges")}
    tokenizer.model = models.BPE(
        vocab=model["vocab"], merges=pairs, **{k: v for k, v in options.items() if v is not None}
    )
    added = cast("list[dict[str, Any]]", document.get("added_tokens") or [])
    tokens: list[AddedToken] = []
    for entry in sorted(added, key=lambda item: item["id"]):
        flags = {k: bool(entry[k]) for k in ("single_word", "lstrip", "rstrip", "normalized")}
        tokens.append(AddedToken(entry["content"], special=bool(entry["special"]), **flags))
    cast("Any", tokenizer).add_tokens(tokens)
    if any(tokenizer.token_to_id(entry["content"]) != entry["id"] for entry in added):
        return None  # the library numbers new tokens itself; this file has gaps
    return tokenizer
