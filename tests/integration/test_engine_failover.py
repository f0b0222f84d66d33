"""What becomes of answers when the engine under them is lost: another one goes on with them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.dispatch.quarantine import QUARANTINE_S
from protocol.errors import ErrorCode
from protocol.wire.messages import Abort, Adjust, Generate, Load, Prepare, Settle
from tests.fakes.fake_workers import FakeAuth, FakeEngine, renewals
from tests.fakes.running_gateway import (
    MESSAGES,
    RunningGateway,
    events_of,
    running_gateway,
    stream_text,
)

WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def ask(gateway: RunningGateway, **fields: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(gateway.chat(**fields))


async def generates(engine: FakeEngine, count: int = 1) -> list[Generate]:
    """The engine's first commands to generate, once so many have come."""
    await engine.until(lambda: len(engine.of(Generate)) >= count)
    return engine.of(Generate)


async def prepares(engine: FakeEngine) -> None:
    """Until the engine was asked to prepare a prompt."""
    await engine.until(lambda: len(engine.of(Prepare)) == 1)


async def arrived(gateway: RunningGateway, num_tokens: int) -> None:
    """Until the gateway has read so many output tokens in all of its requests."""
    sessions = gateway.application.sessions
    await gateway.until(
        lambda: sum(report.completion_tokens for report in sessions.lease_reports()) >= num_tokens
    )


async def settled(auth: FakeAuth, count: int = 1) -> Settle:
    await auth.until(lambda: len(auth.settled()) == count)
    return auth.settled()[-1]


