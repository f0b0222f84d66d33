"""What becomes of answers when the parser under them is lost: the text is replayed to another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ErrorCode
from protocol.wire.messages import Abort, Failure, Generate, OpenParse, ParseBatch
from tests.fakes.fake_workers import FakeEngine, FakeParser
from tests.fakes.running_gateway import RunningGateway, events_of, running_gateway, stream_text

WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def begin(gateway: RunningGateway) -> tuple["asyncio.Task[Any]", FakeEngine, Generate]:
    """A streamed request with tools, at an engine that says what the test lets it say."""
    engine = await gateway.engine(text=None, tool_format="hermes")
    asking = asyncio.create_task(gateway.chat(stream=True, tools=[WEATHER]))
    await engine.until(lambda: len(engine.of(Generate)) == 1)
    return asking, engine, engine.of(Generate)[0]


async def batches(parser: FakeParser, count: int = 1) -> None:
    await parser.until(lambda: len(parser.of(ParseBatch)) >= count)


async def has_read(parser: FakeParser, text: str) -> None:
    await parser.until(
        lambda: any(
            delta.text.endswith(text) for batch in parser.of(ParseBatch) for delta in batch.deltas
        )
    )


def call_arguments(events: list[Any]) -> str:
    return "".join(
        call["function"]["arguments"]
        for event in events[:-1]
        for call in event["choices"][0]["delta"].get("tool_calls", ())
    )


async def test_a_parser_that_dies_is_replaced_and_nothing_is_sent_twice(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.parser()
        asking, engine, generate = await begin(gateway)
        engine.emit(generate, "See<call>")
        engine.emit(generate, '{"a"')
        await batches(first)
        second = await gateway.parser()
        await gateway.crash(first)
        await second.until(lambda: len(second.of(OpenParse)) == 1)
        engine.emit(generate, ":1}")
        engine.finish(generate)
        events = events_of((await asking).text)
        assert stream_text(events) == "See"
        calls = [
            call
            for event in events[:-1]
            for call in event["choices"][0]["delta"].get("tool_calls", ())
        ]
        assert [call["function"].get("name") for call in calls if "id" in call] == ["f"]
        assert call_arguments(events) == '{"a":1}'
        assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("is_over", [False, True])
async def test_when_the_only_parser_dies_the_answer_waits_for_the_next_one(
    socket_dir: Path, is_over: bool
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.parser()
        asking, engine, generate = await begin(gateway)
        engine.emit(generate, "See<call>")
        await batches(first)
        await gateway.crash(first)
        engine.emit(generate, '{"a":1}')
        if is_over:
            engine.finish(generate)
            await gateway.until(lambda: engine_is_idle(gateway))
        # Who has begun nothing yet is sent away at once.
        assert (await gateway.chat(tools=[WEATHER])).status_code == 503
        second = await gateway.parser()
        await batches(second)
        if not is_over:
            engine.finish(generate)
        events = events_of((await asking).text)
        assert stream_text(events) == "See"
        assert call_arguments(events) == '{"a":1}'


def engine_is_idle(gateway: RunningGateway) -> bool:
    return all(one.num_requests == 0 for one in gateway.application.directory.engines("demo"))


async def test_a_parser_that_never_comes_back_is_one_error_at_the_deadline(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, request_timeout_s=3.0) as gateway:
        await gateway.auth()
        parser = await gateway.parser()
        asking, engine, generate = await begin(gateway)
        engine.emit(generate, "See")
        await batches(parser)
        await gateway.crash(parser)
        *_, error, done = events_of((await asking).text)
        assert error["error"]["code"] == "deadline_exceeded"
        assert done == "[DONE]"
        await engine.until(lambda: len(engine.of(Abort)) == 1)


async def test_a_text_that_kills_one_parser_after_the_other_ends_with_one_error(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        parser = await gateway.parser(is_mute=True)
        asking, engine, generate = await begin(gateway)
        engine.emit(generate, "poison")
        for _ in range(3):
            await batches(parser)
            following = await gateway.parser(is_mute=True)
            await gateway.crash(parser)
            parser = following
        await batches(parser)
        await gateway.crash(parser)
        error = (await asking).json()
        assert error["error"]["code"] == "worker_lost"
        await engine.until(lambda: len(engine.of(Abort)) == 1)


async def test_parsers_that_die_now_and_then_end_no_answer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        parser = await gateway.parser()
        asking, engine, generate = await begin(gateway)
        for number in range(6):
            engine.emit(generate, f"{number} ")
            await has_read(parser, f"{number} ")
            await gateway.crash(parser)
            parser = await gateway.parser()
        engine.finish(generate)
        assert stream_text(events_of((await asking).text)) == "0 1 2 3 4 5 "
        metrics = (await gateway.client.get("/metrics")).text
        assert 'penstock_gateway_resumptions_total{model="demo",role="toolparser"} 6.0' in metrics


async def test_a_session_that_a_parser_has_forgotten_is_opened_again(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        parser = await gateway.parser()
        asking, engine, generate = await begin(gateway)
        engine.emit(generate, "one ")
        await batches(parser)
        (opening,) = parser.of(OpenParse)
        parser.send(
            Failure(
                request_id=opening.request_id,
                attempt=opening.attempt,
                code=ErrorCode.UNKNOWN_REQUEST,
                message="expired",
            )
        )
        await parser.until(lambda: len(parser.of(OpenParse)) == 2)
        engine.emit(generate, "two")
        engine.finish(generate)
        assert stream_text(events_of((await asking).text)) == "one two"


async def test_a_full_parser_is_asked_again(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.parser()
        asking, engine, generate = await begin(gateway)
        engine.emit(generate, "text")
        await batches(first)
        full = await gateway.parser()
        full.open_failure = ErrorCode.OVERLOADED
        await gateway.crash(first)
        await full.until(lambda: len(full.of(OpenParse)) == 1)
        full.open_failure = None
        await batches(full)
        engine.finish(generate)
        assert stream_text(events_of((await asking).text)) == "text"
