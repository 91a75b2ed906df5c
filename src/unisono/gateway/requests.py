"""From the bytes of an HTTP body to canonical generation requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import floor
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from unisono.errors import RequestError
from unisono.gateway.ensembles import members_of
from unisono.gateway.sampling import seed_of_sample, to_sampling, whole
from unisono.gateway.schemas import AskedSampling, ChatAsked, ChatMessage, TextAsked
from unisono.gateway.served import ServedModel, ServedModels
from unisono.gateway.settings import GatewaySettings
from unisono.routing.demand import UNIT, Demand
from unisono.types import GenerationRequest
from unisono.wire.terms import TIERS
from unisono.wire.votes import MAX_QUORUM, MIN_QUORUM

MAX_CHOICES = 8
MAX_COST = 1_000_000
"""Units of account: what one request may cost at most."""
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_TOP_LOGPROBS = 20
DEFAULT_TEXT_TOKENS = 16
"""OpenAI's default length of a text completion."""

# A template knows `system`; `developer` is OpenAI's newer word for it.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Fields that would change what the answer means. The values are those that change nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"], []),
    "web_search_options": (),
    "min_tokens": (0,),
    "bad_words": ([],),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": ("",),
    "json_schema": (),
    "prompt_embeds": (),
    "continue_final_message": (False,),
    "prompt_logprobs": (),
}

Asked = TypeVar("Asked", bound=AskedSampling)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants: one generation request per choice, in the order of their index."""

    model: ServedModel
    requests: tuple[GenerationRequest, ...]
    prompt_tokens: int
    """Tokens of the prompts, each counted once however many choices it has."""
    top_logprobs: int
    """How many alternatives per token; 0 is the token's own probability, -1 is none at all."""
    stream: bool
    include_usage: bool
    asked: ChatAsked | TextAsked
    """The client's own words, for those who do not compute from tokens."""
    choices_per_prompt: int
    quorum: int
    """How many chains compute each choice."""
    demand: Demand
    """What nodes have to promise to compute a choice."""
    again: Callable[[ServedModel], Ask] = field(compare=False, repr=False)
    """The same request put to another model; may raise RequestError, as reading it may."""
    ensemble: tuple[ServedModel, ...] = ()
    """The models that answer together; empty where one does alone."""

    @property
    def answers(self) -> int:
        """How many answers the network computes."""
        return self.quorum * max(1, len(self.ensemble)) * len(self.requests)

    @property
    def speaks_tokens(self) -> bool:
        """Whether the client itself used token ids, which mean something else to another model."""
        asked = self.asked
        if asked.logit_bias:
            return True
        if isinstance(asked, ChatAsked) or isinstance(asked.prompt, str):
            return False
        return not all(isinstance(prompt, str) for prompt in asked.prompt)


def read_chat(body: bytes, models: ServedModels, settings: GatewaySettings) -> Ask:
    """A chat completion request.

    Raises:
        RequestError: the body is not one, or asks for what this gateway does not do.
    """
    asked = _read(body, ChatAsked)
    model = models.find(asked.model)
    return _chat(asked, settings, model, members_of(asked, model, models))


