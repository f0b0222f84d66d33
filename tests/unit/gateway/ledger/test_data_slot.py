"""Gateways that share a data folder: each has a folder of its own, and none loses a settlement."""

import os
from pathlib import Path

import pytest

from gateway.application import Application
from gateway.ledger import data_slot
from gateway.ledger.data_slot import DataSlot, adopt_slots
from gateway.ledger.journal import (
    BACKLOG_NAME,
    BACKLOG_PATTERN,
    FILE_NAME,
    Journal,
    settle_line,
)
from protocol.errors import ConfigurationError
from tests.fakes.outbox_parts import Post, settle
from tests.fakes.running_gateway import gateway_settings


def test_each_gateway_gets_its_own_folder(tmp_path: Path) -> None:
    first, second = DataSlot(tmp_path), DataSlot(tmp_path)
    assert (first.folder.name, second.folder.name) == ("gateway-0", "gateway-1")
    first.close()
    again = DataSlot(tmp_path)
    assert again.folder == first.folder
    again.close()
    second.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.jsonl")}


def test_what_gateways_that_are_gone_left_is_taken_over_and_nothing_of_those_that_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slots = [DataSlot(tmp_path) for _ in range(4)]
    for number, slot in enumerate(slots):
        (slot.folder / FILE_NAME).write_bytes(b"line %d\n" % number)
    (slots[2].folder / BACKLOG_NAME.format(7)).write_bytes(b"older\n")
    for number in (0, 2, 3):
        slots[number].close()
    fresh = DataSlot(tmp_path)
    assert fresh.folder == slots[0].folder
    assert (fresh.folder / FILE_NAME).read_bytes() == b"line 0\n"
    adopted = [path.read_bytes() for path in sorted(fresh.folder.glob(BACKLOG_PATTERN))]
    assert adopted == [b"line 2\n", b"older\n", b"line 3\n"]
    assert not names(slots[2].folder) | names(slots[3].folder)
    assert (slots[1].folder / FILE_NAME).read_bytes() == b"line 1\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"took over the outbox of a gateway that is gone, {path}"
        for path in (
            slots[2].folder / FILE_NAME,
            slots[2].folder / BACKLOG_NAME.format(7),
            slots[3].folder / FILE_NAME,
        )
    ]
    # They are free again for the next.
    second = DataSlot(tmp_path)
    assert second.folder == slots[2].folder
    for slot in (fresh, second, slots[1]):
        slot.close()


async def test_twenty_outboxes_are_adopted_and_drain_within_bounds(tmp_path: Path) -> None:
    slots = [DataSlot(tmp_path) for _ in range(20)]
    for slot in slots:
        first = int(slot.folder.name.rpartition("-")[2]) * 1000
        lines = [settle_line(settle(number)) for number in range(first, first + 500)]
        (slot.folder / FILE_NAME).write_bytes(b"".join(lines))
        slot.close()
    fresh = DataSlot(tmp_path)
    post = Post()
    outbox = post.outbox(fresh.folder)
    assert len(outbox) == 10_000
    # In memory there are this gateway's own and one page of the others.
    assert len(outbox._page) == 500
    booked: set[str] = set()
    while len(outbox):
        sent, post.sent = post.sent, []
        booked.update(sent)
        for lease_id in sent:
            outbox.acknowledge(lease_id)
        if not post.sent:
            assert outbox._spill is not None
            await outbox._spill
    assert len(booked) == 10_000
    await outbox.close()
    fresh.close()


def test_where_files_went_is_made_durable_before_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    slots = [DataSlot(tmp_path / "shared") for _ in range(2)]
    assert synced == ["shared", "shared"]
    (slots[1].folder / FILE_NAME).write_bytes(b"x\n")
    for slot in slots:
        slot.close()
    synced.clear()
    DataSlot(tmp_path / "shared").close()
    assert synced == ["gateway-0", "gateway-1"]


def test_an_empty_outbox_is_not_taken_over(tmp_path: Path) -> None:
    slots = [DataSlot(tmp_path) for _ in range(2)]
    (slots[1].folder / FILE_NAME).touch()
    for slot in slots:
        slot.close()
    fresh = DataSlot(tmp_path)
    assert not names(fresh.folder)
    assert names(slots[1].folder) == {FILE_NAME}
    fresh.close()


def test_a_folder_is_let_go_when_another_cannot_be_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = [DataSlot(tmp_path) for _ in range(2)]
    (slots[1].folder / FILE_NAME).write_bytes(b"x\n")
    for slot in slots:
        slot.close()

    def broken(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", broken)
        with pytest.raises(ConfigurationError, match="cannot use .*: Input/output error"):
            DataSlot(tmp_path)
    fresh = DataSlot(tmp_path)
    assert fresh.folder == slots[0].folder
    fresh.close()


def test_only_this_user_can_read_a_folder(tmp_path: Path) -> None:
    slot = DataSlot(tmp_path / "deep" / "shared")
    assert slot.folder.stat().st_mode & 0o777 == 0o700
    slot.close()


def test_too_many_gateways_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_slot, "MAX_SLOTS", 1)
    only = DataSlot(tmp_path)
    with pytest.raises(ConfigurationError, match="1 gateways use"):
        DataSlot(tmp_path)
    only.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR: cannot use"):
        DataSlot(tmp_path / "file")


def test_several_gateways_take_over_what_one_alone_left_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"alone\n")
    slots = [DataSlot(tmp_path) for _ in range(2)]
    assert [names(slot.folder) for slot in slots] == [{BACKLOG_NAME.format(0)}, set()]
    assert not names(tmp_path)
    (slots[1].folder / FILE_NAME).write_bytes(b"second\n")
    slots[0].close()
    adopt_slots(tmp_path)
    assert [path.read_bytes() for path in tmp_path.glob("*.jsonl")] == [b"alone\n"]
    slots[1].close()
    adopt_slots(tmp_path)
    contents = [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))]
    assert contents == [b"alone\n", b"second\n"]


async def test_a_gateway_on_a_folder_in_use_takes_nothing_over(socket_dir: Path) -> None:
    settings = gateway_settings(socket_dir)
    running = Journal(settings.data_dir)
    left = settings.data_dir / "gateway-1"
    left.mkdir()
    (left / FILE_NAME).write_bytes(b"x\n")
    with pytest.raises(ConfigurationError, match="another gateway uses"):
        Application(settings)
    assert (names(left), names(settings.data_dir)) == ({FILE_NAME}, {FILE_NAME})
    running.close()


def test_the_outbox_of_a_gateway_that_runs_alone_is_left_to_it(tmp_path: Path) -> None:
    alone = Journal(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"x\n")
    slot = DataSlot(tmp_path)
    assert (names(slot.folder), names(tmp_path)) == (set(), {FILE_NAME})
    slot.close()
    alone.close()
