"""Conversations as prompts: the model's own Jinja template, or a plain form without one."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from unisono.errors import RequestError, UnsupportedModel

MAX_RENDERED_CHARACTERS = 1 << 24
ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


def flatten(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with `content` as one string (text parts joined, null empty).

    Raises:
        RequestError: no messages, no role, or content other than text.
    """
    if not messages:
        raise RequestError("messages is empty: at least one message is expected", "messages")
    result: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                cast("dict[str, Any]", part) if isinstance(part, dict) else {}
                for part in cast("list[object]", content)
            ]
            if any(part.get("type") != "text" for part in parts):
                raise RequestError(
                    f"messages[{i}].content has a part that is not text", f"messages[{i}].content"
                )
            content = "".join(str(part.get("text", "")) for part in parts)
        if content is None:
            content = ""
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"messages[{i}] needs a role and text as its content", f"messages[{i}]"
            )
        result.append(message | {"content": content})
    return result


def plain_chat(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation for a model that knows no chat format.

    Raises:
        RequestError: a role other than system, developer, user and assistant.
    """
    text = ""
    for i, message in enumerate(messages):
        name = ROLES.get(message["role"])
        if name is None:
            raise RequestError(
                f"this model has no chat template, so messages[{i}].role must be one of"
                f" {', '.join(ROLES)}",
                f"messages[{i}].role",
            )
        end = "\n\n" if name == "System" else "\n"
        text += f"{name}: {message['content']}{end}"
    return text + "Assistant:"


class ChatTemplate:
    """A model's template, rendered in Jinja's sandbox with bounded output.

    The environment is the one that templates are written for (Hugging Face's `chat_template`):
    `messages`, `add_generation_prompt`, token names such as `bos_token`, `raise_exception`,
    `strftime_now`, `tojson`, `{% break %}`, `{% generation %}`.

    The sandbox keeps a template away from the interpreter, and its output and the common ways to
    grow a value are bounded. It does not bound time and memory against a hostile template:
    templates belong to a model that an operator chose, and requests only supply strings.
    """

    def __init__(self, source: str, names: dict[str, str], where: str) -> None:
        self.source = source
        self._names = names
        environment: Any = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template: jinja2.Template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UnsupportedModel(
                f"{where}: the model's chat template is not usable: {error}"
            ) from error

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt, ready for the assistant's answer.

        Raises:
            RequestError: the template refuses the conversation or fails on it, or the prompt is
                too long.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=True, tools=None, **self._names
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED_CHARACTERS:
                    raise _too_long()
        except _Refusal as error:
            raise RequestError(f"the model's chat template refuses: {error}", "messages") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise RequestError(
                f"the model's chat template fails on this conversation: {error}", "messages"
            ) from error
        return "".join(parts)


class _Refusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


def _refuse(message: str) -> NoReturn:
    raise _Refusal(message)


def _too_long() -> RequestError:
    return RequestError(
        f"the rendered conversation exceeds {MAX_RENDERED_CHARACTERS} characters", "messages"
    )


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML characters, which would change the prompt.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _length(value: Any) -> int | None:
    sized = isinstance(value, str | list | tuple)
    return len(cast("Sequence[Any]", value)) if sized else None


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also refuses operators that make a small template fill the memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise jinja2.exceptions.SecurityError(f"operator {operator} is not allowed")
        if operator in "+*":
            sizes = [_length(x) for x in (left, right)]
            if operator == "*" and any(size is not None for size in sizes):
                count = [x for x in (left, right) if isinstance(x, int)]
                grown = max(size or 0 for size in sizes) * max(count, default=1)
            else:
                grown = sum(size or 0 for size in sizes)
            if grown > MAX_RENDERED_CHARACTERS:
                raise jinja2.exceptions.SecurityError("a value grows beyond the bound")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an answer for training: here it is only a block."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
