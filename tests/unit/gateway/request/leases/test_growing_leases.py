"""Choices within what is paid for and what their reader takes: when they are extended, and when
cut."""

import asyncio

import pytest

from gateway.request.delivery.events import ChoiceFinished
from gateway.request.delivery.pipeline import MAX_UNREAD
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.errors import ErrorCode
from protocol.wire.messages import Abort, Adjust, Authorize, Extend, Usage
from tests.fakes.request_parts import Generation, Parts, generation_job
from tests.fakes.virtual_time import idle

STREAM = AnswerOptions(is_streaming=True)


def extends(parts: Parts) -> list[int]:
    return [extend.lease_tokens for extend in parts.engine_wire.of(Extend)]


async def endless(parts: Parts, options: AnswerOptions = STREAM) -> Generation:
    """A stream without a limit of its own; its choices get slices of 16 tokens."""
    return await parts.running(generation_job(max_tokens=None, options=options))


async def test_a_slice_is_followed_by_the_next_when_a_quarter_is_left() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    await endless(parts)
    num_adjusts = len(parts.auth_wire.of(Adjust))
    assert parts.generates()[0].lease_tokens == 16
    await parts.output(one, 11)
    assert len(parts.auth_wire.of(Adjust)) == num_adjusts
    await parts.output(one, 1)
    adjust = parts.auth_wire.of(Adjust)[-1]
    assert (adjust.prompt_tokens, adjust.completion_tokens) == (5, 32)
    # More output asks for no more while the answer is on its way.
    await parts.output(one, 2)
    assert len(parts.auth_wire.of(Adjust)) == num_adjusts + 1
    assert extends(parts) == []
    await parts.adjust()
    assert parts.engine_wire.of(Extend) == [
        Extend(request_id="r", choice=0, attempt=1, lease_tokens=32)
    ]
    await parts.output(one, 14)
    assert parts.auth_wire.of(Adjust)[-1].completion_tokens == 48


async def test_the_slot_counts_what_the_lease_grew_to() -> None:
    """A lease grew to 176 tokens while its slot still counted 21."""
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    await endless(parts)
    assert parts.handle(one).num_tokens == 5 + 16
    await parts.output(one, 12)
    await parts.adjust()
    assert parts.handle(one).num_tokens == 5 + 32


async def test_the_slot_at_the_next_engine_counts_what_the_lease_grew_to_meanwhile() -> None:
    """It was asked for before the lease grew, and went on counting what was held then."""
    parts = Parts(slice_tokens=16)
    first = parts.engine("a")
    await endless(parts)
    await parts.output(first, 12)
    parts.lose(first)
    await idle()
    await parts.adjust()
    second = parts.engine("b")
    await idle()
    assert parts.generates()[-1].lease_tokens == 32
    assert parts.handle(second).num_tokens == 5 + 32
    assert extends(parts) == []


async def test_no_slice_goes_beyond_the_context() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    started = await parts.generation(generation_job(max_tokens=None, options=STREAM))
    await parts.grant()
    await parts.prepare_next(max_output_tokens=20)
    await started.task
    await parts.output(one, 12)
    assert parts.auth_wire.of(Adjust)[-1].completion_tokens == 20
    await parts.adjust()
    num_adjusts = len(parts.auth_wire.of(Adjust))
    await parts.output(one, 8)
    assert (extends(parts), len(parts.auth_wire.of(Adjust))) == ([20], num_adjusts)


async def test_a_limited_stream_is_paid_at_once_and_released_in_slices() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    await parts.running(generation_job(max_tokens=40, options=STREAM))
    assert parts.auth_wire.of(Authorize)[-1].completion_tokens == 40
    assert parts.generates()[0].lease_tokens == 16
    for _ in range(3):
        await parts.output(one, 12)
    assert extends(parts) == [32, 40]
    assert parts.auth_wire.of(Adjust) == []
    assert parts.handle(one).num_tokens == 5 + 40


