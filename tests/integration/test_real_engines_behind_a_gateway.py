"""The real engine's scheduler and texts behind a real gateway, step by step: cuts, hangs,
giants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from protocol.wire.messages import OrphanUsage
from tests.fakes.hand_driven_engine import TOKENIZER, HandDrivenEngine, expected_tokens
from tests.fakes.running_gateway import RunningGateway, events_of, named_events_of, running_gateway

PROMPT = "Once upon a time"
NUM_PROMPT = len(TOKENIZER.encode(PROMPT, add_special_tokens=True))
NUM_TOKENS = 24
BODY: dict[str, Any] = {
    "model": "demo",
    "prompt": PROMPT,
    "max_tokens": NUM_TOKENS,
    "temperature": 0,
    "stream": True,
}


@asynccontextmanager
async def harness(directory: Path, **settings: Any) -> AsyncIterator[RunningGateway]:
    async with running_gateway(directory, **settings) as gateway:
        await gateway.auth()
        yield gateway


async def an_engine(gateway: RunningGateway, **options: Any) -> HandDrivenEngine:
    engine = HandDrivenEngine(gateway.directory, **options)
    await engine.start(gateway)
    return engine


def ask(gateway: RunningGateway, body: dict[str, Any]) -> "asyncio.Task[Any]":
    return asyncio.create_task(gateway.client.post("/v1/completions", json=body))


async def drive(engine: HandDrivenEngine, asking: "asyncio.Task[Any]") -> list[Any]:
    """Let an engine compute until a request is answered; the events of its stream."""
    async with asyncio.timeout(60):
        while not asking.done():
            await engine.step()
            await asyncio.sleep(0.001)
    response = asking.result()
    assert response.status_code == 200, response.text
    return events_of(response.text)


def texts(events: list[Any]) -> dict[int, str]:
    """The text of each choice."""
    found: dict[int, str] = {}
    for event in events[:-1]:
        assert "error" not in event, event
        for choice in event["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found


def finish_reasons(events: list[Any]) -> list[str]:
    return [
        choice["finish_reason"]
        for event in events[:-1]
        for choice in event["choices"]
        if choice["finish_reason"]
    ]


@pytest.mark.parametrize("num_steps", [3, 4, 9, 20])
async def test_the_engine_that_goes_on_gets_the_tokens_and_samples_none_of_them_again(
    socket_dir: Path, num_steps: int
) -> None:
    async with harness(socket_dir) as gateway:
        first = await an_engine(gateway)
        undisturbed = await drive(first, ask(gateway, BODY))
        num_before = len(first.runner.batches)
        asking = ask(gateway, BODY)
        await first.has_received(1)
        while len(first.runner.batches) < num_before + num_steps:
            await first.step()
        second = await an_engine(gateway)
        await first.crash()
        events = await drive(second, asking)
        assert texts(events) == texts(undisturbed)
        assert finish_reasons(events) == ["length"]
        (assigned,) = second.runner.assigned
        _, prompt_token_ids, output_token_ids = assigned
        num_had = len(output_token_ids)
        assert num_had > 0
        assert prompt_token_ids == tuple(TOKENIZER.encode(PROMPT, add_special_tokens=True))
        assert list(output_token_ids) == expected_tokens(prompt_token_ids, num_had)
        positions = second.sampled_positions()
        assert positions == list(range(NUM_PROMPT + num_had, NUM_PROMPT + NUM_TOKENS))
        await second.crash()


@pytest.mark.parametrize(
    "change",
    [
        {"n": 3},
        {"n": 2, "frequency_penalty": 1.0, "repetition_penalty": 1.2, "seed": 4},
        {"logit_bias": {"65": 5}},
    ],
)
async def test_choices_and_penalties_survive_the_cut(
    socket_dir: Path, change: dict[str, Any]
) -> None:
    async with harness(socket_dir) as gateway:
        body = {**BODY, **change}
        num_choices = change.get("n", 1)
        first = await an_engine(gateway)
        undisturbed = await drive(first, ask(gateway, body))
        asking = ask(gateway, body)
        await first.has_received(num_choices)
        for _ in range(6):
            await first.step()
        second = await an_engine(gateway)
        await first.crash()
        assert texts(await drive(second, asking)) == texts(undisturbed)
        # Counts for penalties are rebuilt from what each choice had.
        had = [len(outputs) for _, _, outputs in second.runner.assigned]
        assert len(had) == num_choices
        assert min(had) > 0
        await second.crash()


@pytest.mark.parametrize("num_steps", range(4, 16, 3))
async def test_a_stop_string_is_found_wherever_the_cut_falls(
    socket_dir: Path, num_steps: int
) -> None:
    async with harness(socket_dir) as gateway:
        first = await an_engine(gateway)
        whole = texts(await drive(first, ask(gateway, BODY)))[0]
        stop = whole[6:11]
        body = {**BODY, "stop": stop}
        asking = ask(gateway, body)
        await first.has_received(1)
        for _ in range(num_steps):
            await first.step()
        if first.handler.status.num_unfinished:
            second = await an_engine(gateway)
            await first.crash()
        else:
            second = first
        events = await drive(second, asking)
        assert texts(events)[0] == whole[: whole.index(stop)]
        assert finish_reasons(events) == ["stop"]
        await second.crash()


async def test_what_a_dead_gateway_had_is_reported_through_another_and_then_forgotten(
    socket_dir: Path,
) -> None:
    (socket_dir / "a").mkdir()
    (socket_dir / "b").mkdir()
    async with harness(socket_dir / "a") as dying, running_gateway(socket_dir / "b") as living:
        auth = await living.auth()
        engine = HandDrivenEngine(dying.directory, living.directory)
        await engine.start(dying, living)
        asking = ask(dying, {**BODY, "n": 2})
        await engine.has_received(2)
        for _ in range(6):
            await engine.step()
        dying.application.engine_server.close()
        await living.until(lambda: engine.worker.gateway_ids() == (living.gateway_id,))
        # That the gateway is gone stands in the inbox a moment later.
        await living.until(lambda: not engine.handler.inbox.empty())
        await engine.step()
        await auth.until(lambda: len(auth.of(OrphanUsage)) == 1)
        (report,) = auth.of(OrphanUsage)
        assert report.engine_id == engine.worker.instance_id
        by_choice = {one.stream.rpartition("/")[2]: one for one in report.streams}
        assert set(by_choice) == {"0", "1"}
        assert {one.lease_id for one in report.streams} == {
            f"lease-{report.streams[0].stream.partition('/')[0]}"
        }
        assert by_choice["0"].prompt_tokens == NUM_PROMPT
        assert by_choice["1"].prompt_tokens == 0
        assert all(one.completion_tokens > 0 for one in report.streams)
        # Nothing of it runs on, and once the answer has come nothing is reported again.
        assert engine.handler.status.num_unfinished == 0
        await living.until(lambda: not engine.handler.inbox.empty())
        await engine.step()
        assert engine.num_orphans == 0
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await engine.crash()


async def test_an_engine_that_hangs_with_its_heart_beating_is_found_and_left(
    socket_dir: Path,
) -> None:
    async with harness(socket_dir, stall_timeout_s=2.0) as gateway:
        first = await an_engine(gateway)
        undisturbed = await drive(first, ask(gateway, BODY))
        asking = ask(gateway, BODY)
        await first.has_received(1)
        for _ in range(5):
            await first.step()
        # From here on nothing moves in the first one, but its I/O thread beats on.
        second = await an_engine(gateway)
        assert texts(await drive(second, asking)) == texts(undisturbed)
        # While it hangs it gets no work, although it is connected again.
        await gateway.until(lambda: len(gateway.application.engine_server.peers()) == 2)
        assert len(gateway.application.directory.engines("demo")) == 1
        # It comes back, drops what it had, and is as good as new.
        await first.step()
        await gateway.until(lambda: len(gateway.application.directory.engines("demo")) == 2)
        assert first.handler.status.num_unfinished == 0
        await second.crash()
        assert texts(await drive(first, ask(gateway, BODY))) == texts(undisturbed)
        await first.crash()


async def test_an_engine_that_hangs_in_the_first_step_of_all_is_found_too(
    socket_dir: Path,
) -> None:
    async with harness(socket_dir, stall_timeout_s=2.0) as gateway:
        first = await an_engine(gateway)
        asking = ask(gateway, BODY)
        await gateway.until(lambda: first.handler.num_unfinished() == 1)
        second = await an_engine(gateway)
        assert finish_reasons(await drive(second, asking)) == ["length"]
        assert first.runner.batches == []
        await first.crash()
        await second.crash()


async def test_a_prompt_of_a_hundred_thousand_tokens_is_no_death(socket_dir: Path) -> None:
    async with harness(socket_dir, stall_timeout_s=1.5, worker_dead_s=2.0) as gateway:
        engine = await an_engine(
            gateway,
            max_model_len=100_100,
            num_blocks=6400,
            block_size=16,
            max_num_batched_tokens=2048,
            prefill_chunk_size=2048,
        )
        joined = gateway.application.directory.engines("demo")[0]
        prompt = "abcdefghij" * 10_000
        events = await drive(
            engine, ask(gateway, {**BODY, "prompt": prompt, "max_tokens": 2, "n": 1})
        )
        assert finish_reasons(events) == ["length"]
        assert len(engine.runner.batches) >= 100_000 // 2048
        assert gateway.application.directory.engines("demo") == [joined]
        await engine.crash()


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_a_stream_says_from_its_beginning_what_of_the_prompt_was_cached(
    socket_dir: Path, path: str
) -> None:
    text = "Once upon a time there was a gate in a river, and the gate was shut. " * 2
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
    }
    if path == "/v1/chat/completions":
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    async with harness(socket_dir) as gateway:
        engine = await an_engine(gateway, max_model_len=400)
        found = []
        for _ in range(2):
            asking = asyncio.create_task(gateway.client.post(path, json=body))
            await drive(engine, asking)
            events = named_events_of(asking.result().text)
            found.append([_cached(path, event) for event in events])
        await engine.crash()
    told = [[one for one in events if one is not None] for events in found]
    assert all(len(events) >= 2 for events in told)
    assert {cached for cached, _ in told[0]} == {0}
    ((cached, num_prompt),) = set(told[1])
    assert 0 < cached < num_prompt
    assert told[0][0][1] == num_prompt


def _cached(path: str, event: Any) -> tuple[int, int] | None:
    """What an event says of the prompt: tokens that were cached, and all; None for nothing."""
    if event == "[DONE]":
        return None
    usage = event.get("message", event).get("usage")
    if usage is None:
        return None
    if path == "/v1/messages":
        cached = usage["cache_read_input_tokens"]
        return cached, usage["input_tokens"] + cached
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


async def test_max_tokens_that_exactly_fill_the_context_are_what_ended_the_answer(
    socket_dir: Path,
) -> None:
    max_model_len = 100
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Once upon a time there was a gate."}],
        "temperature": 0,
    }
    async with harness(socket_dir) as gateway:
        engine = await an_engine(gateway, max_model_len=max_model_len)
        client = gateway.client
        counting = asyncio.create_task(client.post("/v1/messages/count_tokens", json=body))
        await drive(engine, counting)
        num_prompt = counting.result().json()["input_tokens"]
        body["max_tokens"] = max_model_len - num_prompt
        asking = asyncio.create_task(client.post("/v1/messages", json=body))
        await drive(engine, asking)
        await engine.crash()
    answer = asking.result().json()
    assert answer["usage"]["output_tokens"] == max_model_len - num_prompt
    assert answer["stop_reason"] == "max_tokens"
