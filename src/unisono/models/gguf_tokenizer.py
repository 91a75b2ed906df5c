"""Vocabularies inside GGUF files, rewritten in the format of the `tokenizers` library.

Two kinds: `llama` (SentencePiece: pieces with scores, byte fallback) and `gpt2` (byte-level BPE
with explicit merges). GGUF names the pre-tokenizer of the second kind instead of describing it;
the expressions here are those of the models' own `tokenizer.json` files.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.models.gguf_file import MetadataValue
from unisono.models.tokenizer_settings import (
    SETTINGS_FILE,
    TOKENIZER_FILE,
    TURN_NAMES,
    TokenizerSettings,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "▁"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _PreTokenizer(msgspec.Struct, frozen=True):
    expressions: tuple[str, ...]
    """Applied one after another, each to the pieces of the one before; matches are cut out."""
    whole_words: bool = False
    """A word that is in the vocabulary is one token, whatever the merges say."""
    add_start: bool = False
    compose: bool = False
    """Unicode normalization form C comes first."""


_PLAIN = _PreTokenizer((_GPT2,))
_DIGITS = _PreTokenizer((r"\p{N}", _GPT2))
_LLAMA_BPE = _PreTokenizer((_LLAMA3,), whole_words=True, add_start=True)
_PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    "default": _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _PLAIN,
    "phi-2": _PLAIN,
    "mpt": _PLAIN,
    "olmo": _PLAIN,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "llama-bpe": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "pixtral": _LLAMA_BPE,
    "qwen2": _PreTokenizer((_QWEN2,), compose=True),
    "deepseek-r1-qwen": _PreTokenizer((_QWEN2,)),
    "tekken": _PreTokenizer((_TEKKEN,), whole_words=True, add_start=True),
}


def gguf_tokenizer_files(metadata: dict[str, MetadataValue], where: str) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_settings.json` for the vocabulary in a file's metadata.

    `where` is the file that an error names.

    Raises:
        CorruptModel: the vocabulary is missing or inconsistent.
        UnsupportedModel: an unknown kind of vocabulary or pre-tokenizer.
    """
    return _Vocabulary(metadata, where).files()