async def test_an_engine_that_does_not_stop_at_the_limit_is_stopped_beyond_it() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    started = await parts.running(generation_job(max_tokens=8, options=STREAM))
    await parts.output(one, 8)
    assert parts.engine_wire.of(Abort) == []
    await parts.output(one, 1)
    assert parts.engine_wire.of(Abort) == [Abort(request_id="r", attempt=1, choice=0)]
    usage = Usage(prompt_tokens=5, completion_tokens=9)
    await parts.finish(one, "abort", usage=usage)
    assert (await started.events())[-1] == ChoiceFinished(0, "length", usage)
    assert started.request.outcome == "finished"


async def test_an_answer_in_one_piece_gets_all_that_is_paid() -> None:
    parts = Parts(slice_tokens=16)
    parts.engine()
    await parts.running(generation_job(max_tokens=40))
    assert parts.generates()[0].lease_tokens == 40


async def test_a_stream_with_many_log_probabilities_gets_smaller_slices() -> None:
    parts = Parts(slice_tokens=1280)
    parts.engine()
    options = AnswerOptions(is_streaming=True, num_top_logprobs=9)
    started = await parts.generation(generation_job(max_tokens=900, options=options))
    await parts.grant()
    await parts.prepare_next(max_output_tokens=900)
    await started.task
    assert parts.generates()[0].lease_tokens == 128


async def test_an_unread_stream_gets_no_more_until_its_reader_catches_up() -> None:
    """A stream that nobody read was extended until it held 916 events."""
    parts = Parts(slice_tokens=1024)
    one = parts.engine(max_model_len=10_000)
    started = await parts.generation(generation_job(max_tokens=4000, options=STREAM))
    await parts.grant()
    await parts.prepare_next(max_output_tokens=4000)
    await started.task
    for _ in range(MAX_UNREAD):
        await parts.output(one, 1)
    await parts.output(one, 1024 - MAX_UNREAD)
    assert extends(parts) == []
    assert len(await started.events()) == MAX_UNREAD + 1
    assert extends(parts) == [2048]
    # It is told once.
    await started.events()
    await parts.output(one, 1)
    await started.events()
    assert extends(parts) == [2048]


async def test_a_reader_that_is_almost_in_time_is_not_waited_for() -> None:
    parts = Parts(slice_tokens=256)
    one = parts.engine()
    started = await parts.generation(generation_job(max_tokens=600, options=STREAM))
    await parts.grant()
    await parts.prepare_next(max_output_tokens=600)
    await started.task
    for _ in range(MAX_UNREAD - 2):
        await parts.output(one, 1)
    await parts.output(one, 100)
    assert len(extends(parts)) == 1


async def test_a_choice_that_ended_unread_is_not_extended_when_it_is_read() -> None:
    parts = Parts(slice_tokens=1024)
    one = parts.engine(max_model_len=10_000)
    options = AnswerOptions(is_streaming=True, num_choices=2, num_answers=2)
    started = await parts.generation(generation_job(max_tokens=4000, options=options))
    await parts.grant()
    await parts.prepare_next(max_output_tokens=4000)
    await started.task
    await idle()
    for _ in range(MAX_UNREAD):
        await parts.output(one, 1)
    await parts.output(one, 900)
    await parts.output(one, 900, choice=1)
    await parts.finish(one)
    await started.events()
    assert [(extend.choice, extend.lease_tokens) for extend in parts.engine_wire.of(Extend)] == [
        (1, 2048)
    ]


async def refused(parts: Parts, code: ErrorCode = ErrorCode.INSUFFICIENT_QUOTA) -> Generation:
    """A stream with 12 of 16 tokens made, which gets no more."""
    one = parts.engine()
    started = await endless(parts)
    await parts.output(one, 12)
    await parts.refuse_adjust(code)
    return started


async def test_the_callers_own_limit_ends_an_answer_where_its_lease_does() -> None:
    parts = Parts(slice_tokens=16)
    started = await refused(parts)
    (one,) = parts.directory.peers()
    num_adjusts = len(parts.auth_wire.of(Adjust))
    await parts.output(one, 3)
    assert parts.engine_wire.of(Abort) == []  # one paid token is left
    await parts.output(one, 1)
    assert parts.engine_wire.of(Abort) == [Abort(request_id="r", attempt=1, choice=0)]
    assert len(parts.auth_wire.of(Adjust)) == num_adjusts
    await parts.finish(one, "abort", Usage(prompt_tokens=5, completion_tokens=16))
    assert (await started.events())[-1] == ChoiceFinished(
        0, "length", Usage(prompt_tokens=5, completion_tokens=16)
    )
    assert started.request.outcome == "finished"


