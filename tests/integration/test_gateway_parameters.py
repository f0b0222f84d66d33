"""Every request parameter on its way through a real gateway, and what comes back of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from protocol.errors import ErrorCode
from protocol.wire.messages import Generate, ParseBatch, Prepare
from tests.fakes.fake_workers import VOCAB_SIZE
from tests.fakes.running_gateway import MESSAGES, RunningGateway, events_of, running_gateway

WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@asynccontextmanager
async def openai_client(gateway: RunningGateway) -> AsyncIterator[Any]:
    """An unmodified `openai.AsyncOpenAI`; untyped, since bodies here are plain."""
    url = str(gateway.client.base_url)
    async with openai.AsyncOpenAI(
        api_key="any",
        base_url=f"{url}/v1",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client


async def complete(gateway: RunningGateway, **fields: Any) -> httpx.Response:
    """A completion of one prompt."""
    body = {"model": "demo", "prompt": "t1t2t3t4t5", **fields}
    return await gateway.client.post("/v1/completions", json=body)


async def test_every_sampling_parameter_reaches_the_engine(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        answer = await gateway.chat(
            logit_bias={"5": -100, "7": 1.5},
            allowed_token_ids=[1, 2],
            bad_words=["no", "never"],
            min_tokens=1,
            max_completion_tokens=9,
            ignore_eos=True,
            stop=["a"],
            stop_token_ids=[3],
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            seed=11,
            logprobs=True,
            top_logprobs=2,
            prompt_logprobs=1,
            truncate_prompt_tokens=3,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            n=2,
        )
        assert answer.status_code == 200
        first, second = sorted(engine.of(Generate), key=lambda one: one.choice)
        sampling = first.sampling
        assert sampling.logit_bias == ((5, -100.0), (7, 1.5))
        assert sampling.allowed_token_ids == (1, 2)
        assert sampling.bad_words == ("no", "never")
        assert (sampling.min_tokens, sampling.max_tokens) == (1, 9)
        assert sampling.ignore_eos
        assert (sampling.stop, sampling.stop_token_ids) == (("a",), (3,))
        assert sampling.include_stop_str_in_output
        assert not sampling.skip_special_tokens
        assert sampling.seed == 11
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
        assert (sampling.logprobs, sampling.prompt_logprobs) == (2, 1)
        # One choice tells of the prompt that all share.
        assert second.sampling.prompt_logprobs is None
        assert (first.num_choices, first.is_streaming) == (2, False)
        (prepare,) = engine.of(Prepare)
        assert prepare.truncate_prompt_tokens == 3


async def test_an_engine_learns_that_somebody_reads_along(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        await gateway.chat(stream=True)
        assert engine.of(Generate)[0].is_streaming


async def test_nothing_is_asked_of_an_engine_that_the_client_did_not_ask_for(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        await gateway.chat()
        sampling = engine.of(Generate)[0].sampling
        assert (sampling.logprobs, sampling.prompt_logprobs) == (None, None)
        assert (sampling.logit_bias, sampling.allowed_token_ids, sampling.bad_words) == (
            (),
            None,
            (),
        )
        assert engine.of(Prepare)[0].truncate_prompt_tokens is None


async def test_chat_tokens_come_with_their_log_probabilities(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, openai_client(gateway) as client:
        await gateway.auth()
        await gateway.engine()
        fields = {"model": "demo", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
        whole = await client.chat.completions.create(**fields)
        content = whole.choices[0].logprobs.content
        assert [one.token for one in content] == ["Hello", ", world"]
        assert [one.token for one in content[0].top_logprobs] == [" yes"]
        assert content[0].bytes == list(b"Hello")
        stream = await client.chat.completions.create(**fields, stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
        streamed = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
        assert streamed == content


async def test_tokens_are_named_by_their_ids_when_asked(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        fields = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
        (choice,) = (await gateway.chat(**fields)).json()["choices"]
        tokens = choice["logprobs"]["content"]
        assert [token["token"] for token in tokens] == ["token_id:0", "token_id:1"]
        assert tokens[0]["top_logprobs"][0]["token"] == "token_id:900"


async def test_the_tokens_of_reasoning_and_calls_are_not_those_of_the_content(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        await gateway.engine(
            tool_format="hermes",
            reasoning_format="think",
            text=("<think>hm</think>", "well", " then", "<call>", '{"a":1}'),
        )
        fields = {"tools": [WEATHER], "logprobs": True, "return_token_ids": True}
        (choice,) = (await gateway.chat(**fields)).json()["choices"]
        assert choice["message"]["content"] == "well then"
        assert [one["token"] for one in choice["logprobs"]["content"]] == ["well", " then"]
        assert choice["token_ids"] == [0, 1, 2, 3, 4]
        events = events_of((await gateway.chat(**fields, stream=True)).text)
        chunks = [event["choices"][0] for event in events[:-1]]
        told = [
            (chunk["delta"]["content"], [one["token"] for one in chunk["logprobs"]["content"]])
            for chunk in chunks
            if chunk["logprobs"]
        ]
        assert told == [("well then", ["well", " then"])]
        assert [one for chunk in chunks for one in chunk.get("token_ids", ())] == [0, 1, 2, 3, 4]


async def test_reasoning_is_left_out_when_the_client_does_not_want_it(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        await gateway.engine(reasoning_format="think", text=("<think>hm</think>", "well"))
        assert "hm" in (await gateway.chat()).text
        assert "hm" not in (await gateway.chat(include_reasoning=False)).text
        assert "hm" not in (await gateway.chat(include_reasoning=False, stream=True)).text


async def test_the_best_choices_are_shown_and_all_are_counted(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, openai_client(gateway) as client:
        auth = await gateway.auth()
        engine = await gateway.engine()
        engine.logprob_of_choice = {0: -3.0, 1: -1.0, 2: -2.0}
        answer = await client.completions.create(
            model="demo", prompt="x", best_of=3, n=2, max_tokens=4, logprobs=0
        )
        shown = [choice.logprobs.token_logprobs for choice in answer.choices]
        assert shown == [[-1.0, -1.0], [-2.0, -2.0]]
        assert answer.usage.completion_tokens == 6
        await auth.until(lambda: len(auth.settled()) == 1)
        assert auth.settled()[0].completion_tokens == 6
        # To rank them, the engine tells of the chosen tokens although the client didn't ask.
        plain = (await complete(gateway, best_of=3)).json()
        assert [choice["logprobs"] for choice in plain["choices"]] == [None]
        assert engine.of(Generate)[-1].sampling.logprobs == 0


async def test_an_echo_has_the_prompt_before_the_text_with_its_tokens(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, openai_client(gateway) as client:
        await gateway.auth()
        await gateway.engine()
        fields = {"model": "demo", "prompt": "t1t2t3t4t5", "echo": True, "logprobs": 1}
        (choice,) = (await client.completions.create(**fields)).choices
        assert choice.text == "t1t2t3t4t5Hello, world"
        listed = choice.logprobs
        assert listed.tokens == ["t1", "t2", "t3", "t4", "t5", "Hello", ", world"]
        assert listed.token_logprobs[:2] == [None, -1.5]
        assert listed.top_logprobs[1] == {"t2": -1.5, " yes": -0.5}
        assert listed.text_offset == [0, 2, 4, 6, 8, 10, 15]
        stream = await client.completions.create(**fields, stream=True, n=2)
        texts, offsets = ["", ""], [[], []]  # type: ignore[var-annotated]
        async for chunk in stream:
            (one,) = chunk.choices
            texts[one.index] += one.text
            offsets[one.index] += one.logprobs.text_offset if one.logprobs else []
        assert texts == [choice.text] * 2
        assert offsets == [listed.text_offset] * 2


async def test_without_output_tokens_only_the_prompt_is_looked_at(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine(text=("Hello",))
        answer = (await complete(gateway, echo=True, max_tokens=0, logprobs=0)).json()
        (choice,) = answer["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("t1t2t3t4t5", "length")
        assert choice["logprobs"]["tokens"] == ["t1", "t2", "t3", "t4", "t5"]
        assert answer["usage"]["completion_tokens"] == 0
        await auth.until(lambda: len(auth.settled()) == 1)
        assert auth.settled()[0].completion_tokens == 0


async def test_a_choice_waits_for_the_prompt_that_another_one_tells(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        answer = asyncio.create_task(
            complete(gateway, echo=True, logprobs=0, n=2, stream=True, max_tokens=1)
        )
        await engine.until(lambda: len(engine.of(Generate)) == 2)
        first, second = sorted(engine.of(Generate), key=lambda one: one.choice)
        engine.emit(second, "B")
        engine.finish(second, "length", 1)
        engine.tell_prompt(first, 2, 3)
        engine.tell_prompt(first, 4, 5)
        engine.emit(first, "A")
        engine.finish(first, "length", 1)
        choices = [event["choices"][0] for event in events_of((await answer).text)[:-1]]
        for index, letter in enumerate("AB"):
            mine = [choice for choice in choices if choice["index"] == index]
            assert [choice["text"] for choice in mine] == ["t1t2t3t4t5", letter, ""]
            assert mine[0]["logprobs"]["tokens"] == ["t1", "t2", "t3", "t4", "t5"]
            assert mine[-1]["finish_reason"] == "length"


async def test_prompt_logprobs_are_told_beside_the_choices_in_chat(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        body = (await gateway.chat(prompt_logprobs=1, return_token_ids=True)).json()
        assert body["prompt_token_ids"] == [1, 2, 3, 4, 5]
        told = body["prompt_logprobs"]
        assert told[0] is None
        assert [list(one) for one in told[1:]] == [[str(number), "900"] for number in (2, 3, 4, 5)]
        assert told[1]["2"] == {"logprob": -1.5, "rank": 3, "decoded_token": "t2"}
        (choice,) = (await complete(gateway, prompt_logprobs=0)).json()["choices"]
        assert len(choice["prompt_logprobs"]) == 5


async def test_every_choice_of_every_prompt_tells_its_own(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        fields = {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 0, "max_tokens": 2}
        choices = (await complete(gateway, prompt_logprobs=0, **fields)).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert [len(choice["prompt_logprobs"]) for choice in choices] == [5] * 4
        assert {choice["text"] for choice in choices} == {"t1t2t3t4t5Hello, world"}
        told = [one for one in engine.of(Generate) if one.sampling.prompt_logprobs is not None]
        assert len({one.request_id for one in told}) == len(told) == 2
        events = events_of((await complete(gateway, stream=True, **fields)).text)
        first: dict[int, Any] = {}
        for event in events[:-1]:
            first.setdefault(event["choices"][0]["index"], event["choices"][0])
        assert sorted(first) == [0, 1, 2, 3]
        for choice in first.values():
            assert choice["text"] == "t1t2t3t4t5"
            assert len(choice["logprobs"]["tokens"]) == 5


async def test_a_prompt_that_was_half_told_is_told_anew_by_the_next_engine(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        answer = asyncio.create_task(gateway.chat(prompt_logprobs=0))
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        engine.tell_prompt(engine.of(Generate)[0], 2, 3)
        engine.fail(engine.of(Generate)[0], ErrorCode.WORKER_UNAVAILABLE)
        await engine.until(lambda: len(engine.of(Generate)) == 2)
        again = engine.of(Generate)[1]
        assert again.sampling.prompt_logprobs == 0
        engine.tell_prompt(again, 2, 3, 4, 5)
        engine.fail(again, ErrorCode.WORKER_UNAVAILABLE)
        await engine.until(lambda: len(engine.of(Generate)) == 3)
        last = engine.of(Generate)[2]
        assert last.sampling.prompt_logprobs is None
        engine.emit(last, "a")
        engine.finish(last, "stop", 1)
        assert len((await answer).json()["prompt_logprobs"]) == 5


async def test_every_chunk_tells_the_usage_so_far_when_asked(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        options = {"include_usage": True, "continuous_usage_stats": True}
        answer = asyncio.create_task(gateway.chat(stream=True, stream_options=options))
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "a", 2)
        engine.emit(generate, "b", 1)
        engine.finish(generate, "stop", 3)
        *chunks, usage, _ = events_of((await answer).text)
        assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {5}
        # The role, two texts, the end: however many of them are written together.
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 2, 3, 3]
        assert usage["usage"]["completion_tokens"] == 3


async def test_the_reason_of_a_stop_is_told(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        engine.stop_reason = "###"
        (choice,) = (await gateway.chat()).json()["choices"]
        assert choice["stop_reason"] == "###"
        engine.stop_reason = None
        assert "stop_reason" not in (await gateway.chat()).text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"allowed_token_ids": [1, VOCAB_SIZE]}, "allowed_token_ids"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"prompt_logprobs": 6}, "prompt_logprobs"),
    ],
)
async def test_what_a_model_does_not_have_is_a_400_that_names_it(
    socket_dir: Path, fields: dict[str, Any], param: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(max_logprobs=5)
        answer = await gateway.chat(**fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert engine.of(Prepare) == []


async def test_an_engine_without_log_probabilities_is_not_asked_for_them(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(max_logprobs=0)
        for answer, param in (
            (await gateway.chat(logprobs=True), "logprobs"),
            (await complete(gateway, logprobs=1), "logprobs"),
            (await complete(gateway, best_of=2), "best_of"),
            (await gateway.chat(prompt_logprobs=0), "prompt_logprobs"),
        ):
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["param"], error["code"]) == (param, "unsupported_parameter")


def told_tokens(events: list[Any]) -> list[str]:
    """The tokens of a chat stream's content."""
    return [
        token["token"]
        for event in events[:-1]
        for choice in event["choices"]
        if choice["logprobs"]
        for token in choice["logprobs"]["content"]
    ]


