"""What clients that speak OpenAI may expect of any gateway, whatever is behind it.

Subclass `OpenAIClientContract` where the fixtures `base_url` (with `/v1`), `model_name` and
`api_key` name a gateway that runs in another thread or process.
"""

from __future__ import annotations

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI

from unisono.types import request_hash
from unisono.verification.receipt import Receipt, from_json

MESSAGES = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]
PROMPT = "The capital of France is"


class OpenAIClientContract:
    @pytest.fixture
    def client(self, base_url: str, api_key: str):
        with OpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            yield client

    @pytest.fixture
    async def async_client(self, base_url: str, api_key: str):
        async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            yield client

    def receipt(self, client: OpenAI, name: str) -> Receipt:
        response = client.get(f"/receipts/{name}", cast_to=httpx.Response)
        return from_json(response.content)

    def test_models_can_be_listed_and_found(self, client: OpenAI, model_name: str) -> None:
        assert model_name in [model.id for model in client.models.list()]
        assert client.models.retrieve(model_name).id == model_name

    def test_a_chat_answer_has_text_usage_and_a_receipt_that_tells_the_same(
        self, client: OpenAI, model_name: str
    ) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model=model_name, messages=MESSAGES, max_tokens=24, seed=5
        )
        answer = raw.parse()
        (choice,) = answer.choices
        assert choice.message.role == "assistant"
        assert choice.message.content
        assert choice.finish_reason in ("stop", "length")
        usage = answer.usage
        assert usage is not None
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        receipt = self.receipt(client, raw.headers["x-unisono-receipt"])
        assert receipt.id == raw.headers["x-unisono-receipt"]
        assert receipt.signature_is_good()
        assert len(receipt.tokens) == usage.completion_tokens
        assert len(receipt.request.prompt) == usage.prompt_tokens
        assert receipt.request.sampling.seed == 5
        assert receipt.finish_reason == choice.finish_reason
        assert {claim.request for claim in receipt.hops} == {request_hash(receipt.request)}

    def test_a_streamed_chat_answer_is_the_whole_one_in_pieces(
        self, client: OpenAI, model_name: str
    ) -> None:
        fields = {"model": model_name, "messages": MESSAGES, "max_tokens": 24, "seed": 6}
        whole = client.chat.completions.create(**fields)
        chunks = list(client.chat.completions.create(**fields, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[:-1] == [None] * (len(chunks) - 1)
        assert reasons[-1] == whole.choices[0].finish_reason
        receipt = self.receipt(client, chunks[-1].model_extra["unisono"]["receipt"])
        assert len(receipt.tokens) == whole.usage.completion_tokens

    def test_a_stream_ends_with_its_usage_if_that_was_asked_for(
        self, client: OpenAI, model_name: str
    ) -> None:
        chunks = list(
            client.chat.completions.create(
                model=model_name,
                messages=MESSAGES,
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[-1].choices == []
        assert 1 <= chunks[-1].usage.completion_tokens <= 8
        assert all(chunk.usage is None for chunk in chunks[:-1])

    def test_the_same_seed_gives_the_same_answer(self, client: OpenAI, model_name: str) -> None:
        texts = [
            client.completions.create(
                model=model_name, prompt=PROMPT, max_tokens=24, temperature=1.5, seed=seed
            )
            .choices[0]
            .text
            for seed in (7, 7, 8)
        ]
        assert texts[0] == texts[1] != texts[2]

    def test_of_n_choices_the_first_is_what_one_choice_would_be_and_the_others_differ(
        self, client: OpenAI, model_name: str
    ) -> None:
        fields = {"model": model_name, "prompt": PROMPT, "max_tokens": 24, "seed": 9}
        one = client.completions.create(**fields)
        three = client.completions.create(**fields, n=3)
        again = client.completions.create(**fields, n=3)
        texts = [choice.text for choice in three.choices]
        assert [choice.index for choice in three.choices] == [0, 1, 2]
        assert texts[0] == one.choices[0].text
        assert len(set(texts)) == 3
        assert texts == [choice.text for choice in again.choices]
        assert len(three.model_extra["unisono"]["receipts"]) == 3

    def test_n_streamed_choices_can_be_told_apart(self, client: OpenAI, model_name: str) -> None:
        fields = {"model": model_name, "messages": MESSAGES, "max_tokens": 12, "seed": 9, "n": 2}
        whole = client.chat.completions.create(**fields)
        texts, ended = ["", ""], [None, None]
        for chunk in client.chat.completions.create(**fields, stream=True):
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            ended[choice.index] = ended[choice.index] or choice.finish_reason
        assert texts == [choice.message.content for choice in whole.choices]
        assert ended == [choice.finish_reason for choice in whole.choices]

    def test_a_stop_string_ends_the_answer_before_it(self, client: OpenAI, model_name: str) -> None:
        fields = {"model": model_name, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        text = client.completions.create(**fields).choices[0].text
        stop = text[len(text) // 2 :][:3]
        raw = client.completions.with_raw_response.create(**fields, stop=[stop, "\0never"])
        cut = raw.parse()
        assert cut.choices[0].text == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
        chunks = list(client.completions.create(**fields, stop=stop, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == cut.choices[0].text
        receipt = self.receipt(client, raw.headers["x-unisono-receipt"])
        assert receipt.request.stop == (stop, "\0never")
        assert len(receipt.tokens) == cut.usage.completion_tokens

    def test_a_prompt_may_be_tokens_and_there_may_be_several(
        self, client: OpenAI, model_name: str
    ) -> None:
        fields = {"model": model_name, "max_tokens": 8, "temperature": 0}
        raw = client.completions.with_raw_response.create(**fields, prompt=PROMPT)
        tokens = list(
            self.receipt(client, raw.headers["x-unisono-receipt"]).request.prompt,
        )
        text = raw.parse().choices[0].text
        assert client.completions.create(**fields, prompt=tokens).choices[0].text == text
        several = client.completions.create(**fields, prompt=[tokens, tokens[:-1]], n=1)
        assert several.choices[0].text == text
        assert several.usage.prompt_tokens == 2 * len(tokens) - 1
        texts = client.completions.create(**fields, prompt=[PROMPT, "Another"]).choices
        assert [choice.index for choice in texts] == [0, 1]
        assert texts[0].text == text

    def test_chat_logprobs_name_every_token_of_the_text(
        self, client: OpenAI, model_name: str
    ) -> None:
        fields = {
            "model": model_name,
            "messages": MESSAGES,
            "max_tokens": 12,
            "seed": 3,
            "logprobs": True,
            "top_logprobs": 2,
        }
        (choice,) = client.chat.completions.create(**fields).choices
        scores = choice.logprobs.content
        # The last token may reach into a stop string, and the first may be a stripped space.
        spelled = b"".join(bytes(score.bytes) for score in scores).decode(errors="replace")
        assert choice.message.content in spelled
        assert all(score.logprob <= 0 and len(score.top_logprobs) == 2 for score in scores)
        streamed = [
            score
            for chunk in client.chat.completions.create(**fields, stream=True)
            if chunk.choices[0].logprobs
            for score in chunk.choices[0].logprobs.content
        ]
        assert streamed == scores

    def test_text_logprobs_say_where_each_token_begins(
        self, client: OpenAI, model_name: str
    ) -> None:
        (choice,) = client.completions.create(
            model=model_name, prompt=PROMPT, max_tokens=12, seed=3, logprobs=2
        ).choices
        scores = choice.logprobs
        assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset)
        assert len(scores.top_logprobs) == len(scores.tokens)
        assert scores.text_offset == sorted(scores.text_offset)
        assert scores.text_offset[0] == 0

    def test_the_client_raises_the_exception_that_fits_the_error(
        self, client: OpenAI, model_name: str
    ) -> None:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="nobody", messages=MESSAGES)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(model=model_name, prompt=PROMPT, max_tokens=10**7)
        assert long.value.code == "context_length_exceeded"
        assert long.value.param == "max_tokens"
        with pytest.raises(openai.BadRequestError) as hot:
            client.chat.completions.create(model=model_name, messages=MESSAGES, temperature=9)
        assert hot.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as tools:
            client.chat.completions.create(
                model=model_name,
                messages=MESSAGES,
                tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
            )
        assert tools.value.param == "tools"

    def test_a_stream_that_is_closed_early_does_no_harm(
        self, client: OpenAI, model_name: str
    ) -> None:
        stream = client.completions.create(
            model=model_name, prompt=PROMPT, max_tokens=24, stream=True
        )
        next(iter(stream))
        stream.close()
        assert client.completions.create(model=model_name, prompt=PROMPT, max_tokens=2).choices

    async def test_the_async_client_streams_too(
        self, async_client: AsyncOpenAI, model_name: str
    ) -> None:
        fields = {"model": model_name, "messages": MESSAGES, "max_tokens": 12, "seed": 4}
        whole = await async_client.chat.completions.create(**fields)
        stream = await async_client.chat.completions.create(**fields, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content

    def test_langchain_answers_and_streams(
        self, base_url: str, api_key: str, model_name: str
    ) -> None:
        chat = ChatOpenAI(
            base_url=base_url,
            api_key=api_key,
            model=model_name,
            max_tokens=12,
            seed=4,
            temperature=0,
            max_retries=0,
            stream_usage=True,
        )
        whole = chat.invoke("Say something")
        assert whole.content
        assert whole.usage_metadata["output_tokens"] >= 1
        pieces = list(chat.stream("Say something"))
        assert "".join(piece.content for piece in pieces) == whole.content
        total = sum(
            piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata
        )
        assert total == whole.usage_metadata["output_tokens"]
