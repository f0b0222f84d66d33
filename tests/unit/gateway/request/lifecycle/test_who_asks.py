"""What a caller brings along: an errand that settles, an end user, a token, models it may see."""

from dataclasses import replace

import pytest

from gateway.errors import ModelNotFoundError
from gateway.request.callers.caller import Caller
from gateway.request.jobs.job import GenerationJob
from protocol.wire.messages import Authorize, Prepare, Settle, Usage
from tests.fakes.request_parts import CALLER, DIGEST, Generation, Parts, generation_job
from tests.fakes.virtual_time import idle


class NotedErrand:
    """Somebody who has a request made, and notes what it is told and when."""

    def __init__(self, parts: Parts, priority: int) -> None:
        self.priority = priority
        self.leases: list[str] = []
        self.num_sent: list[int] = []
        self.settles: list[Settle] = []
        self._parts = parts

    def on_granted(self, lease_id: str) -> None:
        self.leases.append(lease_id)
        self.num_sent.append(len(self._parts.engine_wire.sent))

    def put(self, settle: Settle) -> None:
        self.settles.append(settle)


async def asked(parts: Parts, caller: Caller, job: GenerationJob | None = None) -> Generation:
    """A generation of a caller that has asked for its grant."""
    request, work = parts.factory.generation(job or generation_job(), caller, "r")
    started = Generation(parts, request, work)
    await idle()
    return started


async def test_an_errand_is_told_of_the_lease_and_takes_the_settlement() -> None:
    parts = Parts()
    one = parts.engine()
    errand = NotedErrand(parts, 0)
    started = await asked(parts, replace(CALLER, errand=errand))
    assert errand.leases == []
    await parts.grant("lease-7")
    assert (errand.leases, errand.num_sent) == (["lease-7"], [0])
    await parts.prepare_next()
    await started.task
    await parts.finish(one, usage=Usage(prompt_tokens=5, completion_tokens=2))
    assert [settle.lease_id for settle in errand.settles] == ["lease-7"]
    assert parts.outbox.settles == []


async def test_an_errand_without_a_lease_is_told_of_none() -> None:
    parts = Parts()
    parts.engine()
    errand = NotedErrand(parts, 0)
    started = await asked(parts, replace(CALLER, errand=errand))
    await parts.grant("")
    assert errand.leases == []
    started.request.end("aborted")
    assert (errand.settles, parts.outbox.settles) == ([], [])


@pytest.mark.parametrize(("of_key", "of_errand", "expected"), [(0, 4, 4), (6, 4, 6), (4, 4, 4)])
@pytest.mark.parametrize("is_known", [False, True])
async def test_an_errand_goes_no_earlier_than_its_level_and_its_key(
    of_key: int, of_errand: int, expected: int, is_known: bool
) -> None:
    parts = Parts()
    parts.engine()
    if is_known:
        parts.know_caller("t", priority=of_key)
    started = await asked(parts, replace(CALLER, errand=NotedErrand(parts, of_errand)))
    assert len(parts.engine_wire.of(Prepare)) == is_known
    await parts.grant(priority=of_key)
    await parts.prepare_next()
    await started.task
    assert len(parts.engine_wire.of(Prepare)) == 1
    assert [generate.priority for generate in parts.generates()] == [expected]
    started.request.end("aborted")


async def test_what_was_granted_is_noted_for_whoever_has_to_ask_again() -> None:
    parts = Parts()
    parts.engine()
    noted: list[Authorize] = []
    started = await asked(parts, replace(CALLER, asked=noted))
    assert noted == []
    await parts.grant()
    assert noted == parts.auth_wire.of(Authorize)
    started.request.end("aborted")


@pytest.mark.parametrize(
    ("by_header", "by_body", "expected"),
    [("ada", "bob", "ada"), ("", "bob", "bob"), ("ada", "", "ada"), ("", "", "")],
)
async def test_the_end_user_of_the_header_counts_before_that_of_the_body(
    by_header: str, by_body: str, expected: str
) -> None:
    parts = Parts()
    parts.engine()
    job = generation_job(end_user=by_body)
    started = await asked(parts, replace(CALLER, end_user=by_header), job)
    (question,) = parts.auth_wire.of(Authorize)
    assert question.end_user == expected
    started.request.end("aborted")


async def test_a_token_is_said_to_be_one_and_the_trace_goes_along() -> None:
    parts = Parts()
    parts.engine()
    started = await asked(parts, replace(CALLER, token="a.b.c"))
    (question,) = parts.auth_wire.of(Authorize)
    assert (question.is_token, question.trace_id, question.traceparent) == (True, "trace", "")
    assert question.key_digest == DIGEST
    started.request.end("aborted")


async def test_a_model_that_is_not_there_is_told_with_those_that_the_caller_may_see() -> None:
    parts = Parts()
    parts.engine()
    parts.engine("hidden", model="secret")
    started = await asked(parts, CALLER, generation_job(model="none"))
    await parts.grant(allowed_models=("m", "none"))
    error = await started.error()
    assert isinstance(error, ModelNotFoundError)
    assert error.message == ("The model `none` does not exist here. Available models: `m`.")
    assert error.param == "model"
    assert error.__cause__ is None
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]
