"""Chat requests through a real gateway: answers, streams, tools, several choices."""

import asyncio
from pathlib import Path

from protocol.errors import ErrorCode
from protocol.wire.messages import Adjust, Authorize, Generate, LimitState, OpenParse, Prepare
from tests.fakes.fake_workers import extended_tokens
from tests.fakes.running_gateway import events_of, running_gateway, stream_text

WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def test_a_chat_answer_has_openais_shape(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        response = await gateway.chat()
        body = response.json()
        assert response.status_code == 200
        assert body["object"] == "chat.completion"
        assert body["id"].startswith("chatcmpl-")
        assert body["system_fingerprint"] == "fp_0123456789ab"
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert body["usage"]["prompt_tokens"] == 5
        assert body["usage"]["completion_tokens"] == 2
        assert body["usage"]["total_tokens"] == 7
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 1


async def test_a_stream_has_role_text_finish_usage_and_done_in_this_order(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        response = await gateway.chat(stream=True, stream_options={"include_usage": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        *chunks, usage, done = events_of(response.text)
        assert done == "[DONE]"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert stream_text(chunks) == "Hello, world"
        assert chunks[-1]["choices"][0] == {
            "index": 0,
            "delta": {},
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert all(chunk["usage"] is None for chunk in chunks)
        assert usage["choices"] == []
        assert usage["usage"]["total_tokens"] == 7
        assert len({chunk["id"] for chunk in chunks}) == 1


async def test_without_include_usage_no_chunk_speaks_of_usage(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        *chunks, done = events_of((await gateway.chat(stream=True)).text)
        assert done == "[DONE]"
        assert all("usage" not in chunk for chunk in chunks)


async def test_a_request_is_reserved_corrected_and_settled_once(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        auth.limits = LimitState(limit_tokens=1000, remaining_tokens=900)
        engine = await gateway.engine()
        await gateway.chat(max_tokens=10)
        await auth.until(lambda: len(auth.settled()) == 1)
        (authorize,) = auth.of(Authorize)
        assert authorize.completion_tokens == 10
        assert authorize.prompt_tokens >= len(b'[{"role":"user","content":"hi"}]')
        (adjust,) = auth.of(Adjust)
        assert (adjust.prompt_tokens, adjust.completion_tokens) == (5, 10)
        (settle,) = auth.settled()
        assert (settle.prompt_tokens, settle.completion_tokens) == (5, 2)
        assert settle.outcome == "finished"
        (prepare,) = engine.of(Prepare)
        assert prepare.tenant == "local"
        (generate,) = engine.of(Generate)
        assert generate.lease_tokens == 10
        assert generate.sampling.seed != 0


async def test_several_choices_come_back_by_index_and_count_the_prompt_once(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(max_requests=2)
        body = (await gateway.chat(n=5)).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4]
        assert {choice["message"]["content"] for choice in body["choices"]} == {"Hello, world"}
        assert body["usage"]["prompt_tokens"] == 5
        assert body["usage"]["completion_tokens"] == 10


async def test_a_tool_call_is_parsed_out_of_the_text(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        parser = await gateway.parser()
        engine = await gateway.engine(
            tool_format="hermes", text=("Let me", " see<call>", '{"city":', '"Oslo"}')
        )
        response = await gateway.chat(tools=[WEATHER])
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see"
        assert choice["message"]["tool_calls"] == [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "f", "arguments": '{"city":"Oslo"}'},
            }
        ]
        (generate,) = engine.of(Generate)
        assert generate.keep_special_tokens == ("<call>",)
        (opening,) = parser.of(OpenParse)
        assert opening.prompt_tail == "<|assistant|>"
        await parser.until(lambda: parser.num_closed() == 1)


async def test_a_streamed_tool_call_has_its_name_once_and_reasoning_apart(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        await gateway.engine(
            tool_format="hermes",
            reasoning_format="think",
            text=("<think>hm</think>", "well<call>", '{"a":1}'),
        )
        response = await gateway.chat(
            tools=[WEATHER], stream=True, stream_options={"include_usage": True}
        )
        events = events_of(response.text)
        deltas = [event["choices"][0]["delta"] for event in events[:-2]]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
        assert stream_text(events) == "well"
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert calls[0] == {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "f", "arguments": ""},
        }
        assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'
        assert events[-3]["choices"][0]["finish_reason"] == "tool_calls"
        assert events[-2]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3


async def test_tools_are_kept_from_the_prompt_when_the_choice_is_none(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(tool_format="hermes")
        response = await gateway.chat(tools=[WEATHER], tool_choice="none")
        assert response.json()["choices"][0]["message"]["content"] == "Hello, world"
        assert engine.of(Prepare)[0].tools_json is None


async def test_a_long_answer_extends_its_lease_before_the_engine_runs_dry(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, lease_slice_tokens=16) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None, max_model_len=45)
        answer = asyncio.create_task(gateway.chat(stream=True))
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        (generate,) = engine.of(Generate)
        assert generate.lease_tokens == 16
        engine.emit(generate, "a", 12)
        await engine.until(lambda: extended_tokens(engine) == [32])
        engine.emit(generate, "b", 16)
        await engine.until(lambda: extended_tokens(engine) == [32, 40])
        engine.finish(generate, "length", 40)
        assert stream_text(events_of((await answer).text)) == "ab"
        grown = [adjust.completion_tokens for adjust in auth.of(Adjust)]
        assert grown[-2:] == [32, 40]


async def test_a_clients_own_limit_is_reserved_as_a_whole(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, lease_slice_tokens=16) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        await gateway.chat(max_tokens=64)
        assert engine.of(Generate)[0].lease_tokens == 64


async def test_a_lease_that_may_not_grow_ends_the_answer_as_length(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, lease_slice_tokens=16) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        auth.adjust_denial = ErrorCode.RATE_LIMIT_EXCEEDED
        answer = asyncio.create_task(gateway.chat(stream=True))
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "x", 13)
        engine.emit(generate, "y", 3)
        events = events_of((await answer).text)
        assert stream_text(events) == "xy"
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert extended_tokens(engine) == []
        await auth.until(lambda: len(auth.settled()) == 1)
        assert auth.settled()[0].outcome == "finished"
