"""Choices that move from engine to engine: what goes on elsewhere, what ends, and where it runs."""

import asyncio
import logging

import pytest

from gateway.errors import (
    DeadlineExceededError,
    GatewayError,
    PoisonRequestError,
    RemoteFailureError,
    WorkerLostError,
)
from gateway.request.delivery.events import ContentText
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import job_fingerprint
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    CachedBlocks,
    Generate,
    Prepare,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts, generation_job
from tests.fakes.virtual_time import idle


def last_engine(parts: Parts) -> Peer:
    return [one for one, message in parts.engine_wire.sent if isinstance(message, Generate)][-1]


async def test_a_lost_engine_s_choice_goes_on_where_it_stopped() -> None:
    parts = Parts(timeout_s=60.0)
    first = parts.engine("a")
    started = await parts.running()
    await parts.output(first, 2, text="abc")
    second = parts.engine("b")
    await asyncio.sleep(1.0)
    parts.lose(first)
    await idle()
    again = parts.generates()[-1]
    assert last_engine(parts) is second
    assert (again.attempt, again.output_token_ids, again.num_sent_characters) == (2, (7, 7), 3)
    assert again.deadline_s == 59.0
    await parts.output(second, text="d", attempt=2)
    # What the old attempt still says counts for nothing.
    await parts.output(second, text="stale", attempt=1)
    await parts.finish(second, attempt=2, usage=Usage(prompt_tokens=5, completion_tokens=3))
    texts = [getattr(event, "text", "") for event in await started.events()]
    assert "".join(texts) == "abcd"
    (settle,) = parts.outbox.settles
    assert (settle.completion_tokens, settle.outcome) == (3, "finished")
    assert parts.num_slots == 0
    rendered = parts.metrics.render().decode()
    assert 'resumptions_total{model="m",role="engine"} 1.0' in rendered


async def test_what_the_dead_engine_reported_is_not_what_counts() -> None:
    parts = Parts()
    first, second = parts.engine("a"), parts.engine("b")
    started = await parts.running()
    one = last_engine(parts)
    other = second if one is first else first
    usage = Usage(prompt_tokens=5, completion_tokens=100)
    await parts.fail(one, "r", ErrorCode.WORKER_LOST, choice=0, attempt=1, usage=usage)
    assert last_engine(parts) is other
    assert started.request.usage() == Usage(prompt_tokens=5)


async def test_the_usage_of_a_failure_is_what_is_charged() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    usage = Usage(prompt_tokens=5, completion_tokens=2)
    await parts.fail(one, "r", ErrorCode.INTERNAL_ERROR, choice=0, attempt=1, usage=usage)
    with pytest.raises(RemoteFailureError):
        await started.work.next_events(None)
    (settle,) = parts.outbox.settles
    assert (settle.completion_tokens, settle.outcome, settle.is_unused) == (2, "failed", False)


async def test_only_alike_engines_go_on_with_an_output() -> None:
    parts = Parts()
    first = parts.engine("a")
    started = await parts.running()
    await parts.output(first)
    parts.engine("other weights", fingerprint="g")
    parts.engine("other noise", resume_version=2)
    parts.lose(first)
    await asyncio.sleep(10.0)
    assert len(parts.generates()) == 1
    parts.engine("alike")
    await idle()
    assert last_engine(parts).instance_id == "alike"
    started.request.end("aborted")


async def test_before_any_output_other_noise_will_do_but_not_other_weights() -> None:
    parts = Parts()
    first = parts.engine("a")
    await parts.running()
    parts.engine("other weights", fingerprint="g")
    parts.lose(first)
    await asyncio.sleep(10.0)
    assert len(parts.generates()) == 1
    noisy = parts.engine("other noise", resume_version=2)
    await idle()
    assert last_engine(parts) is noisy
    # From now on its noise is this one's.
    await parts.output(noisy, attempt=2)
    parts.engine("a again", resume_version=1)
    parts.lose(noisy)
    await asyncio.sleep(10.0)
    assert len(parts.generates()) == 2


async def test_an_engine_that_left_in_good_order_is_not_waited_for_where_others_are() -> None:
    parts = Parts()
    first = parts.engine("a")
    started = await parts.running()
    parts.engine("other weights", fingerprint="g")
    parts.lose(first, "goodbye")
    await idle()
    with pytest.raises(WorkerLostError, match="replaced by another version"):
        await started.work.next_events(None)
    assert parts.num_slots == 0


