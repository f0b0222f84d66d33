"""What the parts of a generation work out by themselves: sizes, sums, names, and prompts at a
time."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs

from gateway import bridge
from gateway.errors import GatewayError, InvalidRequestError, RemoteFailureError, WorkerLostError
from gateway.request.delivery.events import ChoiceFinished, total_usage
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import job_fingerprint, question_fingerprint
from gateway.request.jobs.model_limits import LOGPROB_BYTES, TOKEN_BYTES, check_answer_size
from gateway.request.leases.budget import TokenBudget
from gateway.request.leases.work_bound import Admitted
from gateway.request.preparation.engine_asker import is_retryable
from gateway.request.preparation.prompts import CHECK_EVERY, WINDOW, PromptBatch
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Cancel,
    Embed,
    Grammar,
    Prepare,
    Prepared,
    SamplingParams,
    Usage,
)
from tests.fakes.request_parts import Parts, engine_offer, generation_job
from tests.fakes.virtual_time import idle

# The size of an answer.


def estimate(
    prompts: tuple[int, ...] = (100,),
    outputs: tuple[int, ...] = (10,),
    **options: Any,
) -> int:
    """The smallest limit that lets an answer pass."""
    discards = options.pop("discards_output", False)
    job = generation_job(
        *["x"] * len(prompts), options=AnswerOptions(**options), discards_output=discards
    )
    try:
        check_answer_size(job, prompts, outputs, -1)
    except InvalidRequestError as error:
        number = int(str(error).split("could have ")[1].split(" bytes")[0])
        check_answer_size(job, prompts, outputs, number)
        with pytest.raises(InvalidRequestError):
            check_answer_size(job, prompts, outputs, number - 1)
        return number
    raise AssertionError("every answer is larger than nothing at all")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 10 * TOKEN_BYTES),
        ({"num_choices": 3}, 30 * TOKEN_BYTES),
        ({"num_top_logprobs": 0}, 10 * (TOKEN_BYTES + LOGPROB_BYTES)),
        ({"num_top_logprobs": 20}, 10 * (TOKEN_BYTES + 21 * LOGPROB_BYTES)),
        ({"echoes": True}, 110 * TOKEN_BYTES),
        ({"echoes": True, "num_choices": 2}, 220 * TOKEN_BYTES),
        ({"shows_token_ids": True}, 110 * TOKEN_BYTES),
        ({"shows_token_ids": True, "num_choices": 2}, 120 * TOKEN_BYTES),
        ({"num_prompt_logprobs": 4}, 10 * TOKEN_BYTES + 100 * 5 * LOGPROB_BYTES),
        (
            {"echoes": True, "num_top_logprobs": 2},
            110 * (TOKEN_BYTES + 3 * LOGPROB_BYTES),
        ),
        ({"is_streaming": True}, 0),
        ({"is_streaming": True, "echoes": True}, 100 * TOKEN_BYTES),
        ({"discards_output": True, "echoes": True}, 100 * TOKEN_BYTES),
    ],
)
def test_an_answer_is_estimated_by_what_it_shows(options: dict[str, Any], expected: int) -> None:
    assert estimate(**options) == expected


def test_every_prompt_counts_with_its_own_output() -> None:
    assert estimate((1, 100), (10, 7), shows_token_ids=True) == 118 * TOKEN_BYTES


LIMIT = 16 * 1024 * 1024


def test_a_small_request_for_a_huge_echo_is_refused_with_both_numbers() -> None:
    """128 prompts of 1,900 tokens with 20 log probabilities made an answer of 135 MB."""
    options = AnswerOptions(echoes=True, num_top_logprobs=20)
    job = generation_job(*["x"] * 128, options=options, discards_output=True, max_tokens=0)
    with pytest.raises(InvalidRequestError) as raised:
        check_answer_size(job, [1900] * 128, [1] * 128, LIMIT)
    expected = 128 * 1900 * (TOKEN_BYTES + 21 * LOGPROB_BYTES)
    assert str(raised.value) == (
        f"The answer could have {expected} bytes, over this server's limit of {LIMIT} "
        "(PENSTOCK_MAX_ANSWER_BYTES). Ask for fewer choices, tokens or log probabilities, or "
        "for a stream."
    )
    assert raised.value.param == "logprobs"


def test_many_choices_with_log_probabilities_are_refused_unless_they_are_streamed() -> None:
    """64 choices of 400 tokens with 20 log probabilities made an answer of 37 MB."""
    fields: dict[str, Any] = {"num_choices": 64, "num_answers": 64, "num_top_logprobs": 20}
    with pytest.raises(InvalidRequestError, match=str(LIMIT)):
        check_answer_size(generation_job(options=AnswerOptions(**fields)), [5], [400], LIMIT)
    streaming = AnswerOptions(**fields, is_streaming=True)
    check_answer_size(generation_job(options=streaming), [5], [400], LIMIT)


def test_without_log_probabilities_it_is_the_number_of_choices() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check_answer_size(generation_job(), [5], [400], 10)
    assert raised.value.param == "n"


def test_each_prompt_needs_its_limit() -> None:
    with pytest.raises(ValueError, match="zip"):
        check_answer_size(generation_job(), [5], [], 10)


# What a request may use.


def test_the_first_choice_may_need_its_prompt_and_a_slice_within_the_context() -> None:
    budget = TokenBudget(generation_job("x" * 30, max_tokens=None), slice_tokens=20)
    assert budget.upper_bound(engine_offer(max_model_len=1000)) == 50
    assert budget.upper_bound(engine_offer(max_model_len=45)) == 45
    assert budget.first_reservation(engine_offer(max_model_len=10)) == (10, 10)
    assert budget.output_limits([prepared(9)]) == [9]
    assert (budget.slice_of(9), budget.slice_of(90)) == (9, 20)


def prepared(max_output_tokens: int, num_tokens: int = 2) -> Prepared:
    return Prepared(
        request_id="r",
        prompt_token_ids=(1,) * num_tokens,
        max_output_tokens=max_output_tokens,
    )


@pytest.mark.parametrize(
    ("top", "expected"), [(None, 1000), (0, 1000), (1, 500), (9, 100), (20, 64)]
)
def test_a_stream_s_slice_is_smaller_where_tokens_are_large(top: int | None, expected: int) -> None:
    options = AnswerOptions(is_streaming=True, num_top_logprobs=top)
    budget = TokenBudget(generation_job(options=options), slice_tokens=1000)
    assert budget.slice_tokens == expected
    assert (budget.released(expected + 1), budget.released(7)) == (expected, 7)


def test_an_answer_in_one_piece_needs_no_smaller_slice() -> None:
    budget = TokenBudget(generation_job(options=AnswerOptions(num_top_logprobs=20)), 1000)
    assert (budget.slice_tokens, budget.released(5000)) == (1000, 5000)


# Sums.


def usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


def test_a_prompt_is_counted_once_and_all_output() -> None:
    usages = [usage(5, 1, 4, 1), usage(5, 2, 5, 2), usage(7, 3, 6, 3), usage(7, 4, 0, 4)]
    assert total_usage(usages, 2) == usage(12, 10, 4, 10)
    assert total_usage(usages, 1) == usage(24, 10, 15, 10)
    assert total_usage(usages, 4) == usage(5, 10, 0, 10)
    assert total_usage([], 2) == Usage()


def test_a_choice_that_was_not_begun_says_nothing_of_what_was_cached() -> None:
    assert total_usage([usage(5, 1, 4), Usage()], 2).cached_tokens == 4
    assert total_usage([Usage(), Usage()], 2).cached_tokens == 0
    assert total_usage([usage(1, 1, 1), usage(1, 1, 2)], 2).cached_tokens == 1


# Fingerprints for the quarantine.


def test_what_an_engine_computes_with_makes_another_request() -> None:
    base = job_fingerprint(generation_job("a"), "t")
    assert base == job_fingerprint(generation_job("a"), "t")
    others = [
        job_fingerprint(generation_job("a"), "u"),
        job_fingerprint(generation_job("b"), "t"),
        job_fingerprint(generation_job("a", "a"), "t"),
        job_fingerprint(generation_job("a", model="n"), "t"),
        job_fingerprint(generation_job("a", enforced_tools_json="[]"), "t"),
        job_fingerprint(generation_job("a", tool_choice="auto"), "t"),
        job_fingerprint(generation_job("a", tool_name="f"), "t"),
        job_fingerprint(generation_job("a", sampling=SamplingParams(seed=1, top_k=2)), "t"),
        job_fingerprint(
            generation_job("a", response_grammar=Grammar(kind="regex", source="a")), "t"
        ),
    ]
    assert len({base, *others}) == 10
    assert len(base) == 16


def test_seeds_and_lengths_make_no_other_request() -> None:
    base = job_fingerprint(generation_job("a"), "t")
    sampling = SamplingParams(seed=9, max_tokens=7)
    prepares = (bridge.prompt("completion", text="a", max_tokens=7),)
    assert job_fingerprint(generation_job("a", sampling=sampling), "t") == base
    assert job_fingerprint(generation_job("a", prepares=prepares, max_tokens=7), "t") == base


def test_names_do_not_run_into_each_other() -> None:
    first = job_fingerprint(generation_job("a", model="nm"), "t")
    assert first != job_fingerprint(generation_job("a", model="m"), "tn")
    # Text that is no valid Unicode has a fingerprint all the same.
    assert job_fingerprint(generation_job("a", tool_name="\ud800"), "\ud800")
    embed = Embed(request_id="", deadline_s=0.0, texts=("a",))
    assert question_fingerprint(embed, "nm", "t") != question_fingerprint(embed, "m", "tn")
    assert question_fingerprint(embed, "m", "t") != question_fingerprint(embed, "m", "u")
    assert question_fingerprint(embed, "m", "t") != question_fingerprint(embed, "n", "t")
    assert len(question_fingerprint(embed, "\ud800", "t")) == 16


# Prompts, a few at a time.


def batch(parts: Parts, num_prompts: int) -> PromptBatch:
    (one,) = parts.directory.peers()
    prepares = [
        Prepare(request_id=f"r-{number}", kind="completion", deadline_s=1.0)
        for number in range(num_prompts)
    ]
    return PromptBatch(parts.link, parts.handle(one), prepares)


def worthwhile(_prepared: Sequence[Prepared]) -> None:
    """So are all prompts of a request whose answer isn't too large."""


