"""What a request that failed, was refused or was left counts as: used, or as if it had never
been."""

import asyncio

import pytest

from gateway.errors import (
    DeniedError,
    GatewayError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RemoteFailureError,
    WorkerUnavailableError,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Generate,
    Prepare,
    Usage,
)
from tests.fakes.request_parts import Parts, generation_job
from tests.fakes.request_stages import (
    waits_for_its_grant,
    waits_for_its_lease,
    waits_for_its_prompt,
)
from tests.fakes.virtual_time import idle


async def test_a_refusal_by_auth_is_the_callers_answer_and_settles_nothing() -> None:
    parts = Parts()
    started = await waits_for_its_grant(parts)
    await parts.deny(ErrorCode.RATE_LIMIT_EXCEEDED, retry_after_s=3.0, key_id="k")
    error = await started.error()
    assert isinstance(error, DeniedError)
    assert (error.code, error.retry_after_s) == (ErrorCode.RATE_LIMIT_EXCEEDED, 3.0)
    assert parts.outbox.settles == []
    assert len(parts.sessions) == 0


async def test_a_prompt_that_the_engine_refuses_counts_as_a_request_without_tokens() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.prepared_generation()
    await parts.fail(one, "r", ErrorCode.INVALID_REQUEST, param="prompt")
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert error.param == "prompt"
    (settle,) = parts.outbox.settles
    assert (settle.outcome, settle.is_unused, settle.prompt_tokens) == ("failed", False, 0)
    assert parts.num_slots == 0


async def test_what_this_gateway_finds_wrong_counts_as_a_request() -> None:
    parts = Parts(max_answer_bytes=10)
    parts.engine()
    started = await parts.prepared_generation()
    await parts.prepare_next()
    assert isinstance(await started.error(), InvalidRequestError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]
    assert parts.num_slots == 0


async def test_a_model_that_is_not_there_counts_as_a_request() -> None:
    parts = Parts()
    parts.engine()
    started = await parts.generation(generation_job(model="nope"))
    await parts.grant()
    error = await started.error()
    assert isinstance(error, ModelNotFoundError)
    assert str(error) == ("The model `nope` does not exist here. Available models: `later`, `m`.")
    (settle,) = parts.outbox.settles
    assert (settle.is_unused, settle.has_begun) == (False, False)


@pytest.mark.parametrize(("model", "is_known"), [("nope", False), ("m", True), ("later", True)])
async def test_a_model_without_a_price_that_is_not_there_is_not_found(
    model: str, is_known: bool
) -> None:
    parts = Parts()
    parts.engine()
    started = await parts.generation(generation_job(model=model))
    await parts.deny(ErrorCode.PERMISSION_DENIED, is_unpriced=True)
    error = await started.error()
    assert isinstance(error, DeniedError if is_known else ModelNotFoundError)
    # Nobody has said what this caller may see.
    assert "`m`" not in str(error)
    assert parts.outbox.settles == []


async def test_an_unknown_model_tells_only_names_that_the_key_may_use() -> None:
    """Whatever tells it: an answer, a WebSocket, or a response that was stored."""
    parts = Parts()
    parts.engine()
    started = await parts.generation(generation_job(model="nope"))
    await parts.grant(allowed_models=("m*", "n*"), team_allowed_models=("*m",))
    error = await started.error()
    assert isinstance(error, ModelNotFoundError)
    assert str(error) == "The model `nope` does not exist here. Available models: `m`."


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.OVERLOADED,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.INTERNAL_ERROR,
        ErrorCode.DEADLINE_EXCEEDED,
    ],
)
async def test_failures_of_ours_before_anything_was_begun_are_unused(code: ErrorCode) -> None:
    parts = Parts()
    started = await waits_for_its_prompt(parts)
    started.request.fail(GatewayError("ours", code=code))
    await started.error()
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]


async def test_a_full_queue_is_unused() -> None:
    parts = Parts(max_queue=0)
    one = parts.engine(max_requests=1)
    parts.handle(one).num_requests = 1
    started = await parts.generation()
    await parts.grant()
    assert isinstance(await started.error(), OverloadedError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]


async def test_a_model_that_still_starts_is_unused() -> None:
    parts = Parts()
    started = await parts.generation(generation_job(model="later"))
    await parts.grant()
    error = await started.error()
    assert isinstance(error, WorkerUnavailableError)
    assert str(error) == "The model `later` is still starting."
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]