async def test_text_without_token_ids_can_not_go_on_elsewhere() -> None:
    parts = Parts()
    first = parts.engine("a")
    started = await parts.running()
    await parts.output(first, 0, text="a")
    parts.engine("b")
    parts.lose(first)
    await idle()
    assert len(await started.events()) == 1
    with pytest.raises(WorkerLostError):
        await started.work.next_events(None)
    assert len(parts.generates()) == 1


@pytest.mark.parametrize(
    ("code", "is_retried"),
    [
        (ErrorCode.WORKER_LOST, True),
        (ErrorCode.WORKER_UNAVAILABLE, True),
        (ErrorCode.CREDIT_EXCEEDED, True),
        (ErrorCode.OVERLOADED, True),
        (ErrorCode.INTERNAL_ERROR, False),
        (ErrorCode.INVALID_REQUEST, False),
    ],
)
async def test_what_another_engine_may_do_better_is_tried_there(
    code: ErrorCode, is_retried: bool
) -> None:
    parts = Parts()
    parts.engine("a")
    parts.engine("b")
    started = await parts.running()
    one = last_engine(parts)
    await parts.fail(one, "r", code, choice=0, attempt=1)
    assert (len(parts.generates()) == 2) is is_retried
    assert (started.request.outcome is None) is is_retried
    assert parts.num_slots == is_retried


async def test_attempts_that_bring_nothing_are_made_ever_more_slowly() -> None:
    parts = Parts(timeout_s=1000.0)
    one = parts.engine()
    await parts.running()
    pauses = []
    for attempt in range(1, 10):
        since = asyncio.get_running_loop().time()
        await parts.finish(one, "abort", attempt=attempt)
        await asyncio.sleep(10.0)
        pauses.append(round(parts.engine_wire.sent_at[-1] - since, 6))
    assert pauses == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    # An attempt that brought something begins anew with the pauses.
    await parts.output(one, attempt=10)
    await parts.finish(one, "abort", attempt=10)
    assert len(parts.generates()) == 11


async def test_what_an_engine_stopped_by_itself_goes_on_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "penstock.gateway.launcher")
    parts = Parts()
    one = parts.engine()
    await parts.running()
    await parts.finish(one, "abort")
    assert [generate.attempt for generate in parts.generates()] == [1, 2]
    assert caplog.messages == ["request r goes to another engine: worker_lost"]


async def test_a_grammar_that_no_engine_knows_is_told_by_the_field_that_it_came_from() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running(generation_job(grammar_param="guided_regex"))
    await parts.fail(one, "r", ErrorCode.UNSUPPORTED_GRAMMAR, choice=0, attempt=1)
    with pytest.raises(RemoteFailureError) as raised:
        await started.work.next_events(None)
    assert raised.value.param == "guided_regex"


@pytest.mark.parametrize("code", [ErrorCode.UNSUPPORTED_GRAMMAR, ErrorCode.INVALID_REQUEST])
async def test_a_field_that_an_engine_names_itself_is_kept(code: ErrorCode) -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running(generation_job(grammar_param="guided_regex"))
    await parts.fail(one, "r", code, choice=0, attempt=1, param="stop")
    with pytest.raises(RemoteFailureError) as raised:
        await started.work.next_events(None)
    assert raised.value.param == "stop"


async def test_a_choice_that_kills_engines_runs_alone_and_is_convicted() -> None:
    parts = Parts()
    for name in "abcd":
        parts.engine(name)
    job = generation_job()
    started = await parts.running(job)
    for is_alone in (False, False, True):
        generate = parts.generates()[-1]
        assert generate.is_alone is is_alone
        parts.lose(last_engine(parts))
        await asyncio.sleep(1.0)
    with pytest.raises(PoisonRequestError):
        await started.work.next_events(None)
    assert len(parts.generates()) == 3
    assert parts.quarantine._until.keys() == {job_fingerprint(job, "t")}
    (settle,) = parts.outbox.settles
    assert (settle.outcome, settle.is_unused) == ("failed", False)
    # The same from this caller is refused before anything is sent; even for a known caller
    # nothing goes ahead while a conviction stands.
    num_sent = len(parts.engine_wire.sent)
    again = await parts.generation(job, "again")
    assert len(parts.engine_wire.sent) == num_sent
    await parts.grant()
    assert isinstance(await again.error(), PoisonRequestError)
    assert len(parts.engine_wire.sent) == num_sent
    other = await parts.generation(job, "other")
    await parts.grant(tenant="innocent")
    assert len(parts.engine_wire.of(Prepare)) == 2
    other.request.end("aborted")