def answer(parts: Parts, number: int) -> None:
    (one,) = parts.directory.peers()
    parts.link.on_event(one, Prepared(request_id=f"r-{number}", prompt_token_ids=(number,)))


async def test_prompts_travel_in_a_window_and_come_back_in_order() -> None:
    parts = Parts()
    parts.engine()
    prompts = batch(parts, WINDOW + 2)
    prompts.send()
    prompts.send()
    assert len(parts.engine_wire.of(Prepare)) == WINDOW
    waiting = asyncio.create_task(prompts.wait(worthwhile))
    await idle()
    answer(parts, 1)
    await idle()
    assert len(parts.engine_wire.of(Prepare)) == WINDOW  # the first is not there yet
    answer(parts, 0)
    await idle()
    assert len(parts.engine_wire.of(Prepare)) == WINDOW + 2
    for number in range(2, WINDOW + 2):
        answer(parts, number)
    ids = [one.prompt_token_ids[0] for one in await waiting]
    assert ids == list(range(WINDOW + 2))
    assert len(parts.link._questions) == 0
    assert parts.engine_wire.of(Cancel) == []


async def test_the_first_failure_cancels_the_other_prompts() -> None:
    parts = Parts()
    one = parts.engine()
    waiting = asyncio.create_task(batch(parts, 4).wait(worthwhile))
    await idle()
    answer(parts, 0)
    await parts.fail(one, "r-2", ErrorCode.OVERLOADED)  # noticed, and nobody need be told twice
    await parts.fail(one, "r-1", ErrorCode.INVALID_REQUEST)
    with pytest.raises(RemoteFailureError) as raised:
        await waiting
    assert raised.value.code is ErrorCode.INVALID_REQUEST
    assert [cancel.request_id for cancel in parts.engine_wire.of(Cancel)] == ["r-3"]
    assert len(parts.link._questions) == 0


