"""Choices that wait for engines of their weights, and an engine that is given up."""

import asyncio

import pytest

from gateway.errors import WorkerLostError
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.lifecycle.request import ABORT_PATIENCE_S
from protocol.errors import ErrorCode
from protocol.wire.messages import Generate, Usage
from protocol.wire.peers import LossReason, Peer
from tests.fakes.request_parts import Generation, Parts, generation_job
from tests.fakes.virtual_time import idle


def last_engine(parts: Parts) -> Peer:
    return [one for one, message in parts.engine_wire.sent if isinstance(message, Generate)][-1]


async def test_a_further_choice_waits_for_its_weights_while_only_others_have_room() -> None:
    parts = Parts()
    old = parts.engine("old", max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    await idle()
    new = parts.engine("new", fingerprint="g")
    await idle()
    assert [one.choice for one in parts.generates()] == [0]
    assert parts.handle(new).num_requests == 0
    await parts.finish(old)
    await idle()
    assert [one.choice for one in parts.generates()] == [0, 1]
    assert last_engine(parts) is old
    await parts.finish(old, choice=1)
    assert started.request.outcome == "finished"
    assert parts.num_slots == 0


async def test_a_further_choice_waits_until_a_crashed_engine_of_its_weights_is_back() -> None:
    parts = Parts()
    old = parts.engine("old", max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    parts.engine("new", fingerprint="g")
    await idle()
    parts.lose(old)
    await asyncio.sleep(10.0)
    assert (started.request.outcome, len(parts.generates())) == (None, 1)
    back = parts.engine("back")
    await idle()
    assert [one.choice for one in parts.generates()[1:]] == [1, 0]
    assert last_engine(parts) is back
    for number, attempt in ((0, 2), (1, 1)):
        await parts.finish(back, choice=number, attempt=attempt)
    assert started.request.outcome == "finished"


async def replaced(parts: Parts, started: Generation) -> None:
    """The client learns at once that its weights are gone; nothing is left behind."""
    since = asyncio.get_running_loop().time()
    with pytest.raises(WorkerLostError, match="replaced by another version"):
        while await started.work.next_events(None) is not None:
            pass
    assert asyncio.get_running_loop().time() == since
    assert [settle.outcome for settle in parts.outbox.settles] == ["failed"]
    assert parts.num_slots == 0


@pytest.mark.parametrize("others", ["while it waits", "before", "later"])
async def test_a_further_choice_ends_when_the_last_engine_of_its_weights_has_drained(
    others: str,
) -> None:
    parts = Parts()
    old = parts.engine("old", max_requests=1)
    if others == "before":
        parts.handle(parts.engine("new", fingerprint="g")).back_off(1e9)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    await idle()
    if others == "while it waits":
        parts.engine("new", fingerprint="g")
        await idle()
    old.phase = "draining"
    parts.link.on_peer_updated(old)
    await parts.finish(old)
    await asyncio.sleep(1.0)
    assert started.request.outcome is None
    parts.lose(old, "goodbye")
    if others == "later":
        await asyncio.sleep(5.0)
        assert started.request.outcome is None
        parts.engine("new", fingerprint="g")
    if others == "before":
        # It stands in the line for any engine, and learns what there is when it is its turn.
        new = parts.directory.engines("m")[0]
        parts.link._directory._end_back_off(new, 1e9)
    await idle()
    await replaced(parts, started)
    assert [one.choice for one in parts.generates()] == [0]


async def test_a_choice_that_a_draining_engine_refused_ends_when_that_has_left() -> None:
    parts = Parts()
    old = parts.engine("old")
    started = await parts.running()
    parts.engine("new", fingerprint="g")
    old.phase = "draining"
    parts.link.on_peer_updated(old)
    await parts.fail(old, "r", ErrorCode.WORKER_UNAVAILABLE, choice=0, attempt=1)
    await asyncio.sleep(1.0)
    assert started.request.outcome is None
    parts.lose(old, "goodbye")
    await idle()
    await replaced(parts, started)


async def test_a_prompt_whose_engine_left_before_its_choice_began_ends_at_once() -> None:
    parts = Parts()
    old = parts.engine("old")
    started = await parts.prepared_generation()
    parts.engine("new", fingerprint="g")
    await parts.prepare_next(50_000)  # more than was reserved: the lease has to grow first
    parts.lose(old, "goodbye")
    await parts.adjust()
    await started.error()
    await replaced(parts, started)


async def test_a_prompt_on_its_way_to_an_engine_that_leaves_is_read_by_the_new_weights() -> None:
    parts = Parts()
    old = parts.engine("old", max_requests=1)
    started = await parts.prepared_generation()
    new = parts.engine("new", fingerprint="g")
    parts.lose(old, "goodbye")
    await idle()
    await parts.prepare_next()
    await started.task
    assert last_engine(parts) is new
    await parts.finish(new)
    assert started.request.outcome == "finished"


@pytest.mark.parametrize(
    ("reasons", "is_waited_for"),
    [(("goodbye", "disconnected"), True), (("disconnected", "goodbye"), False)],
)
async def test_it_counts_how_the_last_engine_of_its_weights_went(
    reasons: tuple[LossReason, LossReason], is_waited_for: bool
) -> None:
    parts = Parts()
    one = parts.engine("a", max_requests=1)
    options = AnswerOptions(num_choices=2, num_answers=2)
    started = await parts.running(generation_job(options=options))
    other = parts.engine("b", max_requests=0)
    parts.engine("new", fingerprint="g")
    await idle()
    for peer, reason in zip((one, other), reasons, strict=True):
        parts.lose(peer, reason)
        await asyncio.sleep(1.0)
    assert (started.request.outcome is None) is is_waited_for
    if is_waited_for:
        parts.engine("back")
        await idle()
        assert len(parts.generates()) == 3
        started.request.end("aborted")


async def test_what_an_engine_says_after_it_was_given_up_is_nobody_s() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    started.request.end("aborted")
    await asyncio.sleep(ABORT_PATIENCE_S + 0.1)
    assert len(parts.outbox.settles) == 1
    assert not parts.link._choices[one]
    await parts.finish(one, "abort", usage=Usage(prompt_tokens=5, completion_tokens=9))
    assert started.request.usage().completion_tokens == 0
    assert parts.num_slots == 0
