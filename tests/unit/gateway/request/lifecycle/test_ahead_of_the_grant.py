"""What goes out before the reservation is granted, and how it is taken back."""

import pytest

from gateway.errors import (
    DeniedError,
    InvalidRequestError,
    WorkerUnavailableError,
)
from gateway.request.lifecycle.request import State
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Cancel,
    Prepare,
    Prepared,
)
from tests.fakes.request_parts import DIGEST, Parts, generation_job
from tests.fakes.virtual_time import idle


async def test_for_a_known_caller_the_prompt_goes_out_beside_the_question() -> None:
    parts = Parts()
    parts.engine()
    parts.know_caller("tenant", priority=4)
    started = await parts.generation()
    (prepare,) = parts.engine_wire.of(Prepare)
    assert prepare.tenant == "tenant"
    assert parts.num_slots == 1
    await parts.prepare_next()
    assert started.request.state is State.IDENTIFIED
    await parts.grant(tenant="tenant", priority=4)
    await started.task
    assert len(parts.engine_wire.of(Prepare)) == 1
    (generate,) = parts.generates()
    assert (generate.tenant, generate.priority, generate.lease_id) == ("tenant", 4, "lease")
    assert parts.num_slots == 1


async def test_for_an_unknown_caller_the_prompt_waits_for_the_grant() -> None:
    parts = Parts()
    parts.engine()
    await parts.generation()
    assert (parts.engine_wire.sent, parts.num_slots) == ([], 0)
    await parts.grant()
    assert len(parts.engine_wire.of(Prepare)) == 1


async def test_a_caller_that_its_limits_refused_a_moment_ago_waits_for_the_grant() -> None:
    parts = Parts()
    parts.engine()
    parts.know_caller()
    started = await parts.generation()
    await parts.deny(ErrorCode.RATE_LIMIT_EXCEEDED)
    await started.error()
    num_sent = len(parts.engine_wire.sent)
    again = await parts.generation(request_id="again")
    assert len(parts.engine_wire.sent) == num_sent
    await parts.grant()
    assert len(parts.engine_wire.sent) == num_sent + 1
    again.request.end("aborted")
    await again.error()
    # Now that it was let in, it counts as known again.
    await parts.generation(request_id="third")
    assert parts.engine_wire.of(Prepare)[-1].request_id == "third"


async def test_a_refusal_takes_back_what_went_ahead() -> None:
    parts = Parts()
    parts.engine()
    parts.know_caller()
    started = await parts.generation()
    await parts.deny(ErrorCode.INVALID_API_KEY)
    assert isinstance(await started.error(), DeniedError)
    assert [cancel.request_id for cancel in parts.engine_wire.of(Cancel)] == ["r"]
    assert parts.num_slots == 0
    assert parts.identities.known(DIGEST) is None
    assert parts.identities.refusal(DIGEST) is not None


@pytest.mark.parametrize("changed", [{"tenant": "other"}, {"priority": 1}, {"key_id": "k2"}])
async def test_a_caller_who_turns_out_to_be_somebody_else_is_prepared_anew(
    changed: dict[str, object],
) -> None:
    parts = Parts()
    parts.engine()
    parts.know_caller()
    started = await parts.generation()
    await parts.grant(**{"tenant": "t", **changed})  # type: ignore[arg-type]
    first, second = parts.engine_wire.of(Prepare)
    assert (first.tenant, second.tenant) == ("t", changed.get("tenant", "t"))
    assert len(parts.engine_wire.of(Cancel)) == 1
    assert parts.num_slots == 1
    await parts.prepare_next()
    await started.task
    assert parts.generates()[0].tenant == changed.get("tenant", "t")


async def test_an_answer_made_for_the_withdrawn_prompt_is_nobodys() -> None:
    parts = Parts()
    one = parts.engine()
    parts.know_caller(tenant="old")
    started = await parts.generation()
    await parts.grant(tenant="new")
    first, second = parts.engine_wire.of(Prepare)
    assert first.request_id != second.request_id
    answer = Prepared(request_id=first.request_id, prompt_token_ids=(1,), max_output_tokens=9)
    parts.link.on_event(one, answer)
    await idle()
    assert parts.generates() == []
    started.request.end("aborted")


async def test_without_a_free_slot_nothing_goes_ahead() -> None:
    parts = Parts()
    one = parts.engine(max_requests=1)
    parts.know_caller()
    parts.handle(one).num_requests = 1
    await parts.generation()
    assert parts.engine_wire.sent == []
    assert parts.admission.num_waiting("m") == 0


async def test_for_a_model_that_nobody_serves_nothing_goes_ahead() -> None:
    parts = Parts()
    parts.know_caller()
    started = await parts.generation(generation_job(model="later"))
    await parts.grant()
    assert isinstance(await started.error(), WorkerUnavailableError)
    assert parts.engine_wire.sent == []


async def test_what_can_not_be_served_is_taken_back_after_the_grant() -> None:
    parts = Parts()
    parts.engine(capabilities=("embeddings",))
    parts.know_caller()
    started = await parts.generation()
    assert len(parts.engine_wire.of(Prepare)) == 1
    await parts.grant()
    assert isinstance(await started.error(), InvalidRequestError)
    assert len(parts.engine_wire.of(Cancel)) == 1
    assert parts.num_slots == 0


async def test_an_engine_lost_while_the_grant_is_on_its_way_costs_only_time() -> None:
    parts = Parts()
    first = parts.engine("a")
    parts.know_caller()
    started = await parts.generation()
    second = parts.engine("b")
    parts.lose(first)
    await parts.grant()
    assert [one for one, _ in parts.engine_wire.sent] == [first, second]
    await parts.prepare_next()
    await started.task
    assert len(parts.generates()) == 1
    assert parts.num_slots == 1
    assert parts.outbox.settles == []