def _chat(
    asked: ChatAsked,
    settings: GatewaySettings,
    model: ServedModel,
    ensemble: tuple[ServedModel, ...] = (),
) -> Ask:
    tokenizer = model.tokenizer
    prompt = tokenizer.encode_chat(_messages(asked.messages))
    limits = (asked.max_completion_tokens, asked.max_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise RequestError(
            "'max_tokens' and 'max_completion_tokens' differ: set only max_completion_tokens",
            param="max_tokens",
        )
    name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    limit = limits[0] if limits[0] is not None else limits[1]
    room = model.context_length - len(prompt)
    default = min(room, settings.default_chat_tokens or room)
    return _ask(
        asked,
        model,
        settings,
        prompts=[prompt],
        prompt_field="messages",
        max_tokens=(default if limit is None else limit, name),
        top_logprobs=_chat_logprobs(asked),
        more_stops=() if tokenizer.chat_template else tokenizer.plain_chat_stops,
        again=partial(_chat, asked, settings),
        ensemble=ensemble,
    )


def read_text(body: bytes, models: ServedModels, settings: GatewaySettings) -> Ask:
    """A text completion request.

    Raises:
        RequestError: the body is not one, or asks for what this gateway does not do.
    """
    asked = _read(body, TextAsked)
    for name, refused in (
        ("echo", bool(asked.echo)),
        ("suffix", bool(asked.suffix)),
        ("best_of", asked.best_of is not None and asked.best_of != 1),
    ):
        if refused:
            raise _unsupported(name)
    model = models.find(asked.model)
    return _text(asked, settings, model, members_of(asked, model, models))


def _text(
    asked: TextAsked,
    settings: GatewaySettings,
    model: ServedModel,
    ensemble: tuple[ServedModel, ...] = (),
) -> Ask:
    return _ask(
        asked,
        model,
        settings,
        prompts=_prompts(asked.prompt, model),
        prompt_field="prompt",
        max_tokens=(
            DEFAULT_TEXT_TOKENS if asked.max_tokens is None else asked.max_tokens,
            "max_tokens",
        ),
        top_logprobs=(
            -1 if asked.logprobs is None else whole(asked.logprobs, "logprobs", 0, MAX_TOP_LOGPROBS)
        ),
        more_stops=(),
        again=partial(_text, asked, settings),
        ensemble=ensemble,
    )


def _read(body: bytes, kind: type[Asked]) -> Asked:
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError as error:
        raise RequestError("The body is not a JSON object", code="invalid_json") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"The body is not JSON: {error}", code="invalid_json") from error
    for name, harmless in UNSUPPORTED.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            raise _unsupported(name)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        # msgspec ends its message with the path, except where the whole body is meant.
        found = re.search(r"`\$\.([^`]*)`$", text) or re.search(r"required field `(\w+)`$", text)
        param = found.group(1) if found else None
        raise RequestError(text, param=param) from error


def _unsupported(field: str) -> RequestError:
    return RequestError(
        f"'{field}' is not supported by this gateway: leave it out",
        param=field,
        code="unsupported_parameter",
    )


def _ask(
    asked: ChatAsked | TextAsked,
    model: ServedModel,
    settings: GatewaySettings,
    *,
    prompts: Sequence[Sequence[int]],
    prompt_field: str,
    max_tokens: tuple[int, str],
    top_logprobs: int,
    more_stops: tuple[str, ...],
    again: Callable[[ServedModel], Ask],
    ensemble: tuple[ServedModel, ...],
) -> Ask:
    if ensemble and top_logprobs >= 0:
        raise RequestError(
            "log probabilities are one model's: leave out 'logprobs' or 'ensemble'",
            param="logprobs",
        )
    for prompt in prompts:
        for each in ensemble or (model,):
            _check_room(len(prompt), max_tokens, each, settings, prompt_field)
    count = whole(1 if asked.n is None else asked.n, "n", 1, MAX_CHOICES)
    quorum = 1
    if asked.quorum is not None:
        quorum = whole(asked.quorum, "quorum", MIN_QUORUM, MAX_QUORUM)
    chains = quorum * max(1, len(ensemble))
    answers = chains * count * len(prompts)
    if answers > settings.max_running_answers:
        by_quorum = f", by {chains} chains each," if chains > 1 else ""
        raise RequestError(
            f"{len(prompts)} prompts with {count} choices each{by_quorum} are {answers} answers; "
            f"this gateway computes {settings.max_running_answers} at a time: ask for fewer",
            param="n" if quorum == 1 else "quorum",
        )
    sampling = to_sampling(
        vocabulary_size=model.tokenizer.vocabulary_size,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=asked.logit_bias,
        seed=asked.seed,
    )
    stops = tuple(dict.fromkeys((*_stops(asked.stop), *more_stops)))
    requests = tuple(
        GenerationRequest(
            model=model.id,
            prompt=tuple(prompt),
            max_tokens=max_tokens[0],
            sampling=msgspec.structs.replace(sampling, seed=seed_of_sample(sampling.seed, sample)),
            stop_tokens=() if asked.ignore_eos else model.tokenizer.stop_tokens,
            stop=stops,
            ensemble=tuple(each.id for each in ensemble) or UNSET,
        )
        for prompt in prompts
        for sample in range(count)
    )
    options = asked.stream_options
    return Ask(
        model=model,
        requests=requests,
        prompt_tokens=sum(map(len, prompts)),
        top_logprobs=top_logprobs,
        stream=bool(asked.stream),
        include_usage=bool(options and options.include_usage),
        asked=asked,
        choices_per_prompt=count,
        quorum=quorum,
        demand=_demand(asked).shared(count * len(prompts)),
        again=again,
        ensemble=ensemble,
    )


