"""Choices of a generation: what goes to engines, and what becomes of their output."""

import asyncio

import pytest
from msgspec import structs

from gateway.dispatch.slots import Slot
from gateway.errors import UnsupportedFieldError
from gateway.request.delivery.events import ChoiceFinished, ContentText, PromptShown, UsageTold
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Adjust,
    Authorize,
    Failure,
    Generate,
    Grammar,
    LimitState,
    Prepare,
    SamplingParams,
    StreamUsage,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts, generation_job
from tests.fakes.virtual_time import idle

SECRET = Grammar(kind="regex", source="a+")


def last_engine(parts: Parts) -> Peer:
    return [one for one, message in parts.engine_wire.sent if isinstance(message, Generate)][-1]


def finished(index: int = 0, reason: str = "stop", num_tokens: int = 1) -> ChoiceFinished:
    return ChoiceFinished(index, reason, Usage(prompt_tokens=5, completion_tokens=num_tokens))


async def test_what_an_engine_is_given() -> None:
    parts = Parts()
    one = parts.engine()
    sampling = SamplingParams(seed=4, temperature=0.5)
    job = generation_job(
        sampling=sampling,
        response_grammar=SECRET,
        options=AnswerOptions(is_streaming=True, num_choices=2, num_answers=2),
    )
    await parts.running(job, tenant="tenant", priority=3)
    await idle()
    first, second = parts.generates()
    assert first == Generate(
        request_id="r",
        choice=0,
        attempt=1,
        prompt_token_ids=(0, 1, 2, 3, 4),
        sampling=sampling,
        lease_tokens=8,
        deadline_s=60.0,
        grammar=SECRET,
        priority=3,
        tenant="tenant",
        want_token_ids=True,
        num_choices=2,
        is_streaming=True,
        lease_id="lease",
        trace_id="trace",
    )
    assert second == structs.replace(first, choice=1)
    assert parts.handle(one).num_tokens == 2 * (5 + 8)


async def test_several_prompts_have_ids_of_their_own_on_the_wire() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job("hello", "world", options=options))
    await idle()
    assert [prepare.request_id for prepare in parts.engine_wire.of(Prepare)] == ["r-0", "r-1"]
    sent = {(generate.request_id, generate.choice) for generate in parts.generates()}
    assert sent == {("r-0", 0), ("r-0", 1), ("r-1", 0), ("r-1", 1)}
    for name in ("r-0", "r-1"):
        for number in (0, 1):
            await parts.output(one, text=f"{name}{number}", request_id=name, choice=number)
    texts = [(event.choice, event.text) for event in await started.events()]
    assert texts == [(0, "r-00"), (1, "r-01"), (2, "r-10"), (3, "r-11")]
    # Each prompt is counted once, in all and choice by choice.
    assert started.request.usage() == Usage(prompt_tokens=10, completion_tokens=4)
    report = started.request.lease_report()
    assert report is not None
    assert report.streams == tuple(
        StreamUsage(stream=f"r-{prompt}/{number}", prompt_tokens=tokens, completion_tokens=1)
        for prompt in (0, 1)
        for number, tokens in ((0, 5), (1, 0))
    )
    for name in ("r-0", "r-1"):
        for number in (0, 1):
            await parts.finish(one, request_id=name, choice=number)
    assert [settle.prompt_tokens for settle in parts.outbox.settles] == [10]
    assert parts.num_slots == 0


async def test_equal_prompts_without_a_seed_are_sampled_apart_and_choices_by_their_number() -> None:
    for has_own_seed, second in ((False, 5), (True, 4)):
        parts = Parts()
        parts.engine()
        job = generation_job(
            "hello",
            "hello",
            options=AnswerOptions(num_choices=2, num_answers=2),
            sampling=SamplingParams(seed=4),
            has_own_seed=has_own_seed,
        )
        await parts.running(job)
        await idle()
        seeds = {(one.request_id, one.choice): one.sampling.seed for one in parts.generates()}
        first = {("r-0", 0): 4, ("r-0", 1): 4}
        assert seeds == first | {("r-1", 0): second, ("r-1", 1): second}


async def test_text_becomes_events_and_the_last_choice_ends_the_request() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    await idle()
    await parts.output(one, text="a")
    await parts.output(one, text="", num_tokens=1)  # tokens without text are no event
    await parts.finish(one, stop_reason="END")
    assert len(parts.sessions) == 1
    await parts.output(one, text="b", choice=1)
    await parts.finish(one, "length", choice=1)
    assert await started.events() == [
        ContentText(0, "a"),
        ChoiceFinished(0, "stop", Usage(prompt_tokens=5, completion_tokens=1), "END"),
        ContentText(1, "b"),
        finished(1, "length"),
    ]
    assert started.request.outcome == "finished"
    assert await started.work.next_events(None) is None
    assert parts.num_slots == 0


