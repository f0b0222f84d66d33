"""Questions and generations that lost their engine don't wait for each other."""

import asyncio

from gateway.dispatch.admission import Admission
from gateway.dispatch.slots import MAX_QUESTIONS, SlotKind, any_engine
from tests.fakes.request_parts import Parts


def back(admission: Admission, kind: SlotKind, tokens: int) -> "asyncio.Task[object]":
    return asyncio.create_task(
        admission.acquire_again("m", tokens=tokens, accepts=any_engine, kind=kind)
    )


async def test_a_returning_question_keeps_no_work_from_free_credit() -> None:
    parts = Parts()
    parts.engine(max_requests=1)
    admission = parts.admission
    for _ in range(MAX_QUESTIONS):
        await admission.acquire("m", tenant="t", priority=0, tokens=0, kind="question")
    waiting = back(admission, "question", 0)
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await admission.acquire("m", tenant="u", priority=0, tokens=5)
    waiting.cancel()


async def test_a_returning_question_waits_for_no_credit() -> None:
    parts = Parts()
    parts.engine(max_requests=1)
    await parts.admission.acquire("m", tenant="u", priority=0, tokens=5)
    waiting = back(parts.admission, "work", 5)
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await back(parts.admission, "question", 0)
    assert not waiting.done()
    waiting.cancel()