async def test_a_refusal_that_comes_at_the_lease_s_end_ends_the_answer_at_once() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    started = await endless(parts)
    await parts.output(one, 16)
    assert parts.engine_wire.of(Abort) == []
    await parts.refuse_adjust(ErrorCode.RATE_LIMIT_EXCEEDED)
    assert len(parts.engine_wire.of(Abort)) == 1
    await parts.finish(one, "abort")
    assert started.request.outcome == "finished"


async def test_an_engine_that_fails_at_the_lease_s_end_has_finished() -> None:
    parts = Parts(slice_tokens=16)
    started = await refused(parts)
    (one,) = parts.directory.peers()
    await parts.output(one, 4)
    parts.lose(one)
    await idle()
    assert (await started.events())[-1] == ChoiceFinished(
        0, "length", Usage(prompt_tokens=5, completion_tokens=16)
    )
    assert started.request.outcome == "finished"
    assert parts.num_slots == 0


async def test_a_lease_that_ended_while_no_engine_worked_on_it_ends_at_the_next_one() -> None:
    parts = Parts(slice_tokens=16)
    first = parts.engine("a")
    started = await endless(parts)
    await parts.output(first, 16)
    parts.lose(first)
    await idle()
    await parts.refuse_adjust(ErrorCode.INSUFFICIENT_QUOTA)
    second = parts.engine("b")
    await idle()
    assert parts.engine_wire.of(Abort) == [Abort(request_id="r", attempt=2, choice=0)]
    await parts.finish(second, "abort", attempt=2)
    assert started.request.outcome == "finished"


async def test_a_passing_failure_of_auth_cuts_no_answer() -> None:
    """It was taken for the caller's limit, although paid tokens were left."""
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    started = await endless(parts)
    await parts.output(one, 12)
    await parts.refuse_adjust(ErrorCode.WORKER_UNAVAILABLE)
    # What is paid is used meanwhile, and to its end.
    await parts.output(one, 4)
    assert parts.engine_wire.of(Abort) == []
    await asyncio.sleep(0.6)
    await parts.refuse_adjust(ErrorCode.INTERNAL_ERROR, is_denied=False)
    await asyncio.sleep(0.6)
    await parts.adjust()
    assert extends(parts) == [32]
    assert started.request.outcome is None


async def test_choices_grow_one_lease_one_after_the_other() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    options = AnswerOptions(is_streaming=True, num_choices=2, num_answers=2)
    await endless(parts, options)
    await idle()
    await parts.output(one, 12)
    await parts.output(one, 12, choice=1)
    assert parts.auth_wire.of(Adjust)[-1].completion_tokens == 48
    await parts.adjust()
    assert parts.auth_wire.of(Adjust)[-1].completion_tokens == 64
    await parts.adjust()
    assert [(extend.choice, extend.lease_tokens) for extend in parts.engine_wire.of(Extend)] == [
        (0, 32),
        (1, 32),
    ]


async def test_after_the_end_no_lease_grows() -> None:
    parts = Parts(slice_tokens=16)
    one = parts.engine()
    started = await endless(parts)
    await parts.output(one, 12)
    started.request.on_client_gone()
    await parts.adjust()
    assert extends(parts) == []


@pytest.mark.parametrize(("slice_tokens", "num_tokens"), [(16, 13), (4, 4), (3, 3)])
async def test_a_quarter_is_rounded_down(slice_tokens: int, num_tokens: int) -> None:
    parts = Parts(slice_tokens=slice_tokens)
    one = parts.engine()
    await parts.running(generation_job(max_tokens=100, options=STREAM))
    for made in range(1, num_tokens + 1):
        await parts.output(one, 1)
        assert bool(extends(parts)) is (slice_tokens - made <= slice_tokens // 4)
