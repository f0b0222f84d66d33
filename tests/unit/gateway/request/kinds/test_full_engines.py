"""Engines that let one tenant wait with no more: who asked waits, and nobody else does."""

import asyncio

from gateway.errors import ClientDisconnectedError
from protocol.errors import ErrorCode
from protocol.wire.messages import Prepare
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Parts
from tests.fakes.virtual_time import idle


def asked(parts: Parts) -> list[tuple[str, str]]:
    """Whom, and for which request."""
    return [
        (one.instance_id, message.request_id)
        for one, message in parts.engine_wire.sent
        if isinstance(message, Prepare)
    ]


def last_asked(parts: Parts) -> Peer:
    return [one for one, message in parts.engine_wire.sent if isinstance(message, Prepare)][-1]


async def test_an_engine_that_is_full_for_one_tenant_is_left_alone_by_who_asked_only() -> None:
    parts = Parts()
    one = parts.engine("e")
    started = await parts.prepared_generation()
    await parts.fail(one, "r", ErrorCode.OVERLOADED, retry_after_s=2.0)
    other = await parts.generation(request_id="other")
    await parts.grant()
    assert asked(parts) == [("e", "r"), ("e", "other")]
    await asyncio.sleep(1.9)
    assert len(asked(parts)) == 2
    await asyncio.sleep(0.2)
    assert asked(parts)[2:] == [("e", "r")]
    for request in (started.request, other.request):
        request.end("aborted")
    await idle()
    assert parts.num_slots == 0


async def test_who_finds_an_engine_full_asks_the_next_one_at_once_and_each_once() -> None:
    parts = Parts()
    parts.engine("a")
    parts.engine("b")
    started = await parts.prepared_generation()
    for _ in range(2):
        await parts.fail(last_asked(parts), "r", ErrorCode.OVERLOADED, retry_after_s=2.0)
    assert {name for name, _ in asked(parts)[:2]} == {"a", "b"}
    await asyncio.sleep(1.9)
    assert len(asked(parts)) == 2
    await asyncio.sleep(0.2)
    assert len(asked(parts)) == 3
    await parts.prepare_next()
    await started.task
    started.request.end("aborted")


async def test_who_waits_for_a_full_engine_may_leave() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.prepared_generation()
    await parts.fail(one, "r", ErrorCode.OVERLOADED, retry_after_s=2.0)
    started.request.on_client_gone()
    assert isinstance(await started.error(), ClientDisconnectedError)
    await asyncio.sleep(3.0)
    assert len(asked(parts)) == 1
    assert parts.num_slots == 0


async def test_the_share_that_paid_for_the_refused_slot_pays_for_the_next_one() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.prepared_generation()
    await parts.fail(one, "r", ErrorCode.OVERLOADED, retry_after_s=2.0)
    await asyncio.sleep(2.1)
    await parts.prepare_next()
    await started.task
    slot = started.work._answer._choices[0].slot
    assert slot is not None
    assert slot.share is not None
    assert slot.share.tenant == "t"
    started.request.end("aborted")
