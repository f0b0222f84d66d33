"""Settlements: kept until acknowledged, on disk when it takes long, across restarts."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from gateway.errors import OverloadedError
from gateway.ledger import backlog as backlog_module
from gateway.ledger import journal as journal_module
from gateway.ledger import outbox as outbox_module
from gateway.ledger.journal import BACKLOG_PATTERN, FILE_NAME, Journal, settle_line
from gateway.ledger.outbox import Outbox
from gateway.ledger.spool import PROBE_AFTER_S
from gateway.ledger.window import RESEND_AFTER_S, WINDOW
from protocol.errors import ConfigurationError
from protocol.wire.messages import Settle
from tests.fakes.outbox_parts import Post, full_disk, settle

UNUSED = Settle("lease-1", "request-1", 0, 0, outcome="aborted", is_unused=True)


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture(autouse=True)
def _spills_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "SPILL_AFTER_S", 0.0)


async def spilled(outbox: Outbox) -> None:
    """What was planned for the disk has been done."""
    if outbox._spill is not None:
        await outbox._spill


def backlogs(directory: Path) -> list[Path]:
    return list(directory.glob(BACKLOG_PATTERN))


def keeps(outbox: Outbox) -> bool:
    return outbox.can_keep


async def test_a_settlement_acknowledged_soon_never_touches_the_disk(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = post.outbox(tmp_path)
    monkeypatch.setattr(Journal, "append", None)
    outbox.put(settle())
    assert len(outbox) == 1
    outbox.acknowledge("lease-1")
    await outbox.close()
    assert post.sent == ["lease-1"]
    assert len(outbox) == 0


async def test_a_settlement_goes_out_at_once_and_to_disk_a_little_later(
    tmp_path: Path, post: Post
) -> None:
    outbox = post.outbox(tmp_path)
    outbox.put(settle())
    assert post.messages == [settle()]
    assert (tmp_path / FILE_NAME).read_bytes() == b""
    await spilled(outbox)
    assert (tmp_path / FILE_NAME).read_bytes() == settle_line(settle())
    await outbox.close()


async def test_what_is_not_acknowledged_survives_a_restart(tmp_path: Path, post: Post) -> None:
    post.is_open = False
    outbox = post.outbox(tmp_path)
    outbox.put(settle(1))
    outbox.put(settle(2))
    await outbox.close()
    post.is_open = True
    again = post.outbox(tmp_path)
    assert len(again) == 2
    assert post.sent == ["lease-1", "lease-2"]
    again.acknowledge("lease-1")
    await again.close()
    last = post.outbox(tmp_path)
    assert len(last) == 1
    await last.close()


async def test_a_grant_that_was_never_used_stays_so_in_the_file(tmp_path: Path, post: Post) -> None:
    post.is_open = False
    outbox = post.outbox(tmp_path)
    outbox.put(UNUSED)
    await outbox.close()
    post.is_open = True
    await post.outbox(tmp_path).close()
    assert post.messages == [UNUSED]


async def test_a_file_without_the_newest_field_loses_nothing(tmp_path: Path, post: Post) -> None:
    line = settle_line(settle()).replace(b',"is_unused":false', b"")
    (tmp_path / FILE_NAME).write_bytes(line)
    outbox = post.outbox(tmp_path)
    await outbox.close()
    assert post.messages == [settle()]


async def test_what_waits_long_is_sent_again(tmp_path: Path, post: Post) -> None:
    outbox = post.outbox(tmp_path)
    outbox.put(settle())
    outbox.resend_old()
    post.now += RESEND_AFTER_S
    outbox.resend_old()
    assert post.sent == ["lease-1", "lease-1"]
    await outbox.close()


async def test_a_worker_that_comes_gets_what_is_on_the_wire_again(
    tmp_path: Path, post: Post
) -> None:
    outbox = post.outbox(tmp_path)
    outbox.put(settle())
    outbox.resend_all()
    assert post.sent == ["lease-1", "lease-1"]
    await outbox.close()


async def test_a_large_outbox_drains_with_no_more_than_a_window_on_the_wire(
    tmp_path: Path, post: Post
) -> None:
    count = 20_000
    path = tmp_path / FILE_NAME
    path.write_bytes(b"".join(settle_line(settle(number)) for number in range(count)))
    outbox = post.outbox(tmp_path, max_entries=count)
    assert len(outbox) == count
    with pytest.raises(OverloadedError, match="20000 settlements wait .* 20000 may"):
        outbox.check_room()
    booked: set[str] = set()
    assert len(post.sent) == WINDOW
    while len(outbox):
        sent, post.sent = post.sent, []
        assert 0 < len(sent) <= WINDOW
        for lease_id in sent:
            booked.add(lease_id)
            outbox.acknowledge(lease_id)
            outbox.check_room()
        if not post.sent:
            await spilled(outbox)
    assert len(booked) == count
    await outbox.close()
    assert path.read_bytes() == b""
    assert not backlogs(tmp_path)


async def test_a_long_file_is_held_in_memory_page_by_page(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (journal_module, backlog_module):
        monkeypatch.setattr(module, "PAGE_BYTES", 10 * len(settle_line(settle(10))))
    path = tmp_path / FILE_NAME
    path.write_bytes(b"".join(settle_line(settle(number)) for number in range(10, 35)))
    outbox = post.outbox(tmp_path, max_entries=100)
    outbox.put(settle(99))
    await spilled(outbox)
    held = [f"lease-{number}" for number in range(25, 35)]
    assert post.sent == [*held, "lease-99"]
    assert len(outbox) == 26
    for lease_id in held[1:]:
        outbox.acknowledge(lease_id)
    await spilled(outbox)
    assert len(post.sent) == 11
    outbox.acknowledge(held[0])
    await spilled(outbox)
    assert post.sent[11:] == [f"lease-{number}" for number in range(15, 25)]
    assert len(outbox) == 16
    # What was booked is not sent again by the next process.
    await outbox.close()
    post.sent.clear()
    again = post.outbox(tmp_path)
    assert post.sent == ["lease-99", *(f"lease-{number}" for number in range(15, 25))]
    await again.close()


async def test_a_backlog_drains_on_a_full_disk(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (journal_module, backlog_module):
        monkeypatch.setattr(module, "PAGE_BYTES", 10 * len(settle_line(settle(10))))
    lines = [settle_line(settle(number)) for number in range(10, 35)]
    (tmp_path / FILE_NAME).write_bytes(b"".join(lines))
    outbox = post.outbox(tmp_path)
    with full_disk():
        while len(outbox):
            for lease_id in post.sent:
                outbox.acknowledge(lease_id)
            post.sent.clear()
            await spilled(outbox)
    await outbox.close()


async def test_a_backlog_that_could_not_be_read_is_tried_again(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (journal_module, backlog_module):
        monkeypatch.setattr(module, "PAGE_BYTES", 10 * len(settle_line(settle(10))))
    lines = [settle_line(settle(number)) for number in range(10, 35)]
    (tmp_path / FILE_NAME).write_bytes(b"".join(lines))
    outbox = post.outbox(tmp_path)

    def broken(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", broken)
        for lease_id in list(post.sent):
            outbox.acknowledge(lease_id)
        await spilled(outbox)
    assert [record.getMessage() for record in caplog.records] == [
        "cannot read further in a backlog of the outbox: Input/output error"
    ]
    assert len(post.sent) == 10
    outbox.resend_old()
    await spilled(outbox)
    assert len(post.sent) == 20
    outbox.resend_old()
    assert outbox._spill is not None
    assert outbox._spill.done()
    await outbox.close()


async def test_a_damaged_line_costs_only_itself(tmp_path: Path, post: Post) -> None:
    outbox = post.outbox(tmp_path)
    outbox.put(settle(1))
    outbox.put(settle(2))
    await outbox.close()
    path = tmp_path / FILE_NAME
    path.write_bytes(b"\x00{not json\n" + path.read_bytes()[:-10])
    again = post.outbox(tmp_path)
    assert len(again) == 1
    await again.close()


async def test_a_full_outbox_refuses_new_requests_with_the_numbers_and_the_way_out(
    tmp_path: Path, post: Post
) -> None:
    outbox = post.outbox(tmp_path, max_entries=2)
    outbox.put(settle(1))
    outbox.check_room()
    assert keeps(outbox)
    outbox.put(settle(2))
    assert not keeps(outbox)
    with pytest.raises(OverloadedError) as caught:
        outbox.check_room()
    assert str(caught.value) == (
        "2 settlements wait for the auth worker, 2 may (PENSTOCK_MAX_OUTBOX); please try again "
        "when it has booked some."
    )
    assert caught.value.retry_after_s == RESEND_AFTER_S
    outbox.acknowledge("lease-1")
    outbox.check_room()
    assert keeps(outbox)
    await outbox.close()


async def test_two_gateways_cannot_share_a_folder(tmp_path: Path, post: Post) -> None:
    outbox = post.outbox(tmp_path)
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR"):
        post.outbox(tmp_path)
    await outbox.close()
    await post.outbox(tmp_path).close()


async def test_a_folder_that_cannot_be_written_stops_the_start_and_is_let_go(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "rewrite", broken)
        with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR: .*No space left"):
            post.outbox(tmp_path)
    await post.outbox(tmp_path).close()


async def test_a_full_disk_refuses_new_requests_until_it_has_room(
    tmp_path: Path, post: Post
) -> None:
    outbox = post.outbox(tmp_path)
    assert keeps(outbox)
    with full_disk():
        outbox.put(settle())
        await spilled(outbox)
        assert not keeps(outbox)
        # Also when nothing waits: the next settlement would have no place.
        outbox.acknowledge("lease-1")
        outbox.resend_old()
        await spilled(outbox)
        assert not keeps(outbox)
        with pytest.raises(OverloadedError) as one:
            outbox.check_room()
        assert str(one.value) == (
            "The disk of this server takes no settlements at the moment (PENSTOCK_DATA_DIR); "
            "please try again when it has room."
        )
        assert one.value.retry_after_s == RESEND_AFTER_S
    outbox.resend_old()
    await spilled(outbox)
    assert keeps(outbox)
    outbox.check_room()
    await outbox.close()


async def test_a_full_disk_is_known_before_a_request_pays_for_it(
    tmp_path: Path, post: Post
) -> None:
    outbox = post.outbox(tmp_path)
    with full_disk():
        outbox.resend_old()
        assert outbox._spill is None
        post.now += PROBE_AFTER_S
        outbox.resend_old()
        await spilled(outbox)
        assert not keeps(outbox)
    await outbox.close()


async def test_what_a_full_disk_did_not_take_is_written_when_it_has_room(
    tmp_path: Path, post: Post
) -> None:
    outbox = post.outbox(tmp_path)
    post.is_open = False
    with full_disk():
        outbox.put(settle())
        await spilled(outbox)
    await outbox.close()
    again = post.outbox(tmp_path)
    assert len(again) == 1
    await again.close()


async def test_a_settlement_that_comes_during_a_write_is_written_as_well(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = post.outbox(tmp_path)
    loop = asyncio.get_running_loop()
    append = Journal.append
    batches: list[int] = []

    def append_slowly(journal: Journal, lines: list[bytes]) -> None:
        append(journal, lines)
        batches.append(len(lines))
        if len(batches) == 1:
            # The loop runs on meanwhile: this one plans no spill of its own.
            asyncio.run_coroutine_threadsafe(put_second(), loop).result()

    async def put_second() -> None:
        outbox.put(settle(2))

    monkeypatch.setattr(Journal, "append", append_slowly)
    outbox.put(settle(1))
    await spilled(outbox)
    assert batches == [1, 1]
    await outbox.close()


async def test_closing_waits_for_a_write_that_has_begun(
    tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = post.outbox(tmp_path)
    loop = asyncio.get_running_loop()
    append = Journal.append
    has_begun, may_go_on = asyncio.Event(), threading.Event()

    def append_slowly(journal: Journal, lines: list[bytes]) -> None:
        loop.call_soon_threadsafe(has_begun.set)
        may_go_on.wait(60)
        append(journal, lines)

    monkeypatch.setattr(Journal, "append", append_slowly)
    outbox.put(settle(1))
    await has_begun.wait()
    closing = asyncio.create_task(outbox.close())
    for _ in range(5):
        await asyncio.sleep(0)
    is_closed_early = closing.done()
    may_go_on.set()
    await closing
    assert not is_closed_early
    assert (tmp_path / FILE_NAME).read_bytes() == settle_line(settle(1))


async def test_a_settlement_that_can_never_be_booked_is_not_sent_for_ever(
    tmp_path: Path, post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = post.outbox(tmp_path)
    outbox.put(settle(1))
    outbox.put(settle(2))
    outbox.refuse("request-1")
    assert [record.getMessage() for record in caplog.records] == [
        "the settlement of lease lease-1 was refused and is dropped"
    ]
    assert len(outbox) == 1
    outbox.resend_all()
    await outbox.close()
    assert post.sent == ["lease-1", "lease-2", "lease-2"]