def _demand(asked: AskedSampling) -> Demand:
    most = None
    if asked.max_cost is not None:
        if not 0 <= asked.max_cost <= MAX_COST:  # NaN too
            raise RequestError(
                f"'max_cost' is {asked.max_cost}: expected an amount from 0 to {MAX_COST}",
                param="max_cost",
            )
        most = floor(asked.max_cost * UNIT)
    if asked.tier is not None and asked.tier not in TIERS:
        raise RequestError(
            f"'tier' is {asked.tier!r}: expected one of {', '.join(TIERS)}", param="tier"
        )
    return Demand(most, TIERS.index(asked.tier) if asked.tier else 0)


def _check_room(
    prompt: int,
    max_tokens: tuple[int, str],
    model: ServedModel,
    settings: GatewaySettings,
    field: str,
) -> None:
    """Refuse what does not fit, in the words that OpenAI's clients look for."""
    if prompt == 0:
        raise RequestError(f"'{field}' is empty: expected at least one token", param=field)
    context, (wanted, name) = model.context_length, max_tokens
    if prompt >= context:
        raise RequestError(
            f"This model's maximum context length is {context} tokens. However, your messages "
            f"resulted in {prompt} tokens. Please reduce the length of the {field}.",
            param=field,
            code="context_length_exceeded",
        )
    limit = settings.max_prompt_tokens
    if limit is not None and prompt > limit:
        raise RequestError(
            f"This gateway admits prompts of {limit} tokens; this one has {prompt}. "
            f"Please reduce the length of the {field}.",
            param=field,
            code="context_length_exceeded",
        )
    if wanted < 1:
        raise RequestError(f"'{name}' is {wanted}: expected at least 1", param=name)
    if prompt + wanted > context:
        raise RequestError(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt + wanted} tokens ({prompt} in the {field}, {wanted} in the completion). "
            f"Please reduce the length of the {field} or of the completion.",
            param=name,
            code="context_length_exceeded",
        )


def _messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    if not messages:
        raise RequestError("'messages' is empty: expected at least one", param="messages")
    plain: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        role = ROLES.get(message.role)
        if role is None:
            raise RequestError(
                f"'{param}.role' is '{message.role[:40]}': this gateway supports "
                "system, developer, user and assistant",
                param=f"{param}.role",
            )
        if message.tool_calls:
            raise _unsupported(f"{param}.tool_calls")
        plain.append({"role": role, "content": _content(message, f"{param}.content")})
    return plain


def _content(message: ChatMessage, param: str) -> str:
    if message.content is None:
        raise RequestError(f"'{param}' is missing: expected text", param=param)
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestError(
                f"'{param}' has a part of type '{part.type[:40]}': this gateway supports only "
                "parts of type 'text' with a text",
                param=param,
            )
        texts.append(part.text)
    return "".join(texts)


def _chat_logprobs(asked: ChatAsked) -> int:
    if asked.top_logprobs is None:
        return 0 if asked.logprobs else -1
    top = whole(asked.top_logprobs, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if asked.logprobs:
        return top
    if top == 0:
        return -1
    raise RequestError("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")


def _prompts(prompt: str | list[Any], model: ServedModel) -> list[list[int]]:
    """One list of token ids per prompt, from any of the four forms."""
    if isinstance(prompt, str):
        return [model.tokenizer.encode(prompt)]
    if not prompt:
        raise RequestError("'prompt' is empty: expected at least one prompt", param="prompt")
    if all(isinstance(part, str) for part in prompt):
        return [model.tokenizer.encode(part) for part in prompt]
    if all(isinstance(part, list) for part in prompt):
        return [_tokens(part, model) for part in prompt]
    return [_tokens(prompt, model)]


def _tokens(prompt: list[Any], model: ServedModel) -> list[int]:
    size = model.tokenizer.vocabulary_size
    for token in prompt:
        if type(token) is not int or not 0 <= token < size:
            raise RequestError(
                f"'prompt' must be text, texts, token ids from 0 to {size - 1}, "
                "or lists of such token ids",
                param="prompt",
            )
    return prompt


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if len(stops) > MAX_STOPS or any(not 1 <= len(each) <= MAX_STOP_LENGTH for each in stops):
        raise RequestError(
            f"'stop' must be up to {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters",
            param="stop",
        )
    return stops