async def test_a_choice_that_ran_long_enough_alone_is_alone_no_more() -> None:
    parts = Parts(slice_tokens=64)
    for name in "abc":
        parts.engine(name)
    await parts.running(generation_job(max_tokens=64))
    for _ in range(2):
        parts.lose(last_engine(parts))
        await asyncio.sleep(1.0)
    last = last_engine(parts)
    assert parts.handle(last).is_reserved
    await parts.output(last, 31, attempt=3)
    reserved = [parts.handle(last).is_reserved]
    await parts.output(last, 1, attempt=3)
    reserved.append(parts.handle(last).is_reserved)
    assert reserved == [True, False]


async def test_deaths_over_a_prompt_speak_against_its_choices() -> None:
    parts = Parts()
    for name in "abc":
        parts.engine(name)
    started = await parts.generation()
    await parts.grant()
    for _ in range(2):
        asked = [one for one, sent in parts.engine_wire.sent if isinstance(sent, Prepare)][-1]
        parts.lose(asked)
        await idle()
    await parts.prepare_next()
    await started.task
    (generate,) = parts.generates()
    assert generate.is_alone
    parts.lose(last_engine(parts))
    await idle()
    with pytest.raises(PoisonRequestError):
        await started.work.next_events(None)


async def test_further_choices_wait_for_slots_of_their_own() -> None:
    parts = Parts()
    one = parts.engine(max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    await idle()
    assert [generate.choice for generate in parts.generates()] == [0]
    await parts.finish(one)
    assert [generate.choice for generate in parts.generates()] == [0, 1]
    await parts.finish(one, choice=1)
    assert started.request.outcome == "finished"
    assert parts.num_slots == 0


async def test_a_further_choice_is_not_begun_by_other_weights() -> None:
    parts = Parts()
    one = parts.engine("a", max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    await parts.running(generation_job(options=options))
    other = parts.engine("b", fingerprint="g")
    await idle()
    assert [generate.choice for generate in parts.generates()] == [0]
    assert parts.handle(other).num_requests == 0
    await parts.finish(one)
    assert [generate.choice for generate in parts.generates()] == [0, 1]
    assert last_engine(parts) is one


async def test_what_raises_here_stops_the_engine_and_ends_the_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gateway.request.choices.lease_watch.LeaseWatch.look_at", broken)
    await parts.output(one, text="a")
    assert [type(event) for event in await started.events()] == [ContentText]
    with pytest.raises(GatewayError, match="Internal server error"):
        await started.work.next_events(None)
    assert parts.engine_wire.of(Abort) == [Abort(request_id="r", attempt=1, choice=0)]
    assert parts.num_slots == 0
    (settle,) = parts.outbox.settles
    assert (settle.completion_tokens, settle.outcome) == (1, "failed")
    caplog.clear()


async def test_after_the_end_nothing_reaches_the_reader_and_every_choice_is_stopped() -> None:
    parts = Parts()
    one = parts.engine()
    options = AnswerOptions(num_choices=3, num_answers=3)
    started = await parts.running(generation_job(options=options))
    await idle()
    await parts.finish(one, choice=1)
    await started.events()
    started.request.fail(DeadlineExceededError("late"))
    assert [abort.choice for abort in parts.engine_wire.of(Abort)] == [0, 2]
    await parts.output(one, text="late")
    await parts.fail(one, "r", ErrorCode.WORKER_LOST, choice=0, attempt=1)
    assert len(parts.generates()) == 3  # nobody goes on with it
    with pytest.raises(DeadlineExceededError):
        await started.work.next_events(None)
    assert parts.outbox.settles == []
    await parts.finish(one, "abort", choice=2)
    (settle,) = parts.outbox.settles
    assert settle.completion_tokens == 3
    assert (parts.num_slots, len(parts.sessions)) == (0, 0)


async def test_a_prompt_goes_where_it_is_cached() -> None:
    parts = Parts(routes_by_prefix=True)
    first, second = parts.engine("a"), parts.engine("b")
    hashes = (b"1", b"2")
    for one in (first, second):
        parts.link.on_event(one, CachedBlocks(is_reset=True))
    started = await parts.prepared_generation()
    asked = parts.engine_wire.sent[-1][0]
    other = second if asked is first else first
    parts.link.on_event(other, CachedBlocks(added=hashes))
    await parts.prepare_next(block_hashes=hashes)
    await started.task
    assert last_engine(parts) is other
    assert (parts.handle(asked).num_requests, parts.handle(other).num_requests) == (0, 1)
    assert parts.routed == [("m", "cached")]


@pytest.mark.parametrize(("routes", "hashes"), [(False, (b"1",)), (True, ())])
async def test_without_names_or_routing_a_prompt_stays_where_it_was_prepared(
    routes: bool, hashes: tuple[bytes, ...]
) -> None:
    parts = Parts(routes_by_prefix=routes)
    first, second = parts.engine("a"), parts.engine("b")
    for one in (first, second):
        parts.link.on_event(one, CachedBlocks(is_reset=True, added=(b"1",)))
    started = await parts.prepared_generation()
    asked = parts.engine_wire.sent[-1][0]
    await parts.prepare_next(block_hashes=hashes)
    await started.task
    assert last_engine(parts) is asked
    assert parts.routed == []


async def test_a_prompt_that_runs_alone_is_not_moved_to_where_it_is_cached() -> None:
    parts = Parts(routes_by_prefix=True)
    for name in "abcd":
        parts.link.on_event(parts.engine(name), CachedBlocks(is_reset=True))
    started = await parts.prepared_generation()
    for _ in range(2):
        parts.lose(parts.engine_wire.sent[-1][0])
        await idle()
    asked = parts.engine_wire.sent[-1][0]
    for one in parts.directory.peers():
        if one is not asked:
            parts.link.on_event(one, CachedBlocks(added=(b"1",)))
    await parts.prepare_next(block_hashes=(b"1",))
    await started.task
    assert last_engine(parts) is asked
    assert parts.routed == []


async def test_cached_blocks_at_other_weights_are_no_reason_to_go_there() -> None:
    parts = Parts(routes_by_prefix=True)
    first = parts.engine("a")
    parts.link.on_event(first, CachedBlocks(is_reset=True))
    started = await parts.prepared_generation()
    other = parts.engine("b", fingerprint="g")
    parts.link.on_event(other, CachedBlocks(is_reset=True, added=(b"1",)))
    await parts.prepare_next(block_hashes=(b"1",))
    await started.task
    assert last_engine(parts) is first
    assert parts.routed == [("m", "none")]
    # The next prompt like it may follow there at once.
    assert list(parts.prefixes._blocks[first].expected) == [b"1"]


async def test_an_engine_that_refuses_a_prompt_is_asked_again_when_it_has_room() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.prepared_generation()
    await parts.fail(one, "r", ErrorCode.OVERLOADED)
    assert len(parts.engine_wire.of(Prepare)) == 1
    await asyncio.sleep(0.3)
    assert len(parts.engine_wire.of(Prepare)) == 2
    await parts.prepare_next()
    await started.task
    assert parts.num_slots == 1


def position(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(chosen=TokenLogprob(token_id, "x", b"x", -1.0))


async def test_the_next_engine_tells_of_the_prompt_what_is_missing() -> None:
    parts = Parts()
    first = parts.engine("a")
    options = AnswerOptions(num_prompt_logprobs=0)
    job = generation_job(options=options, sampling=SamplingParams(prompt_logprobs=0))
    started = await parts.running(job)
    await parts.output(first, text="", num_tokens=0, prompt_logprobs=(position(0),))
    second = parts.engine("b")
    parts.lose(first)
    await idle()
    assert parts.generates()[-1].sampling.prompt_logprobs == 0
    told = tuple(position(number) for number in range(10, 14))
    await parts.output(second, attempt=2, prompt_logprobs=told)
    (shown, _) = await started.events()
    assert shown.prompt.logprobs == told
    parts.engine("c")
    parts.lose(second)
    await idle()
    assert parts.generates()[-1].sampling.prompt_logprobs is None


async def test_each_move_tells_the_next_engine_all_that_was_made() -> None:
    parts = Parts()
    one = parts.engine()
    await parts.running()
    await parts.output(one, 2, text="ab")
    await parts.output(one, 1, text="c")
    await parts.finish(one, "abort")
    again = parts.generates()[-1]
    assert (again.output_token_ids, again.num_sent_characters) == ((7, 7, 7), 3)
    # A move that brought something makes the next ones wait for nothing; two in vain do.
    for attempt in (2, 3):
        since = asyncio.get_running_loop().time()
        await parts.finish(one, "abort", attempt=attempt)
        assert parts.engine_wire.sent_at[-1] == since


async def test_a_further_choice_that_finds_other_weights_waits_for_its_own() -> None:
    parts = Parts()
    one = parts.engine("a", max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    parts.lose(one, "goodbye")
    parts.engine("b", fingerprint="g")
    await idle()
    # The first one had begun there, and its engine left for good: it has ended with it.
    assert started.request.outcome == "failed"
    assert parts.num_slots == 0