class _Vocabulary:
    def __init__(self, metadata: dict[str, MetadataValue], where: str) -> None:
        self._metadata, self._where = metadata, where
        self._kind = self._get("model")
        if self._kind not in ("llama", "gpt2"):
            raise UnsupportedModel(
                f"{where}: vocabulary of kind {self._kind!r}; llama and gpt2 are supported"
            )
        tokens = self._get("tokens")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise self._corrupt("tokens")
        self._tokens = [str(token) for token in tokens]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        if len(self._ids) != len(tokens):
            raise CorruptModel(f"{where}: tokenizer.ggml.tokens names a token twice")
        self._types = self._numbers("token_type", _NORMAL)
        for name in TURN_NAMES:  # some converters call these ordinary
            if name in self._ids:
                self._types[self._ids[name]] = _CONTROL
        self._pre = _PLAIN

    def _get(self, key: str) -> MetadataValue | None:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def _corrupt(self, key: str) -> CorruptModel:
        return CorruptModel(
            f"{self._where}: tokenizer.ggml.{key} is missing or malformed;"
            " the file needs a vocabulary: convert the model again"
        )

    def _numbers(self, key: str, default: float | None) -> list[float]:
        values = self._get(key)
        if values is None and default is not None:
            return [default] * len(self._tokens)
        if not isinstance(values, list) or len(values) != len(self._tokens):
            raise self._corrupt(key)
        if isinstance(values[0], str):
            raise self._corrupt(key)
        return [float(value) for value in values]

    def files(self) -> dict[str, bytes]:
        document = self._sentencepiece() if self._kind == "llama" else self._byte_level()
        return {
            TOKENIZER_FILE: msgspec.json.encode(document),
            SETTINGS_FILE: self._settings().encoded(),
        }

    def _document(self, model: dict[str, Any], *, normalized: bool, **parts: Any) -> dict[str, Any]:
        added = [
            {
                "id": i,
                "content": self._tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": normalized and kind == _USER_DEFINED,
                "special": kind == _CONTROL,
            }
            for i, kind in enumerate(self._types)
            if kind in (_CONTROL, _USER_DEFINED) and self._tokens[i]
        ]
        base: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
        return base | {"added_tokens": added, "post_processor": None} | parts | {"model": model}

    def _sentencepiece(self) -> dict[str, Any]:
        prefix = self._flag("add_space_prefix", True)
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        normalizer: dict[str, Any] = replace
        if prefix:
            prepend = {"type": "Prepend", "prepend": _SPACE}
            normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        unknown = next(
            (t for t, k in zip(self._tokens, self._types, strict=True) if k == _UNKNOWN), None
        )
        number = self._id("unknown_token_id", 0)
        if unknown is None and number is not None:
            unknown = self._tokens[number]
        model = _model(self._ids, self._score_merges(), unknown=unknown, byte_fallback=True)
        # Pieces that users defined are matched after spaces became ▁, as SentencePiece does. With
        # a prefix that is impossible: the library would put the prefix before the piece itself.
        return self._document(
            model,
            normalized=not prefix,
            normalizer=normalizer,
            pre_tokenizer=None,
            decoder={"type": "Sequence", "decoders": decoders},
        )

    def _score_merges(self) -> list[tuple[str, str]]:
        """The pairs that SentencePiece's BPE can ever join, best score first.

        SentencePiece joins the adjacent pair whose union has the best score. A piece arises from
        a run of characters that nothing crosses, so inside that run all joins happen as they
        would if the run were the whole text: exactly one last pair can give the piece, and
        splitting each piece alone finds it. This lists half of the pairs that concatenate to a
        piece, and the rest could never be used.
        """
        scores = self._numbers("scores", None)
        pieces = [i for i, kind in enumerate(self._types) if kind == _NORMAL]
        pieces.sort(key=lambda i: (-scores[i], i))
        rank = {self._tokens[i]: place for place, i in enumerate(pieces)}
        letters = {piece for piece in rank if len(piece) == 1}
        merges: list[tuple[str, str]] = []
        for piece in rank:
            if len(piece) > 1 and letters.issuperset(piece):
                pair = _last_pair(piece, rank)
                if pair is not None:
                    merges.append(pair)
        return merges

    def _byte_level(self) -> dict[str, Any]:
        name = self._get("pre") or "default"
        if name not in _PRE_TOKENIZERS:
            raise UnsupportedModel(
                f"{self._where}: pre-tokenizer '{name}' is not known; known are"
                f" {', '.join(_PRE_TOKENIZERS)}"
            )
        self._pre = _PRE_TOKENIZERS[str(name)]
        lines = self._get("merges")
        if not isinstance(lines, list):
            raise self._corrupt("merges")
        merges: list[tuple[str, str]] = []
        for line in lines:
            left, space, right = str(line).partition(" ")
            if not (space and left in self._ids and right in self._ids):
                raise self._corrupt("merges")
            if left + right not in self._ids:
                raise self._corrupt("merges")
            merges.append((left, right))
        steps: list[dict[str, Any]] = [
            {
                "type": "Split",
                "pattern": {"Regex": expression},
                "behavior": "Isolated",
                "invert": False,
            }
            for expression in self._pre.expressions
        ]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        steps.append(level | {"use_regex": False})
        return self._document(
            _model(self._ids, merges, whole_words=self._pre.whole_words),
            normalized=False,
            normalizer={"type": "NFC"} if self._pre.compose else None,
            pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
            decoder=level | {"use_regex": True},
        )

    def _flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        return default if value is None else bool(value)

    def _id(self, key: str, default: int | None) -> int | None:
        value = self._get(key)
        if value is None:
            value = default
        if value is None or value == 0xFFFFFFFF:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self._tokens):
            raise CorruptModel(
                f"{self._where}: tokenizer.ggml.{key} is {value!r}; there are"
                f" {len(self._tokens)} tokens"
            )
        return value

    def _settings(self) -> TokenizerSettings:
        pieces = self._kind == "llama"
        start = self._id("bos_token_id", 1 if pieces and len(self._tokens) > 2 else None)
        stops = [self._id("eos_token_id", 2 if pieces and len(self._tokens) > 2 else None)]
        stops += [self._id(key, None) for key in ("eot_token_id", "eom_token_id")]
        named = {
            "bos_token": start,
            "eos_token": stops[0],
            "unk_token": self._id("unknown_token_id", None),
            "pad_token": self._id("padding_token_id", None),
        }
        template = self._metadata.get("tokenizer.chat_template")
        try:
            return TokenizerSettings(
                start_token=start,
                add_start=start is not None
                and self._flag("add_bos_token", pieces or self._pre.add_start),
                stop_tokens=tuple(sorted({token for token in stops if token is not None})),
                chat_template=template if isinstance(template, str) else None,
                names={k: self._tokens[i] for k, i in named.items() if i is not None},
            )
        except ValueError as error:
            raise CorruptModel(f"{self._where}: {error}") from error


def _model(
    ids: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    whole_words: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": whole_words,
        "vocab": ids,
        "merges": merges,
    }


def _last_pair(piece: str, rank: dict[str, int]) -> tuple[str, str] | None:
    """The two parts whose join gives `piece` when it is the whole text; None if they never meet."""
    parts = list(piece)
    none, rank_of = len(rank), rank.get
    ranks = [rank_of(left + right, none) for left, right in pairwise(parts)]
    while len(parts) > 2:
        best = min(ranks)
        if best == none:
            return None
        i = ranks.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        if i:
            ranks[i - 1] = rank_of(parts[i - 1] + parts[i], none)
        if i < len(ranks):
            ranks[i] = rank_of(parts[i] + parts[i + 1], none)
    return (parts[0], parts[1])