async def test_each_token_is_told_once_although_its_engine_dies(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.engine(text=None)
        asking = asyncio.create_task(gateway.chat(stream=True, logprobs=True))
        await first.until(lambda: len(first.of(Generate)) == 1)
        first.emit(first.of(Generate)[0], "Hel", token_ids=(11,))
        reports = gateway.application.sessions.lease_reports
        await gateway.until(lambda: sum(one.completion_tokens for one in reports()) == 1)
        second = await gateway.engine(text=None)
        await gateway.crash(first)
        await second.until(lambda: len(second.of(Generate)) == 1)
        resumed = second.of(Generate)[0]
        assert resumed.sampling.logprobs == 0
        second.emit(resumed, "lo", token_ids=(12,))
        second.finish(resumed, completion_tokens=2)
        assert told_tokens(events_of((await asking).text)) == ["Hel", "lo"]


async def test_each_token_is_told_once_although_its_parser_dies(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.parser()
        engine = await gateway.engine(text=None, tool_format="hermes")
        asking = asyncio.create_task(gateway.chat(stream=True, tools=[WEATHER], logprobs=True))
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "Hel")
        await first.until(lambda: len(first.of(ParseBatch)) == 1)
        second = await gateway.parser()
        await gateway.crash(first)
        await second.until(lambda: len(second.of(ParseBatch)) == 1)
        engine.emit(generate, "lo")
        engine.emit(generate, "<call>{}")
        engine.finish(generate, completion_tokens=3)
        assert told_tokens(events_of((await asking).text)) == ["Hel", "lo"]
