"""What a tokenizer file does not say: special ids and the chat template."""

from __future__ import annotations

import msgspec

from unisono.errors import CorruptModel

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_settings.json"
MAX_TEMPLATE_CHARACTERS = 1 << 18

TURN_NAMES = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|endoftext|>",
)
"""Names that are control tokens in every vocabulary that has them, whatever a file says."""

STOP_NAMES = (
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<eos>",
    "</s>",
)
"""Control tokens that end an answer in some model family. In Gemma `</s>` is an HTML tag: a name
counts only where the vocabulary calls it a control token."""


class TokenizerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `tokenizer_settings.json`."""

    start_token: int | None = None
    add_start: bool | None = None
    """Whether text starts with `start_token`; None asks the tokenizer's own post-processor."""
    stop_tokens: tuple[int, ...] = ()
    """Ids that the model's files name; well-known names such as `<|im_end|>` are added on load."""
    chat_template: str | None = None
    """Jinja source."""
    names: dict[str, str] = {}
    """What the template may refer to: `bos_token`, `eos_token`, `unk_token`, `pad_token`."""

    def __post_init__(self) -> None:
        ids = [*self.stop_tokens, *([] if self.start_token is None else [self.start_token])]
        if any(not 0 <= token < 1 << 20 for token in ids):
            raise ValueError("a special token id lies outside 0 to 1,048,575")
        if self.chat_template and len(self.chat_template) > MAX_TEMPLATE_CHARACTERS:
            raise ValueError(f"the chat template has over {MAX_TEMPLATE_CHARACTERS} characters")

    def encoded(self) -> bytes:
        """As JSON with sorted keys, so that equal settings have equal bytes."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def decoded(cls, data: bytes, where: str) -> TokenizerSettings:
        """Read `encoded` form; `where` is the file that an error names.

        Raises:
            CorruptModel: not such settings.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise CorruptModel(f"{where} does not hold tokenizer settings: {error}") from error
