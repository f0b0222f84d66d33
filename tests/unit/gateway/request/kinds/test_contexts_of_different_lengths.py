"""Engines of one model that had less memory than others, and so hold shorter contexts."""

import asyncio

import pytest

from gateway.errors import RemoteFailureError
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.errors import ErrorCode
from protocol.wire.messages import Generate, Prepare, SamplingParams
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts, generation_job
from tests.fakes.virtual_time import idle

TWO = AnswerOptions(num_choices=2, num_answers=2)


def engines_of(parts: Parts, kind: type[Generate] | type[Prepare]) -> list[Peer]:
    return [one for one, message in parts.engine_wire.sent if isinstance(message, kind)]


@pytest.mark.parametrize(
    ("max_tokens", "length", "names"),
    [
        (8, 13, ["long", "short"]),
        # The prompt has five tokens: the rest would be cut off.
        (8, 12, ["long"]),
        # Who names no length gets what there is, but one token at least.
        (None, 6, ["long", "short"]),
        (None, 5, ["long"]),
    ],
)
async def test_a_further_choice_goes_where_there_is_room_for_it(
    max_tokens: int | None, length: int, names: list[str]
) -> None:
    parts = Parts()
    long = parts.engine("long", max_requests=1)
    sampling = SamplingParams(max_tokens=max_tokens)
    job = generation_job(max_tokens=max_tokens, sampling=sampling, options=TWO)
    started = await parts.prepared_generation(job)
    parts.engine("short", max_model_len=length)
    await parts.prepare_next()
    await started.task
    await idle()
    assert [one.instance_id for one in engines_of(parts, Generate)] == names
    await parts.finish(long)
    assert len(engines_of(parts, Generate)) == 2
    started.request.end("aborted")


async def test_an_answer_goes_on_only_where_there_is_room_for_the_rest() -> None:
    parts = Parts()
    first = parts.engine("first")
    started = await parts.running(generation_job(sampling=SamplingParams(max_tokens=8)))
    await parts.output(first, 2)
    parts.engine("short", max_model_len=12)
    parts.lose(first)
    await asyncio.sleep(10.0)
    assert engines_of(parts, Generate) == [first]
    second = parts.engine("second", max_model_len=13)
    await idle()
    assert engines_of(parts, Generate) == [first, second]
    started.request.end("aborted")


async def test_a_prompt_that_is_too_long_for_one_engine_is_read_by_one_that_holds_more() -> None:
    parts = Parts()
    short = parts.engine("short", max_model_len=4)
    started = await parts.prepared_generation()
    long = parts.engine("long", max_model_len=1000)
    await parts.fail(short, "r", ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    assert engines_of(parts, Prepare) == [short, long]
    await parts.prepare_next()
    await parts.adjust()  # no more was reserved than the first holds
    await started.task
    assert engines_of(parts, Generate) == [long]
    started.request.end("aborted")


@pytest.mark.parametrize("leaves", [False, True])
async def test_where_none_holds_more_the_prompt_is_too_long(leaves: bool) -> None:
    parts = Parts()
    short = parts.engine("short", max_model_len=4)
    started = await parts.prepared_generation()
    other = parts.engine("other", max_model_len=1000 if leaves else 4, max_requests=0)
    await parts.fail(short, "r", ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    if leaves:
        assert not started.task.done()
        parts.lose(other, "goodbye")
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert engines_of(parts, Prepare) == [short]
    assert parts.num_slots == 0


async def test_a_model_s_context_is_the_longest_that_an_engine_holds() -> None:
    parts = Parts()
    told = []
    short = parts.engine("short", max_model_len=10)
    for one in (parts.engine("long", max_model_len=30), parts.engine("last", max_model_len=20)):
        told.append(parts.directory.offer("m"))
        parts.lose(one)
        told.append(parts.directory.offer("m"))
        parts.link.on_peer_updated(short)
        told.append(parts.directory.offer("m"))
    assert [one.max_model_len for one in told if one is not None] == [30, 20, 20, 20, 10, 10]
    # Other weights count by themselves.
    parts.engine("other", fingerprint="g", max_model_len=5)
    offer = parts.directory.offer("m")
    assert offer is not None
    assert (offer.fingerprint, offer.max_model_len) == ("g", 5)