async def test_token_ids_are_told_when_they_are_asked_for() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running(generation_job(options=AnswerOptions(shows_token_ids=True)))
    await parts.output(one, 2, text="")
    shown, content = await started.events()
    assert isinstance(shown, PromptShown)
    assert shown.prompt.prepared.prompt_token_ids == (0, 1, 2, 3, 4)
    assert content == ContentText(0, "", token_ids=(7, 7))


async def test_output_that_nobody_wants_is_neither_shown_nor_charged() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running(generation_job(discards_output=True, max_tokens=1))
    await parts.output(one, text="unseen")
    await parts.finish(one, "stop", stop_reason=7)
    assert await started.events() == [finished(0, "length", num_tokens=0)]
    (settle,) = parts.outbox.settles
    assert (settle.prompt_tokens, settle.completion_tokens) == (5, 0)


async def test_running_usage_is_told_before_each_event() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(is_streaming=True, include_usage=True, continuous_usage=True)
    started = await parts.running(generation_job(options=options))
    await parts.output(one, 3, text="a")
    assert await started.events() == [
        UsageTold(0, Usage(prompt_tokens=5, completion_tokens=3)),
        ContentText(0, "a"),
    ]


def position(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(chosen=TokenLogprob(token_id, "x", b"x", -1.0))


async def test_logprobs_of_the_prompt_come_before_all_text_and_from_the_first_choice_only() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(num_choices=2, num_answers=2, num_prompt_logprobs=0)
    job = generation_job(options=options, sampling=SamplingParams(prompt_logprobs=0))
    started = await parts.running(job)
    await idle()
    asked = {one.choice: one.sampling.prompt_logprobs for one in parts.generates()}
    assert asked == {0: 0, 1: None}
    told = tuple(position(number) for number in range(4))
    await parts.output(one, text="b", choice=1)
    await parts.output(one, text="", prompt_logprobs=told[:3])
    assert await started.events() == []
    await parts.output(one, text="a", prompt_logprobs=told[3:])
    shown, other, *_ = await started.events()
    assert isinstance(shown, PromptShown)
    assert (shown.choice, shown.prompt.logprobs) == (1, told)
    assert other == ContentText(1, "b")


async def test_an_engine_that_tells_less_of_the_prompt_than_it_was_asked_holds_nobody_up() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(num_prompt_logprobs=0)
    job = generation_job(options=options, sampling=SamplingParams(prompt_logprobs=0))
    started = await parts.running(job)
    await parts.output(one, text="a", prompt_logprobs=(position(0),))
    await parts.finish(one)
    kinds = [type(event) for event in await started.events()]
    assert kinds == [PromptShown, ContentText, ChoiceFinished]


async def test_the_first_output_and_the_whole_are_timed() -> None:
    parts = Parts()
    one = parts.engine()
    await asyncio.sleep(100.0)
    started = await parts.generation()
    await asyncio.sleep(1.0)
    await parts.grant()
    await parts.prepare_next()
    await started.task
    await asyncio.sleep(2.0)
    await parts.output(one, 1)
    await asyncio.sleep(4.0)
    await parts.output(one, 2)
    await parts.finish(one, usage=Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=2))
    lines = parts.metrics.render().decode().splitlines()
    prefix = "penstock_gateway_"
    for expected in (
        'generations_total{model="m",outcome="finished"} 1.0',
        'time_to_first_token_seconds_sum{model="m"} 3.0',
        'request_duration_seconds_sum{model="m"} 7.0',
        'inter_token_latency_seconds_sum{model="m"} 2.0',
        'tokens_total{kind="cached",model="m"} 2.0',
        'tokens_total{kind="completion",model="m"} 3.0',
    ):
        assert prefix + expected in lines


async def test_a_generation_without_output_has_no_time_to_its_first_token() -> None:
    parts = Parts()
    parts.engine()
    started = await parts.generation()
    await parts.grant()
    started.request.on_client_gone()
    await started.error()
    rendered = parts.metrics.render().decode()
    assert 'generations_total{model="m",outcome="aborted"} 1.0' in rendered
    assert "time_to_first_token_seconds_count{" not in rendered
    assert 'role="engine"' not in rendered