async def test_a_failure_of_ours_after_something_was_begun_is_used() -> None:
    parts = Parts(timeout_s=30.0)
    one = parts.engine()
    started = await parts.running()
    await asyncio.sleep(30.0)
    await parts.finish(one, "abort", Usage(prompt_tokens=5))
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]
    assert started.request.outcome == "failed"


async def test_an_engine_that_is_lost_before_it_was_asked_has_begun_nothing() -> None:
    """The choice counted as started although its Generate never went out."""
    parts = Parts(timeout_s=30.0)
    started = await waits_for_its_lease(parts)
    (one,) = parts.directory.peers()
    parts.lose(one)
    await parts.adjust()
    await started.task
    assert parts.generates() == []
    await asyncio.sleep(30.0)
    (settle,) = parts.outbox.settles
    assert (settle.is_unused, settle.prompt_tokens, settle.outcome) == (True, 0, "failed")


async def test_a_choice_that_its_engine_refuses_counts_as_a_request_without_tokens() -> None:
    """It was charged its prompt, although the engine's answer was that it hadn't begun."""
    parts = Parts()
    one = parts.engine()
    await parts.running()
    await parts.fail(one, "r", ErrorCode.UNSUPPORTED_GRAMMAR, choice=0, attempt=1)
    (settle,) = parts.outbox.settles
    assert (settle.is_unused, settle.has_begun, settle.prompt_tokens) == (False, False, 0)


async def test_a_choice_that_fails_with_its_usage_or_after_output_had_begun() -> None:
    for usage, num_tokens in ((Usage(prompt_tokens=5), 0), (None, 1)):
        parts = Parts()
        one = parts.engine()
        await parts.running()
        if num_tokens:
            await parts.output(one, num_tokens)
        await parts.fail(one, "r", ErrorCode.INVALID_REQUEST, choice=0, attempt=1, usage=usage)
        (settle,) = parts.outbox.settles
        assert (settle.has_begun, settle.prompt_tokens) == (True, 5)
        assert settle.completion_tokens == num_tokens


async def test_a_choice_that_was_lost_once_and_then_refused_had_begun() -> None:
    parts = Parts()
    one, two = parts.engine("a"), parts.engine("b")
    await parts.running()
    first = next(engine for engine in (one, two) if parts.handle(engine).num_requests)
    parts.lose(first)
    await asyncio.sleep(1.0)
    second = two if first is one else one
    await parts.fail(second, "r", ErrorCode.INVALID_REQUEST, choice=0, attempt=2)
    (settle,) = parts.outbox.settles
    assert (settle.has_begun, settle.prompt_tokens) == (True, 5)


async def test_a_client_that_leaves_after_the_start_has_had_something_begun() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    started.request.on_client_gone()
    await parts.finish(one, "abort", Usage(prompt_tokens=5))
    (settle,) = parts.outbox.settles
    assert (settle.is_unused, settle.has_begun, settle.prompt_tokens) == (False, True, 5)


async def test_a_bug_of_ours_ends_the_request_in_words_and_settles_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = Parts()
    started = await waits_for_its_prompt(parts)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gateway.request.kinds.generation.check_answer_size", broken)
    await parts.prepare_next()
    assert isinstance(await started.error(), RuntimeError)
    assert started.request.outcome == "failed"
    assert (parts.num_slots, len(parts.sessions)) == (0, 0)
    with pytest.raises(GatewayError, match="^Internal server error.$"):
        await started.work.next_events(None)
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]


async def test_what_is_left_of_the_time_travels_to_the_engine() -> None:
    parts = Parts(timeout_s=60.0)
    parts.engine()
    started = await parts.generation()
    await asyncio.sleep(1.0)
    await parts.grant()
    await asyncio.sleep(2.0)
    await parts.prepare_next()
    await started.task
    (prepare,) = parts.engine_wire.of(Prepare)
    (generate,) = parts.engine_wire.of(Generate)
    assert (prepare.deadline_s, generate.deadline_s) == (59.0, 57.0)


async def test_a_prompt_is_charged_though_its_first_choice_was_refused() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    await idle()
    await parts.fail(one, "r", ErrorCode.CREDIT_EXCEEDED, choice=0, attempt=1)
    await parts.output(one, 3, choice=1)
    started.request.on_client_gone()
    usage = Usage(prompt_tokens=5, completion_tokens=3)
    await parts.finish(one, "abort", choice=1, usage=usage)
    (settle,) = parts.outbox.settles
    assert (settle.prompt_tokens, settle.completion_tokens) == (5, 3)
