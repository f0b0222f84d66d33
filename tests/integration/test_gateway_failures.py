"""What clients see when something dies, is full, is late or leaves: one clear end each."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.errors import ErrorCode
from protocol.wire.messages import Abort, Authorize, Failure, Generate, Settle
from tests.fakes.fake_workers import FakeAuth, FakeEngine, renewals
from tests.fakes.running_gateway import RunningGateway, events_of, running_gateway, stream_text


async def stream_until_text(gateway: RunningGateway, engine: FakeEngine) -> Any:
    """An open stream of which one piece has arrived: response context, lines, Generate."""
    request = gateway.client.build_request(
        "POST",
        "/v1/chat/completions",
        json={"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    )
    num_before = len(engine.of(Generate))
    sending = asyncio.create_task(gateway.client.send(request, stream=True))
    await engine.until(lambda: len(engine.of(Generate)) == num_before + 1)
    generate = engine.of(Generate)[-1]
    engine.emit(generate, "begun")
    return await sending, generate


async def has_generated(engine: FakeEngine, count: int) -> None:
    await engine.until(lambda: len(engine.of(Generate)) == count)


async def settled(auth: FakeAuth, count: int = 1) -> Settle:
    await auth.until(lambda: len(auth.settled()) == count)
    return auth.settled()[-1]


async def test_a_client_that_leaves_a_stream_has_its_engine_work_aborted_and_settled(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        response, generate = await stream_until_text(gateway, engine)
        await response.aclose()
        await engine.until(lambda: len(engine.of(Abort)) == 1)
        (abort,) = engine.of(Abort)
        assert (abort.request_id, abort.attempt) == (generate.request_id, 1)
        settle = await settled(auth)
        assert (settle.outcome, settle.prompt_tokens, settle.completion_tokens) == ("aborted", 5, 2)
        assert len(gateway.application.sessions) == 0


async def test_a_client_that_leaves_a_json_request_has_its_engine_work_aborted(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = asyncio.create_task(gateway.chat())
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        asking.cancel()
        await engine.until(lambda: len(engine.of(Abort)) == 1)
        assert (await settled(auth)).outcome == "aborted"


async def test_output_of_a_stale_attempt_is_ignored(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = asyncio.create_task(gateway.chat())
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        engine.fail(engine.of(Generate)[0], ErrorCode.CREDIT_EXCEEDED)
        await engine.until(lambda: len(engine.of(Generate)) == 2)
        stale, fresh = engine.of(Generate)
        assert (stale.attempt, fresh.attempt) == (1, 2)
        engine.emit(stale, "wrong")
        engine.emit(fresh, "right")
        engine.finish(stale)
        engine.finish(fresh)
        assert (await asking).json()["choices"][0]["message"]["content"] == "right"


async def test_requests_spread_over_the_engines_of_a_model(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engines = [await gateway.engine(text=None) for _ in range(3)]
        asking = [asyncio.create_task(gateway.chat()) for _ in range(6)]
        for engine in engines:
            await has_generated(engine, 2)
            for generate in engine.of(Generate):
                engine.finish(generate)
        assert {response.status_code for response in await asyncio.gather(*asking)} == {200}


async def test_a_full_queue_is_a_503_with_retry_after(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, max_queue=1) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None, max_requests=1)
        running = asyncio.create_task(gateway.chat())
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        waiting = asyncio.create_task(gateway.chat())
        await gateway.until(lambda: gateway.application.admission.num_waiting("demo") == 1)
        refused = await gateway.chat()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert "retry-after" in refused.headers
        for count, asked in ((1, running), (2, waiting)):
            await has_generated(engine, count)
            engine.finish(engine.of(Generate)[-1])
            assert (await asked).status_code == 200


async def test_a_request_that_takes_too_long_is_a_504_and_is_stopped(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, request_timeout_s=2.0) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        response = await gateway.chat()
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        await engine.until(lambda: len(engine.of(Abort)) == 1)
        assert (await settled(auth)).outcome == "failed"


async def test_a_silent_stream_is_kept_alive_by_comments(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, ping_interval_s=0.05) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        response, generate = await stream_until_text(gateway, engine)
        lines = response.aiter_lines()
        async for line in lines:
            if line == ": ping":
                break
        engine.finish(generate)
        rest = [line async for line in lines]
        assert "data: [DONE]" in rest


async def test_without_auth_new_requests_fail_closed_and_running_ones_go_on(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        response, generate = await stream_until_text(gateway, engine)
        await gateway.departure(auth)
        refused = await gateway.chat()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "worker_unavailable"
        engine.emit(generate, " well")
        engine.finish(generate)
        await response.aread()
        assert stream_text(events_of(response.text)) == "begun well"
        # The settlement waits until an auth worker is there again.
        assert len(gateway.application.outbox) == 1
        back = await gateway.auth()
        assert (await settled(back)).completion_tokens == 2
        await gateway.until(lambda: len(gateway.application.outbox) == 0)


async def test_an_auth_worker_that_does_not_answer_is_a_503(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, auth_timeout_s=0.1) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        auth.is_mute = True
        assert (await gateway.chat()).status_code == 503


async def test_settlements_survive_a_restart_of_the_gateway(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        auth.acknowledges = False
        await gateway.engine()
        await gateway.chat()
        lease_id = (await settled(auth)).lease_id
        await gateway.departure(auth)
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        assert (await settled(auth)).lease_id == lease_id


async def test_a_full_outbox_refuses_new_requests(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, max_outbox=1) as gateway:
        auth = await gateway.auth()
        auth.acknowledges = False
        await gateway.engine()
        assert (await gateway.chat()).status_code == 200
        await settled(auth)
        assert (await gateway.chat()).status_code == 503


@pytest.mark.parametrize(
    ("code", "status", "error_code"),
    [
        (ErrorCode.INVALID_API_KEY, 401, "invalid_api_key"),
        (ErrorCode.BUDGET_EXCEEDED, 402, "budget_exceeded"),
        (ErrorCode.PERMISSION_DENIED, 403, "permission_denied"),
        (ErrorCode.RATE_LIMIT_EXCEEDED, 429, "rate_limit_exceeded"),
        (ErrorCode.INSUFFICIENT_QUOTA, 429, "insufficient_quota"),
    ],
)
async def test_a_denial_has_its_status(
    socket_dir: Path, code: ErrorCode, status: int, error_code: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        auth.denial = code
        auth.retry_after_s = 3.2
        response = await gateway.chat()
        assert response.status_code == status
        assert response.json()["error"]["code"] == error_code
        assert response.headers.get("retry-after") == (
            # Of a budget only what running requests hold comes back by itself, and only then there
            # is a time to tell.
            "4" if error_code in ("rate_limit_exceeded", "budget_exceeded") else None
        )
        assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_prompt_that_is_too_long_is_the_engines_400_and_costs_nothing(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine()
        engine.prepare_failure = Failure(
            request_id="",
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            message="maximum context length is 10 tokens; your prompt has 20",
            param="messages",
        )
        response = await gateway.chat()
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages"
        settle = await settled(auth)
        assert (settle.outcome, settle.prompt_tokens, settle.completion_tokens) == ("failed", 0, 0)


async def test_an_unknown_model_is_a_404_that_lists_the_known_ones(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(model="org/demo")
        response = await gateway.chat(model="nope")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert "`org/demo`" in response.json()["error"]["message"]


async def test_open_leases_are_reported_with_what_they_used(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.application.RENEW_INTERVAL_S", 0.05)
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        response, generate = await stream_until_text(gateway, engine)
        # The first report may be older than the first text.
        await auth.until(lambda: any(one.leases[0].completion_tokens for one in renewals(auth)))
        (report,) = renewals(auth)[-1].leases
        (authorize,) = auth.of(Authorize)
        assert report.lease_id == f"lease-{authorize.request_id}"
        assert (report.prompt_tokens, report.completion_tokens) == (5, 1)
        engine.finish(generate)
        await response.aread()


async def test_draining_refuses_new_requests_and_lets_running_ones_finish(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        response, generate = await stream_until_text(gateway, engine)
        draining = asyncio.create_task(gateway.application.drain(10.0))
        await gateway.until(lambda: gateway.application.requests.is_draining)
        assert (await gateway.client.get("/ready")).status_code == 503
        refused = await gateway.chat()
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        # On the same connection the next request would meet the end of the process.
        assert refused.headers["connection"] == "close"
        engine.finish(generate)
        await response.aread()
        assert events_of(response.text)[-1] == "[DONE]"
        await draining


async def test_what_outlasts_the_drain_ends_with_a_clear_event(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        response, _ = await stream_until_text(gateway, engine)
        await gateway.application.drain(0.05)
        await response.aread()
        *_, error, done = events_of(response.text)
        assert "shutting down" in error["error"]["message"]
        assert done == "[DONE]"


async def test_what_no_engine_reports_in_time_is_settled_when_all_is_ended_at_once(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        engine.answers_aborts = False
        await stream_until_text(gateway, engine)
        gateway.application.end_running()
        assert auth.of(Settle) == []
    (settle,) = auth.of(Settle)
    assert settle.completion_tokens == 1


async def test_many_streams_at_once_each_end_exactly_once(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine(text=tuple(f"{n} " for n in range(20)), max_requests=8)
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(
            base_url=gateway.client.base_url, limits=limits, timeout=30.0, trust_env=False
        ) as client:
            body = {"model": "demo", "prompt": "x", "stream": True, "n": 2}
            answers = await asyncio.gather(
                *(client.post("/v1/completions", json=body) for _ in range(40))
            )
        expected = "".join(f"{n} " for n in range(20))
        for answer in answers:
            *chunks, done = events_of(answer.text)
            assert done == "[DONE]"
            for index in (0, 1):
                own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
                assert "".join(choice["text"] for choice in own) == expected
                assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["stop"]
        await auth.until(lambda: len(auth.settled()) == 40)
        assert len(gateway.application.sessions) == 0