async def test_another_engine_goes_on_with_the_tokens_that_came_and_the_client_sees_one_text(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        first = await gateway.engine(text=None)
        asking = ask(
            gateway, stream=True, seed=7, frequency_penalty=0.5, stop=["END"], max_tokens=9
        )
        (begun,) = await generates(first)
        first.emit(begun, "Grüße, ", token_ids=(11, 12))
        first.emit(begun, "wel", token_ids=(13,))
        await arrived(gateway, 3)
        second = await gateway.engine(text=None)
        await gateway.crash(first)
        (resumed,) = await generates(second)
        assert resumed.attempt == 2
        assert resumed.output_token_ids == (11, 12, 13)
        assert resumed.num_sent_characters == len("Grüße, wel")
        # Whatever the continuation depends on is what the first engine had.
        for name in ("request_id", "choice", "prompt_token_ids", "sampling", "template_time"):
            assert getattr(resumed, name) == getattr(begun, name)
        assert resumed.sampling.seed == 7
        assert not resumed.is_alone
        # Nobody tokenises the prompt a second time.
        assert second.of(Prepare) == []
        second.emit(resumed, "come", token_ids=(14,))
        second.finish(resumed, completion_tokens=4)
        events = events_of((await asking).text)
        assert stream_text(events) == "Grüße, welcome"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert (await settled(auth)).completion_tokens == 4


async def test_an_engine_that_falls_silent_is_left_after_the_time_that_is_set(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, worker_dead_s=0.5) as gateway:
        await gateway.auth()
        # It announces itself and answers, but its heart doesn't beat.
        silent = await gateway.engine(text=None, heartbeat_interval_s=1000.0)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(silent)
        silent.emit(begun, "be", token_ids=(4,))
        await arrived(gateway, 1)
        second = await gateway.engine(text=None)
        (resumed,) = await generates(second)
        # What the silent one says from now on counts for nothing.
        silent.emit(begun, "hind", token_ids=(5,))
        second.emit(resumed, "gun")
        second.finish(resumed)
        assert stream_text(events_of((await asking).text)) == "begun"


async def test_each_choice_goes_on_from_its_own_tokens(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.engine(text=None)
        asking = ask(gateway, stream=True, n=2)
        for begun in await generates(first, 2):
            first.emit(begun, "ab"[begun.choice], token_ids=(begun.choice + 1,))
        await arrived(gateway, 2)
        second = await gateway.engine(text=None)
        await gateway.crash(first)
        resumed = await generates(second, 2)
        assert {(one.choice, one.output_token_ids) for one in resumed} == {(0, (1,)), (1, (2,))}
        for one in resumed:
            second.emit(one, "cd"[one.choice])
            second.finish(one)
        events = events_of((await asking).text)
        assert [stream_text(events, choice) for choice in (0, 1)] == ["ac", "bd"]


async def test_a_second_loss_goes_on_from_the_tokens_of_both_engines(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engines = [await gateway.engine(text=None)]
        asking = ask(gateway, stream=True)
        for number, piece in enumerate(("one ", "two ", "three")):
            (generate,) = await generates(engines[-1])
            assert generate.output_token_ids == tuple(range(10, 10 + number))
            engines[-1].emit(generate, piece, token_ids=(10 + number,))
            await arrived(gateway, number + 1)
            if number < 2:
                engines.append(await gateway.engine(text=None))
                await gateway.crash(engines[-2])
        engines[-1].finish(generate, completion_tokens=3)
        assert stream_text(events_of((await asking).text)) == "one two three"
        metrics = (await gateway.client.get("/metrics")).text
        assert 'penstock_gateway_resumptions_total{model="demo",role="engine"} 2.0' in metrics


async def test_a_tool_call_goes_on_through_its_parser(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        first = await gateway.engine(text=None, tool_format="hermes")
        asking = ask(gateway, stream=True, tools=[WEATHER])
        (begun,) = await generates(first)
        first.emit(begun, 'See<call>{"a"')
        await arrived(gateway, 1)
        second = await gateway.engine(text=None, tool_format="hermes")
        await gateway.crash(first)
        (resumed,) = await generates(second)
        assert resumed.keep_special_tokens == begun.keep_special_tokens == ("<call>",)
        second.emit(resumed, ":1}")
        second.finish(resumed)
        events = events_of((await asking).text)
        calls = [
            call
            for event in events[:-1]
            for call in event["choices"][0]["delta"].get("tool_calls", ())
        ]
        assert stream_text(events) == "See"
        assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'
        assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_prompt_is_prepared_elsewhere_when_its_engine_dies(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.engine(is_mute=True)
        asking = ask(gateway)
        await prepares(first)
        await gateway.crash(first)
        await gateway.engine()
        assert (await asking).json()["choices"][0]["message"]["content"] == "Hello, world"


async def test_without_another_engine_an_answer_waits_for_the_restart(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        first = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(first)
        first.emit(begun, "be", token_ids=(4,))
        await arrived(gateway, 1)
        await gateway.crash(first)
        # Who has begun nothing yet is sent away at once.
        refused = await gateway.chat()
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        second = await gateway.engine(text=None)
        (resumed,) = await generates(second)
        assert resumed.output_token_ids == (4,)
        second.emit(resumed, "gun")
        second.finish(resumed)
        assert stream_text(events_of((await asking).text)) == "begun"


@pytest.mark.parametrize("has_output", [False, True])
async def test_an_engine_that_never_comes_back_is_one_clear_error_at_the_deadline(
    socket_dir: Path, has_output: bool
) -> None:
    async with running_gateway(socket_dir, request_timeout_s=3.0) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(engine)
        if has_output:
            engine.emit(begun, "be")
            await arrived(gateway, 1)
        await gateway.crash(engine)
        response = await asking
        if has_output:
            *_, error, done = events_of(response.text)
            assert done == "[DONE]"
        else:
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            error = response.json()
        assert error["error"]["code"] == "worker_unavailable"
        assert "came back" in error["error"]["message"]
        settle = await settled(auth)
        assert (settle.outcome, settle.completion_tokens) == ("failed", int(has_output))


async def test_a_request_that_ends_while_it_waits_for_an_engine_leaves_no_trace(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        first = await gateway.engine(text=None)
        asking = ask(gateway)
        await generates(first)
        await gateway.crash(first)
        asking.cancel()
        assert (await settled(auth)).outcome == "aborted"
        second = await gateway.engine()
        assert (await gateway.chat()).status_code == 200
        assert len(second.of(Generate)) == 1


async def test_new_weights_serve_beside_the_old_ones_until_those_have_drained(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        old = await gateway.engine(text=None, fingerprint="old")
        asking = ask(gateway, stream=True)
        (begun,) = await generates(old)
        old.emit(begun, "be")
        await arrived(gateway, 1)
        new = await gateway.engine(fingerprint="new")
        # New requests go to either; the stream that was begun stays where it is.
        assert (await gateway.chat()).status_code == 200
        assert len(new.of(Generate)) == 1
        offer = gateway.application.directory.offer("demo")
        assert offer is not None
        assert offer.fingerprint == "new"
        health = (await gateway.client.get("/health")).json()
        assert health["models"] == [
            {"model": "demo", "ready": True, "fingerprints": ["old", "new"]}
        ]
        old.emit(begun, "gun")
        old.finish(begun)
        assert stream_text(events_of((await asking).text)) == "begun"
        await gateway.departure(old)
        assert (await gateway.chat()).status_code == 200
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in lines if "other weights or settings" in line]) == 1


@pytest.mark.parametrize("change", [{"fingerprint": "new"}, {"resume_version": 2}])
async def test_an_answer_whose_engines_were_replaced_by_another_version_ends_with_a_clear_error(
    socket_dir: Path, change: dict[str, Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        old = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(old)
        old.emit(begun, "be")
        await arrived(gateway, 1)
        await gateway.departure(old)
        new = await gateway.engine(**change)
        *_, error, done = events_of((await asking).text)
        assert "another version" in error["error"]["message"]
        assert done == "[DONE]"
        assert new.of(Generate) == []
        assert (await gateway.chat()).status_code == 200


async def test_an_answer_of_a_crashed_engine_waits_for_one_of_its_own_version(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        old = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(old)
        old.emit(begun, "be")
        await arrived(gateway, 1)
        newer = await gateway.engine(resume_version=2)
        await gateway.crash(old)
        # Newcomers are served meanwhile.
        assert (await gateway.chat()).status_code == 200
        assert len(newer.of(Generate)) == 1
        back = await gateway.engine(text=None)
        (resumed,) = await generates(back)
        back.emit(resumed, "gun")
        back.finish(resumed)
        assert stream_text(events_of((await asking).text)) == "begun"


async def test_text_without_token_ids_cannot_be_continued_and_says_so(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        old = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(old)
        old.emit(begun, "be", token_ids=())
        # The text has arrived once the heartbeat has that was sent after it.
        old.running = Load(num_running=1)
        await gateway.until(lambda: gateway.load_of(old).num_running == 1)
        await gateway.engine()
        await gateway.crash(old)
        *_, error, done = events_of((await asking).text)
        assert error["error"]["code"] == "worker_lost"
        assert done == "[DONE]"


async def test_an_answer_that_had_all_its_lease_ends_there_when_its_engine_dies(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, lease_slice_tokens=16) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(engine)
        auth.adjust_denial = ErrorCode.INSUFFICIENT_QUOTA
        engine.answers_aborts = False
        engine.emit(begun, "a" * 16, num_tokens=16)
        await engine.until(lambda: len(engine.of(Abort)) == 1)
        await gateway.crash(engine)
        events = events_of((await asking).text)
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert (await settled(auth)).completion_tokens == 16


async def test_a_lease_that_ends_while_no_engine_is_there_ends_the_answer_at_the_next_one(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, lease_slice_tokens=16, auth_timeout_s=1.0) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = ask(gateway, stream=True)
        (begun,) = await generates(engine)
        auth.is_mute = True
        engine.emit(begun, "a" * 16, num_tokens=16)
        await arrived(gateway, 16)
        await gateway.crash(engine)
        num_asked = len(auth.of(Adjust))
        auth.adjust_denial = ErrorCode.INSUFFICIENT_QUOTA
        auth.is_mute = False
        await auth.until(lambda: len(auth.of(Adjust)) > num_asked)
        second = await gateway.engine(text=None)
        await second.until(lambda: len(second.of(Abort)) == 1)
        events = events_of((await asking).text)
        assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_leases_of_several_choices_are_reported_stream_by_stream(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.application.RENEW_INTERVAL_S", 0.05)
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = ask(gateway, stream=True, n=2)
        first, second = await generates(engine, 2)
        assert first.lease_id == second.lease_id == f"lease-{first.request_id}"
        engine.emit(first, "a", num_tokens=3)
        engine.emit(second, "b", num_tokens=4)
        await arrived(gateway, 7)
        num_before = len(renewals(auth))
        await auth.until(lambda: len(renewals(auth)) > num_before)
        (report,) = renewals(auth)[-1].leases
        assert (report.prompt_tokens, report.completion_tokens) == (5, 7)
        # As the engine would name and count them.
        assert sorted(
            (one.stream, one.prompt_tokens, one.completion_tokens) for one in report.streams
        ) == [(f"{first.request_id}/0", 5, 3), (f"{first.request_id}/1", 0, 4)]
        engine.finish(first)
        engine.finish(second)
        await asking


# Requests that kill engines.


async def kill_twice(gateway: RunningGateway, **fields: Any) -> "asyncio.Task[Any]":
    """A request under which two engines died."""
    asking: asyncio.Task[Any] | None = None
    for number in range(2):
        engine = await gateway.engine(text=None)
        if asking is None:
            asking = ask(gateway, **fields)
        (generate,) = await generates(engine)
        assert not generate.is_alone
        assert generate.attempt == number + 1
        await gateway.crash(engine)
    assert asking is not None
    return asking


async def test_a_request_is_convicted_only_by_a_death_in_isolation(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        poison = await kill_twice(gateway)
        third = await gateway.engine(text=None)
        (alone,) = await generates(third)
        assert alone.is_alone
        await gateway.crash(third)
        response = await poison
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "poison_request"
        assert response.headers["x-should-retry"] == "false"
        assert (await settled(auth)).outcome == "failed"


async def test_a_convicted_prompt_is_refused_at_once_until_its_time_is_over(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        poison = await kill_twice(gateway)
        third = await gateway.engine(text=None)
        await generates(third)
        await gateway.crash(third)
        await poison
        engine = await gateway.engine()
        again = await gateway.chat(max_tokens=5)
        assert again.status_code == 500
        assert again.json()["error"]["code"] == "poison_request"
        assert engine.of(Prepare) == []
        other = await gateway.chat(messages=[{"role": "user", "content": "another"}])
        assert other.status_code == 200
        quarantine = gateway.application.quarantine
        now = gateway.application._clock()
        quarantine._clock = lambda: now + QUARANTINE_S + 1
        assert (await gateway.chat()).status_code == 200


async def test_a_bystander_runs_alone_for_a_moment_and_then_finishes_in_company(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        bystander = await kill_twice(gateway, stream=True)
        third = await gateway.engine(text=None)
        (alone,) = await generates(third)
        assert alone.is_alone
        waiting = ask(gateway, messages=[{"role": "user", "content": "patience"}])
        await gateway.until(lambda: gateway.application.admission.num_waiting("demo") == 1)
        third.emit(alone, "x" * 31, num_tokens=31)
        await arrived(gateway, 31)
        assert len(third.of(Generate)) == 1
        third.emit(alone, "x", num_tokens=1)
        _, other = await generates(third, 2)
        third.finish(other)
        assert (await waiting).status_code == 200
        third.finish(alone)
        assert len(stream_text(events_of((await bystander).text))) == 32


async def test_two_deaths_with_much_output_between_them_put_nobody_under_suspicion(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        asking: asyncio.Task[Any] | None = None
        for number in range(4):
            engine = await gateway.engine(text=None)
            asking = asking or ask(gateway, stream=True)
            (generate,) = await generates(engine)
            assert not generate.is_alone
            engine.emit(generate, "x" * 40, num_tokens=40)
            await arrived(gateway, 40 * (number + 1))
            if number < 3:
                await gateway.crash(engine)
        engine.finish(generate)
        assert asking is not None
        assert len(stream_text(events_of((await asking).text))) == 160


async def test_an_engine_that_leaves_in_good_order_speaks_against_nobody(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        asking: asyncio.Task[Any] | None = None
        for _ in range(4):
            engine = await gateway.engine(text=None)
            asking = asking or ask(gateway)
            (generate,) = await generates(engine)
            assert not generate.is_alone
            await gateway.departure(engine)
        last = await gateway.engine()
        assert asking is not None
        assert (await asking).status_code == 200
        assert len(last.of(Generate)) == 1


async def test_a_death_while_others_ran_beside_it_convicts_nobody(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        suspect = await kill_twice(gateway)
        third = await gateway.engine(text=None)
        await generates(third)
        # Another gateway's work came to this engine, which is too old to keep it away.
        third.running = Load(num_running=2)
        await gateway.until(lambda: gateway.load_of(third).num_running == 2)
        await gateway.crash(third)
        fourth = await gateway.engine()
        assert (await suspect).status_code == 200
        assert fourth.of(Generate)[0].is_alone


async def test_a_step_that_fails_is_retried_and_ends_in_a_conviction_alone(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        engine.generate_failure = ErrorCode.WORKER_LOST
        response = await gateway.chat()
        assert response.json()["error"]["code"] == "poison_request"
        assert [one.is_alone for one in engine.of(Generate)] == [False, False, True]


async def test_a_prompt_that_kills_engines_as_it_is_prepared_is_convicted_too(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        asking: asyncio.Task[Any] | None = None
        for _ in range(3):
            engine = await gateway.engine(is_mute=True)
            asking = asking or ask(gateway, messages=MESSAGES)
            await prepares(engine)
            await gateway.crash(engine)
        assert asking is not None
        assert (await asking).json()["error"]["code"] == "poison_request"
