"""Settlements: kept until acknowledged, on disk when it takes long, across restarts."""

import asyncio
from pathlib import Path

import pytest

from gateway.errors import OverloadedError
from gateway.ledger import outbox as outbox_module
from gateway.ledger.outbox import FILE_NAME, Outbox
from protocol.errors import ConfigurationError
from protocol.wire.messages import Settle


def settle(number: int = 1) -> Settle:
    return Settle(
        lease_id=f"lease-{number}",
        request_id=f"request-{number}",
        prompt_tokens=number,
        completion_tokens=2,
        outcome="aborted",
    )


class Post:
    """The way to an auth worker that a test opens and closes."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[str] = []
        self.now = 0.0

    def send(self, message: Settle) -> bool:
        if self.is_open:
            self.sent.append(message.lease_id)
        return self.is_open

    def outbox(self, directory: Path, max_entries: int = 10) -> Outbox:
        return Outbox(directory, self.send, max_entries, lambda: self.now)


async def test_a_settlement_acknowledged_soon_never_touches_the_disk(tmp_path: Path) -> None:
    post = Post()
    outbox = post.outbox(tmp_path)
    outbox.put(settle())
    outbox.acknowledge("lease-1")
    await outbox.close()
    assert post.sent == ["lease-1"]
    assert (tmp_path / FILE_NAME).read_bytes() == b""


async def test_what_is_not_acknowledged_survives_a_restart(tmp_path: Path) -> None:
    post = Post()
    post.is_open = False
    outbox = post.outbox(tmp_path)
    outbox.put(settle(1))
    outbox.put(settle(2))
    await outbox.close()
    post.is_open = True
    again = post.outbox(tmp_path)
    assert len(again) == 2
    again.resend_all()
    assert post.sent == ["lease-1", "lease-2"]
    again.acknowledge("lease-1")
    await again.close()
    last = post.outbox(tmp_path)
    assert len(last) == 1
    await last.close()


async def test_what_waits_long_is_sent_again(tmp_path: Path) -> None:
    post = Post()
    outbox = post.outbox(tmp_path)
    outbox.put(settle())
    outbox.resend_old()
    post.now = outbox_module.RESEND_AFTER_S
    outbox.resend_old()
    assert post.sent == ["lease-1", "lease-1"]
    await outbox.close()


async def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    post = Post()
    outbox = post.outbox(tmp_path)
    outbox.put(settle(1))
    outbox.put(settle(2))
    await outbox.close()
    path = tmp_path / FILE_NAME
    path.write_bytes(b"\x00{not json\n" + path.read_bytes()[:-10])
    again = post.outbox(tmp_path)
    assert len(again) == 1
    await again.close()


async def test_a_full_outbox_refuses_new_requests(tmp_path: Path) -> None:
    post = Post()
    outbox = post.outbox(tmp_path, max_entries=1)
    outbox.check_room()
    outbox.put(settle())
    with pytest.raises(OverloadedError):
        outbox.check_room()
    outbox.acknowledge("lease-1")
    outbox.check_room()
    await outbox.close()


async def test_two_gateways_cannot_share_a_folder(tmp_path: Path) -> None:
    post = Post()
    outbox = post.outbox(tmp_path)
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR"):
        post.outbox(tmp_path)
    await outbox.close()
    await post.outbox(tmp_path).close()


async def test_a_disk_that_takes_nothing_is_reported_and_refuses_new_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = Post()
    outbox = post.outbox(tmp_path)
    post.is_open = False

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gateway.ledger.outbox.os.fsync", full)
        outbox.put(settle())
        await outbox._write_out()
        with pytest.raises(OverloadedError):
            outbox.check_room()
    await outbox.close()
    again = post.outbox(tmp_path)
    assert len(again) == 1
    await again.close()


async def test_the_file_does_not_grow_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_COMPACT_AFTER_LINES", 20)
    post = Post()
    outbox = post.outbox(tmp_path)
    for number in range(60):
        outbox.put(settle(number))
        await outbox._write_out()
        outbox.acknowledge(f"lease-{number}")
        await outbox._write_out()
    assert len((tmp_path / FILE_NAME).read_bytes().splitlines()) <= 25
    await outbox.close()


async def test_a_settlement_that_comes_during_a_write_is_written_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SPILL_AFTER_S", 0.0)
    post = Post()
    post.is_open = False
    outbox = post.outbox(tmp_path)
    loop = asyncio.get_running_loop()
    append = outbox._append
    is_written = asyncio.Event()
    batches: list[int] = []

    def append_slowly(lines: list[bytes]) -> None:
        append(lines)
        batches.append(len(lines))
        if len(batches) == 1:
            # The loop runs on meanwhile: this one plans no spill of its own.
            asyncio.run_coroutine_threadsafe(put_second(), loop).result()
        else:
            loop.call_soon_threadsafe(is_written.set)

    async def put_second() -> None:
        outbox.put(settle(2))

    monkeypatch.setattr(outbox, "_append", append_slowly)
    outbox.put(settle(1))
    async with asyncio.timeout(10):
        await is_written.wait()
    assert len((tmp_path / FILE_NAME).read_bytes().splitlines()) == 2
    await outbox.close()


async def test_after_a_failed_write_no_line_goes_on_from_half_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = Post()
    post.is_open = False
    outbox = post.outbox(tmp_path)

    def write_half(lines: list[bytes]) -> None:
        with (tmp_path / FILE_NAME).open("ab") as file:
            file.write(lines[0][:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "_append", write_half)
        outbox.put(settle(1))
        await outbox._write_out()
    await outbox.close()
    again = post.outbox(tmp_path)
    assert len(again) == 1
    await again.close()


async def test_a_settlement_that_can_never_be_booked_is_not_sent_for_ever(tmp_path: Path) -> None:
    post = Post()
    outbox = post.outbox(tmp_path)
    outbox.put(settle(1))
    outbox.put(settle(2))
    outbox.refuse("request-1")
    outbox.resend_all()
    await outbox.close()
    assert post.sent == ["lease-1", "lease-2", "lease-2"]
