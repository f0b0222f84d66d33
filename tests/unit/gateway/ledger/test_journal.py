"""The file: what it holds after crashes, full disks, other versions, and without descriptors."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from gateway.ledger import journal as journal_module
from gateway.ledger.journal import (
    FILE_NAME,
    Journal,
    acknowledged_line,
    next_backlog_path,
    parse_line,
    settle_line,
)
from protocol.errors import ConfigurationError
from protocol.wire.messages import Settle
from tests.fakes.outbox_parts import full_disk, no_free_descriptor, settle

OLD_LINE = (
    b'{"settle":{"lease_id":"lease-1","request_id":"request-1","prompt_tokens":1,'
    b'"completion_tokens":2,"cached_tokens":0,"reasoning_tokens":0,"outcome":"aborted"}}'
)


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def loaded(directory: Path) -> list[Settle]:
    """What the next process finds."""
    journal = Journal(directory)
    found = journal.load()
    journal.close()
    return found


def test_a_settlement_is_read_as_it_was_written() -> None:
    whole = Settle("lease", "request", 1, 2, 3, 4, "failed", is_unused=True)
    assert parse_line(settle_line(whole)) == whole
    assert parse_line(acknowledged_line("lease")) == "lease"


def test_a_line_of_an_older_version_is_read_and_one_of_a_newer_too() -> None:
    assert parse_line(OLD_LINE) == settle(1)
    assert parse_line(OLD_LINE.replace(b'"cached', b'"new":[1],"cached')) == settle(1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b'{"acknowledged":7}',
        b'{"settle":null}',
        OLD_LINE.replace(b'"prompt_tokens":1', b'"prompt_tokens":"1"'),
        OLD_LINE.replace(b'"prompt_tokens":1', b'"prompt_tokens":1e30'),
        OLD_LINE.replace(b'"aborted"', b'"paid"'),
        OLD_LINE.replace(b'"lease_id":"lease-1",', b""),
    ],
)
def test_what_could_never_be_sent_is_no_settlement(line: bytes) -> None:
    assert parse_line(line) is None


def test_what_was_acknowledged_is_not_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(1)), settle_line(settle(2)), settle_line(settle(3))])
    journal.append([acknowledged_line("lease-2"), acknowledged_line("lease-9")])
    assert journal.num_lines == 5
    journal.close()
    assert loaded(tmp_path) == [settle(1), settle(3)]


def test_the_latest_settlement_of_a_lease_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(1, completion_tokens=5)), settle_line(settle(1))])
    journal.close()
    assert loaded(tmp_path) == [settle(1)]


def test_damaged_lines_cost_only_themselves_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = settle_line(settle(1))
    (tmp_path / FILE_NAME).write_bytes(b"\x00{no\n\n" + whole + settle_line(settle(2))[:-9])
    journal = Journal(tmp_path)
    assert journal.load() == [settle(1)]
    assert journal.num_lines == 4
    journal.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"2 lines of the outbox {tmp_path / FILE_NAME} are damaged and skipped"
    ]


def test_a_whole_file_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).write_bytes(settle_line(settle(1)))
    assert loaded(tmp_path) == [settle(1)]
    assert not caplog.records


def test_what_is_written_does_not_go_on_from_half_a_line_of_a_crash(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(settle_line(settle(1))[:-9])
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(2))])
    journal.append([settle_line(settle(3))])
    journal.close()
    assert (tmp_path / FILE_NAME).read_bytes().count(b"\n") == 3
    assert loaded(tmp_path) == [settle(2), settle(3)]


def test_what_is_written_does_not_go_on_from_half_a_line_of_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.rewrite([])
    write = os.write

    def write_half(descriptor: int, data: memoryview) -> int:
        write(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", write_half)
        journal.append([settle_line(settle(1))])
    assert journal.num_lines == 0
    journal.append([settle_line(settle(2))])
    journal.append([settle_line(settle(3))])
    assert journal.num_lines == 2
    journal.close()
    assert loaded(tmp_path) == [settle(2), settle(3)]


def test_a_write_that_takes_a_few_bytes_at_a_time_writes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    journal.append([settle_line(settle(1)), settle_line(settle(2))])
    assert journal.rewrite(journal.load())
    journal.close()
    assert loaded(tmp_path) == [settle(1), settle(2)]


def test_a_process_without_free_descriptors_can_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with no_free_descriptor():
        journal.append([settle_line(settle(1))])
        journal.probe()
        assert not journal.rewrite([])
        journal.append([settle_line(settle(2))])
    assert journal.num_lines == 2
    journal.close()
    assert loaded(tmp_path) == [settle(1), settle(2)]


def test_a_rewritten_file_holds_what_it_was_given_and_is_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_LINES_A_WRITE", 2)
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(9))])
    assert journal.rewrite(settle(number) for number in range(5))
    assert journal.num_lines == 5
    journal.append([settle_line(settle(5))])
    assert journal.num_lines == 6
    journal.close()
    assert loaded(tmp_path) == [settle(number) for number in range(6)]
    assert not list(tmp_path.glob("*.new"))


def test_a_file_that_cannot_be_rewritten_is_as_it_was_and_takes_no_room(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(1))])
    with full_disk(), pytest.raises(OSError, match="No space"):
        journal.rewrite([settle(2)])
    assert journal.num_lines == 1
    assert not list(tmp_path.glob("*.new"))
    journal.append([settle_line(settle(3))])
    journal.close()
    assert loaded(tmp_path) == [settle(1), settle(3)]


def test_another_fault_than_descriptors_when_rewriting_is_reported(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / FILE_NAME).with_suffix(".new").mkdir()
    with pytest.raises(IsADirectoryError):
        journal.rewrite([])
    journal.close()


def test_a_file_without_anything_that_counts_is_emptied_even_on_a_full_disk(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(1))])
    with full_disk():
        journal.clear()
    assert journal.num_lines == 0
    assert (tmp_path / FILE_NAME).read_bytes() == b""
    journal.append([settle_line(settle(2))])
    assert (tmp_path / FILE_NAME).read_bytes() == settle_line(settle(2))
    journal.close()


def test_a_probe_fails_on_a_full_disk_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    probe = tmp_path / f"{FILE_NAME}.probe"
    journal.probe()
    with full_disk(), pytest.raises(OSError, match="No space"):
        journal.probe()
    assert probe.stat().st_size == 0
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as caught:
        # The last free bytes are given without a word.
        patch.setattr(os, "pwrite", lambda _descriptor, data, _offset: len(data) - 1)
        journal.probe()
    assert caught.value.errno == errno.ENOSPC
    asked: list[tuple[int, int]] = []

    def spy(_descriptor: int, data: bytes, offset: int) -> int:
        asked.append((len(data), offset))
        return len(data)

    monkeypatch.setattr(os, "pwrite", spy)
    journal.probe()
    # A block: a file system may keep a few bytes beside the file's name, where room is left.
    assert asked == [(4096, 0)]
    journal.close()


def synced_folders(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[list[str]]:
    """The names in a folder each time it is made durable."""
    synced: list[list[str]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            synced.append(sorted(path.name for path in folder.iterdir()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return synced


def test_a_new_name_in_the_folder_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = synced_folders(monkeypatch, tmp_path)
    journal = Journal(tmp_path)
    assert [FILE_NAME in names for names in synced] == [True]
    journal.rewrite([])
    assert [f"{FILE_NAME[:-1]}.new" in names for names in synced] == [False, False]
    journal.append([b"x\n"])
    assert len(synced) == 2
    journal.close()


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Makes syncing the folder fail, with a number of `errno`."""
    fsync = os.fsync
    faults: list[int] = []

    def refuse(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(faults[-1], os.strerror(faults[-1]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    return faults.append


@pytest.mark.parametrize("fault", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_is_taken_as_it_is(
    tmp_path: Path, unsynced: Callable[[int], None], fault: int
) -> None:
    unsynced(fault)
    journal = Journal(tmp_path)
    journal.append([settle_line(settle(1))])
    journal.close()
    assert loaded(tmp_path) == [settle(1)]


def test_a_folder_that_the_disk_cannot_sync_stops_the_start(
    tmp_path: Path, unsynced: Callable[[int], None]
) -> None:
    unsynced(errno.EIO)
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR: cannot use .*Input/output"):
        Journal(tmp_path)


def test_a_long_file_becomes_a_backlog_and_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = settle_line(settle(1))
    monkeypatch.setattr(journal_module, "PAGE_BYTES", len(line))
    (tmp_path / FILE_NAME).write_bytes(line)
    assert loaded(tmp_path) == [settle(1)]
    (tmp_path / FILE_NAME).write_bytes(line * 2)
    assert loaded(tmp_path) == []
    assert (tmp_path / "gateway-outbox.backlog-000000.jsonl").read_bytes() == line * 2
    assert next_backlog_path(tmp_path).name == "gateway-outbox.backlog-000001.jsonl"


def test_the_next_backlog_is_behind_the_last_however_many_there_are(tmp_path: Path) -> None:
    for number in (3, 11):
        (tmp_path / f"gateway-outbox.backlog-{number:06d}.jsonl").touch()
    assert next_backlog_path(tmp_path).name == "gateway-outbox.backlog-000012.jsonl"


def test_only_this_user_can_read_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "new"
    journal = Journal(folder)
    modes = [(folder / name).stat().st_mode & 0o777 for name in (FILE_NAME, f"{FILE_NAME}.probe")]
    journal.rewrite([])
    journal.close()
    modes.append((folder / FILE_NAME).stat().st_mode & 0o777)
    assert modes == [0o600, 0o600, 0o600]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_two_gateways_cannot_share_a_folder_and_the_first_keeps_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR: another gateway uses"):
        Journal(tmp_path)
    journal.append([settle_line(settle(1))])
    journal.close()
    assert loaded(tmp_path) == [settle(1)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="PENSTOCK_DATA_DIR: cannot write to .*file/x"):
        Journal(tmp_path / "file" / "x")


def test_a_file_that_cannot_be_opened_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    before = num_open()
    with pytest.raises(ConfigurationError, match=f"PENSTOCK_DATA_DIR: cannot use .*{FILE_NAME}"):
        Journal(tmp_path)
    assert num_open() == before


def test_closing_gives_every_descriptor_back(tmp_path: Path) -> None:
    before = num_open()
    journal = Journal(tmp_path)
    journal.rewrite([settle(1)])
    journal.close()
    assert num_open() == before


def test_a_line_is_json_that_other_tools_read() -> None:
    assert orjson.loads(settle_line(settle(1)))["settle"]["outcome"] == "aborted"
    assert orjson.loads(acknowledged_line("x")) == {"acknowledged": "x"}