async def test_prompts_that_show_that_it_is_not_worth_it_spare_the_others() -> None:
    def too_much(prepared: Sequence[Prepared]) -> None:
        assert len(prepared) == CHECK_EVERY
        raise InvalidRequestError("too much")

    parts = Parts()
    parts.engine()
    waiting = asyncio.create_task(batch(parts, 128).wait(too_much))
    for number in range(CHECK_EVERY):
        await idle()
        answer(parts, number)
    with pytest.raises(InvalidRequestError, match="too much"):
        await waiting
    num_sent = len(parts.engine_wire.of(Prepare))
    assert num_sent < CHECK_EVERY + WINDOW
    assert len(parts.engine_wire.of(Cancel)) == num_sent - CHECK_EVERY
    assert len(parts.link._questions) == 0


async def test_a_closed_batch_is_closed() -> None:
    parts = Parts()
    parts.engine()
    prompts = batch(parts, 2)
    prompts.send()
    prompts.close()
    prompts.close()
    assert len(parts.engine_wire.of(Cancel)) == 2


async def test_an_engine_that_is_gone_takes_no_prompts() -> None:
    parts = Parts()
    one = parts.engine()
    prompts = batch(parts, 2)
    parts.lose(one)
    with pytest.raises(WorkerLostError):
        prompts.send()
    prompts.close()
    assert parts.engine_wire.sent == []


