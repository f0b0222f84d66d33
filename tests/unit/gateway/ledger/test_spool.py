"""What is written when: batches, a full disk, and what is acknowledged meanwhile."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger import spool as spool_module
from gateway.ledger.journal import FILE_NAME, Journal
from gateway.ledger.spool import PROBE_AFTER_S, Spool
from protocol.wire.messages import Settle
from tests.fakes.outbox_parts import Post, full_disk, no_free_descriptor, settle


def lines(directory: Path) -> int:
    return len((directory / FILE_NAME).read_bytes().splitlines())


def kept(directory: Path) -> list[Settle]:
    """What the next process would find."""
    spool = Spool(directory, lambda: 0.0)
    found = spool.load()
    spool.close()
    return found


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def failed(spool: Spool) -> bool:
    return spool.has_failed


def trial_due(spool: Spool) -> bool:
    return spool.is_trial_due


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture
def spool(tmp_path: Path, post: Post) -> Spool:
    fresh = Spool(tmp_path, post.clock)
    fresh.load()
    return fresh


async def test_nothing_is_written_before_it_is_time(tmp_path: Path, spool: Spool) -> None:
    spool.add(settle(1))
    spool.add(settle(2))
    assert not spool.acknowledge("lease-2")
    assert lines(tmp_path) == 0
    assert len(spool) == 1
    assert await spool.write_out()
    assert not await spool.write_out()
    assert lines(tmp_path) == 1
    assert len(spool) == 1
    spool.close()
    assert kept(tmp_path) == [settle(1)]


async def test_the_event_loop_waits_for_no_disk(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, set[int]] = {}

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            called.setdefault(name, set()).add(threading.get_ident())
            return call(*args)

        return wrapper

    for name in ("write", "pwrite", "fsync", "ftruncate"):
        monkeypatch.setattr(f"gateway.ledger.journal.os.{name}", noted(name, getattr(os, name)))
    spool.add(settle(1))
    await spool.write_out()
    spool.acknowledge("lease-1")
    spool._tried_at -= PROBE_AFTER_S
    await spool.write_out()
    assert set(called) == {"write", "pwrite", "fsync", "ftruncate"}
    assert threading.get_ident() not in set().union(*called.values())
    spool.close()


async def test_what_comes_while_the_file_is_cut_is_kept(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.add(settle(1))
    await spool.write_out()
    spool.acknowledge("lease-1")
    clear, loop = Journal.clear, asyncio.get_running_loop()

    async def put() -> None:
        spool.add(settle(2))

    def slow(journal: Journal) -> None:
        asyncio.run_coroutine_threadsafe(put(), loop).result()
        clear(journal)

    monkeypatch.setattr(Journal, "clear", slow)
    await spool.write_out()
    assert len(spool) == 1
    await spool.write_out()
    spool.close()
    assert kept(tmp_path) == [settle(2)]


async def test_what_is_acknowledged_later_has_to_be_written_once(
    tmp_path: Path, spool: Spool
) -> None:
    for number in (1, 2):
        spool.add(settle(number))
    await spool.write_out()
    assert spool.acknowledge("lease-1")
    assert not spool.acknowledge("lease-1")
    assert not spool.acknowledge("lease-9")
    assert len(spool) == 1
    assert await spool.write_out()
    assert lines(tmp_path) == 3
    spool.close()
    assert kept(tmp_path) == [settle(2)]
    assert lines(tmp_path) == 1


async def test_a_file_of_which_all_is_acknowledged_is_emptied(tmp_path: Path, spool: Spool) -> None:
    spool.add(settle(1))
    await spool.write_out()
    spool.acknowledge("lease-1")
    await spool.write_out()
    assert lines(tmp_path) == 0
    spool.close()


async def test_a_newer_settlement_of_a_lease_is_the_one_that_is_kept(
    tmp_path: Path, spool: Spool
) -> None:
    spool.add(settle(1, completion_tokens=5))
    await spool.write_out()
    spool.add(settle(1))
    assert len(spool) == 1
    await spool.write_out()
    spool.close()
    assert kept(tmp_path) == [settle(1)]


async def test_a_full_disk_is_noticed_said_once_and_forgotten_when_it_has_room(
    tmp_path: Path, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with full_disk():
        spool.add(settle(1))
        assert not await spool.write_out()
        assert failed(spool)
        assert len(spool) == 1
        full = f"cannot write the outbox {tmp_path / FILE_NAME}: No space left on device"
        assert said(caplog) == [full]
        assert not await spool.write_out()
    assert failed(spool)
    assert said(caplog) == [full]
    assert await spool.write_out()
    assert not failed(spool)
    assert said(caplog) == [full, f"the outbox {tmp_path / FILE_NAME} can be written again"]
    spool.close()
    assert kept(tmp_path) == [settle(1)]


async def test_room_is_noticed_though_nothing_is_left_to_be_written(spool: Spool) -> None:
    with full_disk():
        spool.add(settle(1))
        await spool.write_out()
        spool.acknowledge("lease-1")
        await spool.write_out()
        assert failed(spool)
        assert trial_due(spool)
    assert not await spool.write_out()
    assert not failed(spool)
    spool.close()


async def test_emptying_the_file_is_no_sign_of_room(spool: Spool) -> None:
    spool.add(settle(1))
    await spool.write_out()
    with full_disk():
        spool.add(settle(2))
        await spool.write_out()
        for number in (1, 2):
            spool.acknowledge(f"lease-{number}")
        await spool.write_out()
        assert failed(spool)
    spool.close()


async def test_a_full_disk_is_noticed_before_anything_has_to_be_written(
    spool: Spool, post: Post
) -> None:
    with full_disk():
        post.now += PROBE_AFTER_S - 0.1
        assert not trial_due(spool)
        # Batches of which nothing was left to be written are no trial.
        assert not await spool.write_out()
        assert not failed(spool)
        post.now += 0.1
        assert trial_due(spool)
        assert not await spool.write_out()
        assert failed(spool)
    spool.close()


async def test_a_write_is_a_trial_as_well(spool: Spool, post: Post) -> None:
    post.now += PROBE_AFTER_S - 0.1
    spool.add(settle(1))
    await spool.write_out()
    post.now += PROBE_AFTER_S - 0.1
    assert not trial_due(spool)
    post.now += 0.1
    assert trial_due(spool)
    assert not await spool.write_out()
    assert not trial_due(spool)
    spool.close()


async def test_acknowledgements_that_could_not_be_written_are_written_later(
    tmp_path: Path, spool: Spool
) -> None:
    for number in (1, 2, 3):
        spool.add(settle(number))
    await spool.write_out()
    with full_disk():
        spool.acknowledge("lease-1")
        await spool.write_out()
        spool.acknowledge("lease-2")
        await spool.write_out()
    assert await spool.write_out()
    spool.close()
    assert kept(tmp_path) == [settle(3)]


async def test_what_is_acknowledged_while_its_write_fails_is_not_written_again(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        spool.add(settle(number))

    def fail(_journal: Journal, _lines: list[bytes]) -> None:
        assert spool.acknowledge("lease-1")
        spool.add(settle(2, completion_tokens=7))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail)
        await spool.write_out()
    assert len(spool) == 1
    await spool.write_out()
    spool.close()
    assert kept(tmp_path) == [settle(2, completion_tokens=7)]


async def test_what_is_acknowledged_while_it_is_written_is_not_found_again(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append

    def append_late(journal: Journal, batch: list[bytes]) -> None:
        append(journal, batch)
        spool.acknowledge("lease-1")

    spool.add(settle(1))
    spool.add(settle(2))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append_late)
        await spool.write_out()
    assert await spool.write_out()
    spool.close()
    assert kept(tmp_path) == [settle(2)]


@pytest.fixture
def _compacts_after_20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "COMPACT_AFTER_LINES", 20)


async def pass_through(spool: Spool, first: int, count: int) -> None:
    for number in range(first, first + count):
        spool.add(settle(number))
        await spool.write_out()
        spool.acknowledge(f"lease-{number}")
        await spool.write_out()


@pytest.mark.usefixtures("_compacts_after_20")
async def test_the_file_is_rewritten_when_most_of_it_is_void(tmp_path: Path, spool: Spool) -> None:
    spool.add(settle(1000))
    spool.add(settle(1001))
    await spool.write_out()
    seen: list[int] = []
    for number in range(60):
        spool.add(settle(number))
        await spool.write_out()
        seen.append(lines(tmp_path))
        spool.acknowledge(f"lease-{number}")
        await spool.write_out()
        seen.append(lines(tmp_path))
    # Twenty and two for each that waits may stay: 24 with these two, 26 with a third.
    assert max(seen) == 25
    assert seen[22:25] == [25, 2, 3]
    spool.close()
    assert kept(tmp_path) == [settle(1000), settle(1001)]


@pytest.mark.usefixtures("_compacts_after_20")
async def test_a_file_that_is_rewritten_shows_that_the_disk_has_room(
    tmp_path: Path, spool: Spool, post: Post
) -> None:
    spool.add(settle(1000))
    spool.add(settle(1001))
    await spool.write_out()
    await pass_through(spool, 0, 10)
    assert lines(tmp_path) == 22
    with full_disk():
        spool.acknowledge("lease-1001")
        await spool.write_out()
        assert failed(spool)
    post.now += PROBE_AFTER_S
    # One line more than twenty and two for the one that waits: it is rewritten.
    await spool.write_out()
    assert lines(tmp_path) == 1
    assert not failed(spool)
    assert not trial_due(spool)
    spool.close()


@pytest.mark.usefixtures("_compacts_after_20")
async def test_without_a_free_descriptor_the_file_grows_and_is_rewritten_later(
    tmp_path: Path, spool: Spool
) -> None:
    spool.add(settle(1000))
    # A thread's start may need a descriptor.
    await asyncio.to_thread(int)
    with no_free_descriptor():
        await pass_through(spool, 0, 30)
        assert not failed(spool)
    assert lines(tmp_path) == 61
    await pass_through(spool, 100, 1)
    assert lines(tmp_path) < 10
    spool.close()
    assert kept(tmp_path) == [settle(1000)]


async def test_what_came_a_moment_ago_is_left_for_another_time(
    tmp_path: Path, post: Post, spool: Spool
) -> None:
    spool.add(settle(1))
    post.now += 1.0
    spool.add(settle(2))
    assert await spool.write_out(1.0)
    assert lines(tmp_path) == 1
    assert len(spool) == 2
    assert spool.will_write
    spool.acknowledge("lease-2")
    assert not await spool.write_out(1.0)
    spool.close()
    assert kept(tmp_path) == [settle(1)]


async def test_what_a_disk_did_not_take_waits_no_longer(
    tmp_path: Path, post: Post, spool: Spool
) -> None:
    spool.add(settle(1))
    with full_disk():
        assert not await spool.write_out()
    assert await spool.write_out(1.0)
    spool.close()
    assert kept(tmp_path) == [settle(1)]
