"""Who reads an answer does not wait for its settlement."""

import asyncio

from gateway.request.lifecycle.request import State
from tests.fakes.request_parts import Parts


async def test_the_reader_is_woken_before_the_request_is_settled() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    num_settled_by_then: list[int] = []

    async def read() -> None:
        while await started.work.next_events(None) is not None:
            num_settled_by_then.append(len(parts.outbox.settles))

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    await parts.finish(one)
    await reader
    assert num_settled_by_then == [0]
    assert started.request.outcome == "finished"
    assert started.request.state is State.SETTLED
    assert [settle.outcome for settle in parts.outbox.settles] == ["finished"]


async def test_who_lets_go_of_the_work_before_the_settlement_leaves_nothing_of_it() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()

    async def read() -> None:
        while await started.work.next_events(None) is not None:
            pass
        assert started.request.state is State.ENDING
        started.request.release()

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    await parts.finish(one)
    await reader
    assert started.request.state is State.SETTLED
    assert started.request.work is not started.work
    assert started.request.usage().completion_tokens == 1
    assert len(parts.outbox.settles) == 1
