"""What batches do beside the event loop holds up nothing else of the server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.batches import lines
from gateway.batches.records import Batch, Counts
from tests.unit.gateway.batches.test_runner import Harness

LIMIT_S = 60


class SlowChecks:
    """Inputs that take long to be looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end = threading.Event()
        self.num_begun = self.most_at_a_time = self._num_now = 0
        self._lock = threading.Lock()
        self._check = lines.check
        monkeypatch.setattr(lines, "check", self._slowly)

    def _slowly(self, *arguments: Any) -> Any:
        with self._lock:
            self.num_begun += 1
            self._num_now += 1
            self.most_at_a_time = max(self.most_at_a_time, self._num_now)
        try:
            assert self.may_end.wait(LIMIT_S)
            return self._check(*arguments)
        finally:
            with self._lock:
                self._num_now -= 1


async def until_completed(harness: Harness, *batches: Batch) -> None:
    while any(harness.store.find(one.tenant, one.id).status != "completed" for one in batches):
        harness.runner.look()
        await asyncio.sleep(0.01)


async def test_inputs_that_take_long_to_check_hold_up_no_thread_of_others_and_no_other_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine of many callers and few cores, where this is what everybody else has.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    harness, slow = Harness(tmp_path), SlowChecks(monkeypatch)
    checked = harness.create(2, "checked")
    claim = harness.store.claim("checked", checked.id)
    assert claim is not None
    claim.save(status="in_progress", counts=Counts(total=2))
    claim.release()
    large = [harness.create(1, tenant) for tenant in "abcdef"]
    try:
        async with asyncio.timeout(LIMIT_S):
            await harness.runner.look()  # type: ignore[misc]
            while not slow.num_begun:  # noqa: ASYNC110 - a thread's beginning
                await asyncio.sleep(0)
            await asyncio.to_thread(lambda: None)
            await until_completed(harness, checked)
    finally:
        slow.may_end.set()
    async with asyncio.timeout(LIMIT_S):
        await until_completed(harness, *large)
    assert slow.most_at_a_time == 1
    await harness.runner.stop()


async def test_inputs_that_wait_to_be_checked_hold_up_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, slow = Harness(tmp_path), SlowChecks(monkeypatch)
    batches = [harness.create(1, tenant) for tenant in "abc"]
    await harness.runner.look()  # type: ignore[misc]
    while not slow.num_begun:  # noqa: ASYNC110 - a thread's beginning
        await asyncio.sleep(0)
    harness.runner.begin_to_stop()
    slow.may_end.set()
    await harness.runner.stop()
    assert slow.num_begun == 1
    harness.open()  # whoever starts next goes on with them
    async with asyncio.timeout(LIMIT_S):
        await until_completed(harness, *batches)
    await harness.runner.stop()