async def test_what_is_reserved_for_all_choices_is_corrected_by_the_prompts() -> None:
    parts = Parts(slice_tokens=16)
    parts.engine()
    options = AnswerOptions(num_choices=2, num_answers=2, is_streaming=True)
    job = generation_job("x" * 40, max_tokens=None, options=options)
    started = await parts.generation(job)
    (authorize,) = parts.auth_wire.of(Authorize)
    assert (authorize.prompt_tokens, authorize.completion_tokens) == (40, 32)
    await parts.grant(limits=LimitState(limit_tokens=1000))
    await parts.prepare_next(max_output_tokens=9)
    await started.task
    await idle()
    (adjust,) = parts.auth_wire.of(Adjust)
    assert (adjust.prompt_tokens, adjust.completion_tokens) == (5, 18)
    assert [generate.lease_tokens for generate in parts.generates()] == [9, 9]


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_an_engine_knows_whether_somebody_reads_along(is_streaming: bool) -> None:
    parts = Parts()
    parts.engine()
    await parts.running(generation_job(options=AnswerOptions(is_streaming=is_streaming)))
    assert [generate.is_streaming for generate in parts.generates()] == [is_streaming]


async def test_two_choices_are_reported_each_and_one_is_not() -> None:
    parts = Parts()
    parts.engine()
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    assert [usage.stream for usage in started.work.choice_usages()] == ["r/0", "r/1"]
    alone = await parts.generation(generation_job(), "alone")
    await parts.grant("alone")
    await parts.prepare_next()
    await alone.task
    assert alone.work.choice_usages() == ()


async def test_a_further_choice_finds_room_in_a_full_queue_and_waits_while_no_engine_is_there() -> (
    None
):
    parts = Parts(max_queue=0)
    one = parts.engine(max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    await idle()
    parts.lose(one)
    await idle()
    parts.engine("next", max_requests=2)
    await idle()
    assert [generate.choice for generate in parts.generates()] == [0, 0, 1]
    assert started.request.outcome is None


async def test_an_engine_of_an_older_release_is_not_given_what_it_would_leave_aside() -> None:
    parts = Parts()
    parts.engine(version=(1, 0))
    sampling = SamplingParams(bad_words=("x",))
    started = await parts.generation(generation_job(sampling=sampling))
    await parts.grant()
    error = await started.error()
    assert isinstance(error, UnsupportedFieldError)
    assert error.param == "bad_words"


async def test_the_queue_is_fair_between_tenants() -> None:
    parts = Parts()
    one = parts.engine(max_requests=1)
    parts.handle(one).num_requests = 1
    for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
        await parts.generation(request_id=name)
        await parts.grant(name, tenant=tenant)
    order = []
    parts.handle(one).num_requests = 0
    parts.admission.pump("m")
    for _ in range(4):
        await idle()
        order.append(parts.engine_wire.of(Prepare)[-1].request_id)
        parts.link.on_event(
            one, Failure(request_id=order[-1], code=ErrorCode.INVALID_REQUEST, message="wrong")
        )
    assert order.index("b1") == 1
    assert sorted(order) == ["a1", "a2", "a3", "b1"]


async def test_what_a_choice_used_is_what_its_tenant_has_paid_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paid: list[int | None] = []
    parts = Parts()
    one = parts.engine()
    release = parts.admission.release

    def noting(slot: Slot, used_tokens: int | None = None) -> None:
        paid.append(used_tokens)
        release(slot, used_tokens)

    monkeypatch.setattr(parts.admission, "release", noting)
    await parts.running()
    await parts.output(one, 2)
    await parts.finish(one)
    assert paid == [7]


async def test_what_an_engine_leaves_to_the_model_is_known_before_the_first_event() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running(generation_job(response_grammar=SECRET))
    await idle()
    await parts.output(one, text="", num_tokens=0, unenforced=("/uniqueItems",))
    assert started.work.unenforced == ("/uniqueItems",)
    assert started.work.first_output_at is None
    await parts.output(one, text="a")
    await parts.finish(one)
    assert await started.events() == [ContentText(0, "a"), finished()]
    assert started.work.unenforced == ("/uniqueItems",)


async def test_output_that_comes_with_what_an_engine_leaves_to_the_model_is_output() -> None:
    for text, num_tokens in (("a", 0), ("", 1)):
        parts = Parts()
        one = parts.engine()
        started = await parts.running(generation_job(response_grammar=SECRET))
        await parts.output(one, num_tokens, text, unenforced=("/uniqueItems",))
        assert started.work.first_output_at is not None
        await parts.finish(one)
        shown = [ContentText(0, text)] if text else []
        assert await started.events() == [*shown, finished()]