@pytest.mark.parametrize("code", list(ErrorCode))
def test_what_another_engine_may_do_better(code: ErrorCode) -> None:
    expected = code in {
        ErrorCode.WORKER_LOST,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.OVERLOADED,
    }
    assert is_retryable(GatewayError("", code=code)) is expected


def test_what_an_answer_shows_and_what_engines_report_for_it() -> None:
    best = AnswerOptions(num_choices=3, num_answers=1)
    assert (best.ranks, best.engine_logprobs) == (True, 0)
    assert AnswerOptions(num_choices=3, num_answers=1, num_top_logprobs=4).engine_logprobs == 4
    plain = AnswerOptions()
    assert (plain.ranks, plain.engine_logprobs, plain.engine_prompt_logprobs) == (False, None, None)
    assert not plain.shows_prompt
    assert not plain.shows_logprobs
    for shown in (
        AnswerOptions(echoes=True),
        AnswerOptions(shows_token_ids=True),
        AnswerOptions(num_prompt_logprobs=0),
    ):
        assert shown.shows_prompt
    assert AnswerOptions(num_top_logprobs=0).shows_logprobs
    assert AnswerOptions(num_prompt_logprobs=0).shows_logprobs
    assert AnswerOptions(num_top_logprobs=3).engine_prompt_logprobs is None
    echo = AnswerOptions(echoes=True, num_top_logprobs=3, num_prompt_logprobs=2)
    assert echo.engine_prompt_logprobs == 3


# What is said again, with one thing changed.


def test_a_job_that_its_context_may_cut_demands_no_length() -> None:
    job = generation_job("a", "b")
    prepares = tuple(structs.replace(one, max_tokens=9) for one in job.prepares)
    assert job.changed(prepares=prepares).cut_by_context() == job


def test_an_end_by_length_and_another_priority_change_nothing_else() -> None:
    usage = Usage(prompt_tokens=3)
    assert ChoiceFinished(2, "stop", usage, "END").as_length() == ChoiceFinished(
        2, "length", usage, "END"
    )
    assert Admitted("t", 3, "lease", 7).at(5) == Admitted("t", 5, "lease", 7)
