"""Text to token ids and back, for every supported vocabulary.

Encoding is the `tokenizers` library's. Decoding is done here on bytes, so that a stream of
tokens gives exactly the text of all of them: the library's own decoder works on whole sequences.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import msgspec

from unisono.errors import ConfigurationError, CorruptModel, UnsupportedModel
from unisono.garbage import collection_paused
from unisono.models.chat import ChatTemplate, flatten, plain_chat
from unisono.models.tokenizer_model import load_library_tokenizer
from unisono.models.tokenizer_settings import (
    SETTINGS_FILE,
    STOP_NAMES,
    TOKENIZER_FILE,
    TokenizerSettings,
)

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """One model's tokenizer. Safe to share between threads.

    Build it with `load` or `from_files`.
    """

    plain_chat_stops: tuple[str, ...] = ("\nUser:", "\nSystem:")
    """Strings that end an answer of a model without a chat template (`render_chat`)."""

    def __init__(self, data: bytes, settings: TokenizerSettings, where: str) -> None:
        try:
            document: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
            decoder = _Pieces(document)
            added = cast("list[dict[str, Any]]", document.get("added_tokens") or [])
            self._literal = {int(entry["id"]): str(entry["content"]) for entry in added}
            self._special = frozenset(int(entry["id"]) for entry in added if entry["special"])
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptModel(f"{where} is not a usable tokenizer: {error!r}") from error
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{where}: {error}") from error
        self._pieces = decoder
        self._library = load_library_tokenizer(data, document, where)
        self._library.no_truncation()
        self._library.no_padding()
        self._settings = settings
        self._lock = threading.Lock()
        self._where = where

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.json` and `tokenizer_settings.json` from a folder.

        Raises:
            ConfigurationError: a file cannot be read.
            CorruptModel, UnsupportedModel: as `from_files`.
        """
        try:
            files = {
                name: (directory / name).read_bytes() for name in (TOKENIZER_FILE, SETTINGS_FILE)
            }
        except OSError as error:
            raise ConfigurationError(f"cannot read {error.filename}: {error.strerror}") from error
        return cls.from_files(files, where=str(directory))

    @classmethod
    def from_files(cls, files: dict[str, bytes], where: str = "the model") -> Tokenizer:
        """Build from what `ModelSource.tokenizer_files` returns.

        Raises:
            CorruptModel: a file is missing or malformed.
            UnsupportedModel: neither byte-level nor SentencePiece-like.
        """
        for name in (TOKENIZER_FILE, SETTINGS_FILE):
            if name not in files:
                raise CorruptModel(f"{where} lacks {name}: convert the model again")
        settings = TokenizerSettings.decoded(files[SETTINGS_FILE], f"{where}/{SETTINGS_FILE}")
        with collection_paused():
            return cls(files[TOKENIZER_FILE], settings, f"{where}/{TOKENIZER_FILE}")

    @cached_property
    def vocabulary_hash(self) -> str:
        """64 hex digits that name all tokens with their ids: two models with the same hash mean
        the same by an id."""
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        pairs = sorted((index, piece) for piece, index in vocabulary.items())
        special = sorted(self._special)
        return hashlib.sha256(msgspec.json.encode((pairs, special))).hexdigest()

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id that has a text (a model's embedding may have more rows)."""
        size = self._library.get_vocab_size(with_added_tokens=True)
        return max(size, 1 + max(self._literal, default=0))

    @property
    def start_token(self) -> int | None:
        """The beginning-of-text token, whether or not `encode` adds it."""
        return self._settings.start_token

    @cached_property
    def adds_start(self) -> bool:
        """Whether this model expects its text to start with `start_token`."""
        start = self._settings.start_token
        if start is None or self._settings.add_start is not None:
            return bool(start is not None and self._settings.add_start)
        return self._library.encode("", add_special_tokens=True).ids[:1] == [start]

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer, ascending."""
        known = (self._library.token_to_id(name) for name in STOP_NAMES)
        stops = {token for token in known if token is not None and token in self._special}
        return tuple(sorted(stops | set(self._settings.stop_tokens)))

    @property
    def special_tokens(self) -> frozenset[int]:
        """Ids of control tokens: never part of decoded text."""
        return self._special

    def encode(
        self, text: str, *, add_start: bool = True, allow_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        The start token comes first if `add_start` is set, the model expects one, and the text
        does not bring its own. Unless `allow_special` is set, the names of control tokens in the
        text are ordinary characters. Tokens that a vocabulary adds without calling them special
        (such as runs of newlines) are always matched.
        """
        with self._lock:  # the switch is a property of the shared library object
            self._library.encode_special_tokens = not allow_special
            ids = list(self._library.encode(text, add_special_tokens=False).ids)
        start = self._settings.start_token
        if add_start and self.adds_start and start is not None and ids[:1] != [start]:
            ids.insert(0, start)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; control tokens and ids without a text give nothing.

        Bytes that are not UTF-8 become U+FFFD.
        """
        decoder = self.decoder()
        return "".join([*(decoder.push(token) for token in ids), decoder.flush()])

    def decoder(self) -> IncrementalDecoder:
        """A decoder for one answer, token by token."""
        return IncrementalDecoder(self)

    def token_text(self, token: int) -> str:
        """One token for people: its text, a control token's name, U+FFFD for half a character."""
        return self.token_bytes(token).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; the name of a control token; empty without a text."""
        literal = self._literal.get(token)
        if literal is None:
            piece = self._library.id_to_token(token) if 0 <= token < 1 << 32 else None
            return b"" if piece is None else self._pieces.bytes_of(piece)
        if token in self._special:
            return literal.encode()
        return self._pieces.spaced(literal).encode()

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops the space that encoding put before the text."""
        return self._pieces.strips

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja template, or None if it was not trained to chat."""
        return self._settings.chat_template

    @cached_property
    def _template(self) -> ChatTemplate | None:
        source = self._settings.chat_template
        return None if source is None else ChatTemplate(source, self._settings.names, self._where)

    def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt for an answer to these messages (`role` and `content` each).

        Without a chat template: `System: …`, a blank line, then `User: …` and `Assistant: …`
        lines, ending in `Assistant:`; add `plain_chat_stops` to the request's stop strings.
        Encode the result with `encode_chat` rather than `encode`: only that keeps names of
        control tokens inside a message from acting as control tokens.

        Raises:
            RequestError: a message is malformed, or the template refuses the conversation.
            UnsupportedModel: the template is not Jinja that can be compiled.
        """
        plain = flatten(messages)
        return plain_chat(plain) if self._template is None else self._template.render(plain)

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of `render_chat`, control tokens from the template only.

        The template decides about the start token; without a template `adds_start` does.

        A message that spells out a control token (an attempt at injection, or a question about
        one) is rendered with a mark inside that name, and the text between the template's control
        tokens is encoded piece by piece without the mark. Vocabularies that put a space before a
        text may then place one more at such a boundary; all other conversations are encoded whole.
        """
        plain = flatten(messages)
        if self._template is None:
            return self.encode(plain_chat(plain))
        names = self._control_names(message["content"] for message in plain)
        if not names:
            return self.encode(self._template.render(plain), add_start=False, allow_special=True)
        mark = _unused_character([self._template.source, *(m["content"] for m in plain)])
        spelled = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
        marked: list[dict[str, Any]] = []
        for message in plain:
            content = message["content"]
            while spelled.search(content):
                content = spelled.sub(lambda found: found[0][0] + mark + found[0][1:], content)
            marked.append(message | {"content": content})
        text = self._template.render(marked)
        own = self._control_names([text])
        if not own:
            return self.encode(text.replace(mark, ""), add_start=False)
        ids: list[int] = []
        borders = re.compile(f"({'|'.join(map(re.escape, sorted(own, key=len, reverse=True)))})")
        for place, part in enumerate(borders.split(text)):
            if place % 2:
                ids += [token for token in self._special if self._literal[token] == part][:1]
            elif part:
                ids += self.encode(part.replace(mark, ""), add_start=False)
        return ids

    def _control_names(self, texts: Iterable[str]) -> set[str]:
        found: set[int] = set()
        for text in texts:
            found |= self._special & set(self.encode(text, add_start=False, allow_special=True))
        return {self._literal[token] for token in found if len(self._literal[token]) > 1}


class IncrementalDecoder:
    """Turns the tokens of one answer into text as they come.

    The pieces together equal `Tokenizer.decode` of all tokens. A character that needs several
    tokens comes with the last of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.strips_first_space

    def push(self, token: int) -> str:
        """The text that is certain after this token; often empty in the middle of a character."""
        if token in self._tokenizer.special_tokens:
            return ""
        return self._clean(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """What was held back: U+FFFD for a character that never got its last byte."""
        return self._clean(self._decoder.decode(b"", final=True))

    def _clean(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class _Pieces:
    """How a vocabulary spells bytes, read from the `decoder` part of a tokenizer file."""

    def __init__(self, document: dict[str, Any]) -> None:
        outer = cast("dict[str, Any]", document.get("decoder") or {})
        steps = cast("list[dict[str, Any]]", outer.get("decoders", [outer]))
        kinds = [step.get("type") for step in steps]
        self._alphabet: dict[str, int] | None = None
        self.strips = False
        if "ByteLevel" in kinds:
            self._alphabet = _byte_alphabet()
        elif "Metaspace" in kinds:
            step = steps[kinds.index("Metaspace")]
            scheme = step.get("prepend_scheme", "always")
            self.strips = scheme != "never" and step.get("add_prefix_space") is not False
        elif "Replace" in kinds or "ByteFallback" in kinds:
            self.strips = any(
                k == "Strip" and s.get("start") for k, s in zip(kinds, steps, strict=True)
            )
        else:
            raise UnsupportedModel(
                f"a tokenizer with the decoder {kinds} is neither byte-level nor SentencePiece-like"
            )

    def spaced(self, text: str) -> str:
        """The text of a token that was added literally."""
        return text if self._alphabet is not None else text.replace("▁", " ")

    def bytes_of(self, piece: str) -> bytes:
        """The bytes of a piece of the vocabulary."""
        if self._alphabet is not None:
            if all(character in self._alphabet for character in piece):
                return bytes(self._alphabet[character] for character in piece)
            return piece.encode()
        found = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(found[1], 16)]) if found else self.spaced(piece).encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


def _unused_character(texts: list[str]) -> str:
    used = set("".join(texts))
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
