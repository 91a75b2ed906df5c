from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.scripted import CONTEXT, START, STOP, ByteTokenizer, scripted_model
from unisono.errors import ConfigurationError, RequestError
from unisono.gateway.requests import Ask, read_chat, read_text
from unisono.gateway.sampling import fixed, seed_of_sample
from unisono.gateway.served import ServedModels
from unisono.gateway.settings import GatewaySettings
from unisono.types import Q16, Sampling

HI = [{"role": "user", "content": "Hi"}]


def chat(tokenizer: ByteTokenizer | None = None, **fields: Any) -> Ask:
    body = msgspec.json.encode({"model": "default", "messages": HI, "max_tokens": 5, **fields})
    return read_chat(body, ServedModels([scripted_model(tokenizer)]), GatewaySettings())


def text(**fields: Any) -> Ask:
    body = msgspec.json.encode({"model": "default", "prompt": "Hi", **fields})
    return read_text(body, ServedModels([scripted_model()]), GatewaySettings())


def test_absent_numbers_have_the_defaults_of_openai() -> None:
    (request,) = chat(seed=1).requests
    assert request.sampling == Sampling(temperature=Q16, seed=1)
    assert text().requests[0].max_tokens == 16


def test_null_is_the_same_as_absent() -> None:
    nothing = dict.fromkeys(
        ("temperature", "top_p", "n", "stop", "stream", "logprobs", "tools", "response_format")
    )
    assert chat(seed=1, **nothing).requests == chat(seed=1).requests


def test_numbers_become_integers_with_sixteen_fraction_bits() -> None:
    sampling = (
        chat(
            temperature=0.7,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias={"65": -100, "7": 1.5},
            seed=2**63 - 1,
        )
        .requests[0]
        .sampling
    )
    assert sampling == Sampling(
        temperature=45875,
        top_p=58982,
        top_k=40,
        min_p=3277,
        repetition_penalty=72090,
        presence_penalty=-Q16 // 2,
        frequency_penalty=Q16 // 4,
        logit_bias=((7, 98304), (65, -100 * Q16)),
        seed=2**63 - 1,
    )


@given(st.integers(-2 * Q16, 2 * Q16), st.sampled_from([-0.5, -0.25, 0, 0.25, 0.4999]))
def test_rounding_is_half_up(units: int, excess: float) -> None:
    assert fixed((units + excess) / Q16, "x", -3, 3) == units


def test_the_largest_fraction_below_a_half_is_not_rounded_up() -> None:
    assert fixed(0.49999999999999994 / Q16, "x", 0, 1) == 0


def test_an_absent_seed_is_drawn_anew_for_each_request() -> None:
    seeds = {chat().requests[0].sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seeds_of_samples_are_fixed_for_ever() -> None:
    # Receipts are checked against these values: they must not change.
    assert seed_of_sample(42, 0) == 42
    assert seed_of_sample(42, 1) == 3708480878457650832
    assert len({seed_of_sample(42, i) for i in range(8)}) == 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"65": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [*HI, {"role": "user", "content": 3}]}, "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [1, 9999]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": ["a"] * 65}, "n"),
        ({"prompt": "x" * CONTEXT}, "prompt"),
    ],
)
def test_what_is_wrong_with_a_text_completion_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as refused:
        text(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"model":"\xff"}', b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        read_chat(body, ServedModels([scripted_model()]), GatewaySettings())
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    fields = {"model": "default", "messages": HI}
    del fields[missing]
    with pytest.raises(RequestError) as refused:
        read_chat(msgspec.json.encode(fields), ServedModels([scripted_model()]), GatewaySettings())
    assert refused.value.param == missing


def test_fields_that_change_nothing_are_ignored() -> None:
    harmless = {
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "something_new": 1,
    }
    assert chat(seed=1, **harmless).requests == chat(seed=1).requests


def test_content_may_be_text_parts_and_developer_means_system() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    ask = chat(
        messages=[{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    )
    rendered = bytes(ask.requests[0].prompt[1:]).decode()
    assert rendered == "System: Be brief\nUser: Hi\nAssistant:"


def test_a_model_without_a_template_stops_where_the_user_would_speak() -> None:
    plain = chat(stop="x").requests[0]
    assert plain.stop == ("x", "\nUser:")
    assert plain.prompt[0] == START
    templated = chat(ByteTokenizer(chat_template="{{ messages }}"), stop="x").requests[0]
    assert templated.stop == ("x",)
    assert templated.prompt[0] != START  # the template writes it


def test_a_chat_answer_without_a_limit_may_fill_the_context() -> None:
    (request,) = chat(max_tokens=None).requests
    assert len(request.prompt) + request.max_tokens == CONTEXT


def test_the_operator_may_limit_prompts_and_default_lengths() -> None:
    models = ServedModels([scripted_model()])
    body = msgspec.json.encode({"model": "default", "messages": HI})
    settings = GatewaySettings(default_chat_tokens=7)
    assert read_chat(body, models, settings).requests[0].max_tokens == 7
    with pytest.raises(RequestError) as refused:
        read_chat(body, models, GatewaySettings(max_prompt_tokens=3))
    assert refused.value.code == "context_length_exceeded"


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt() -> None:
    ask = text(prompt=["a", "bc"], n=2, seed=1)
    assert [(r.prompt[1:], r.sampling.seed) for r in ask.requests] == [
        ((97,), 1),
        ((97,), seed_of_sample(1, 1)),
        ((98, 99), 1),
        ((98, 99), seed_of_sample(1, 1)),
    ]
    assert ask.prompt_tokens == 2 + 3


def test_an_answer_may_go_on_past_the_end_of_text_if_asked() -> None:
    assert text().requests[0].stop_tokens == (STOP,)
    assert text(ignore_eos=True).requests[0].stop_tokens == ()


def test_a_model_goes_by_name_alias_and_id() -> None:
    model = scripted_model()
    models = ServedModels([model])
    assert all(models.find(name) is model for name in ("scripted-1b", "lab/scripted", model.id))
    with pytest.raises(ConfigurationError, match="names two served models"):
        ServedModels([model, scripted_model(id="ab" * 32)])


def test_settings_never_show_the_keys() -> None:
    assert "secret" not in repr(GatewaySettings(api_keys=("secret",)))
    with pytest.raises(ConfigurationError):
        GatewaySettings(api_keys=("",))
    with pytest.raises(ConfigurationError):
        GatewaySettings(max_running_answers=0)
