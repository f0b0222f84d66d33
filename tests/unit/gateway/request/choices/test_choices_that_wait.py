"""Further choices that wait for engines of their weights, and an engine that is given up."""

import asyncio

from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.lifecycle.request import ABORT_PATIENCE_S
from protocol.wire.messages import Generate, Usage
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts, generation_job
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
