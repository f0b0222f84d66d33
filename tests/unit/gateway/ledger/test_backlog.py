"""Files that are too long for memory: read page by page from the end, and cut off there."""

import os
import random
from pathlib import Path

import pytest

from gateway.ledger import backlog as backlog_module
from gateway.ledger.backlog import Backlog
from gateway.ledger.journal import BACKLOG_NAME, acknowledged_line, settle_line
from tests.fakes.outbox_parts import settle

LINE_BYTES = len(settle_line(settle(1)))


def write(directory: Path, *lines: bytes, number: int = 0) -> Path:
    path = directory / BACKLOG_NAME.format(number)
    path.write_bytes(b"".join(lines))
    return path


def settles(*numbers: int) -> list[bytes]:
    return [settle_line(settle(number)) for number in numbers]


@pytest.fixture(autouse=True)
def _pages_of_three_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "PAGE_BYTES", 3 * LINE_BYTES + 5)


def done(backlog: Backlog) -> bool:
    return backlog.is_done


def numbers(backlog: Backlog) -> list[int]:
    return [found.prompt_tokens for found in backlog.turn()]


def test_a_folder_without_backlog_is_done(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path)
    assert done(backlog)
    assert len(backlog) == 0
    assert backlog.turn() == []


def test_pages_come_from_the_end_and_the_file_is_cut_behind_them(tmp_path: Path) -> None:
    path = write(tmp_path, *settles(*range(7)))
    backlog = Backlog(tmp_path)
    assert len(backlog) == 7
    assert numbers(backlog) == [4, 5, 6]
    assert len(backlog) == 4
    # Nothing of a page is given up before the next one is asked for.
    assert path.read_bytes() == b"".join(settles(*range(7)))
    assert numbers(backlog) == [1, 2, 3]
    assert path.read_bytes() == b"".join(settles(*range(4)))
    assert numbers(backlog) == [0]
    assert not done(backlog)
    assert numbers(backlog) == []
    assert done(backlog)
    assert len(backlog) == 0
    assert not path.exists()


def test_a_page_that_was_not_booked_comes_again_in_the_next_process(tmp_path: Path) -> None:
    write(tmp_path, *settles(*range(5)))
    first = Backlog(tmp_path)
    numbers(first)
    assert numbers(first) == [0, 1]
    assert numbers(Backlog(tmp_path)) == [0, 1]


def test_what_was_acknowledged_later_in_the_file_is_not_brought(tmp_path: Path) -> None:
    write(
        tmp_path,
        *settles(*range(5)),
        acknowledged_line("lease-0"),
        acknowledged_line("lease-4"),
        *settles(5),
    )
    backlog = Backlog(tmp_path)
    assert len(backlog) == 4
    found = numbers(backlog)
    lengths = [len(backlog)]
    while not backlog.is_done:
        found += numbers(backlog)
        lengths.append(len(backlog))
    assert sorted(found) == [1, 2, 3, 5]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0


def test_acknowledgements_of_one_file_mean_nothing_in_another(tmp_path: Path) -> None:
    write(tmp_path, *settles(1), number=0)
    write(tmp_path, acknowledged_line("lease-1"), number=1)
    backlog = Backlog(tmp_path)
    assert numbers(backlog) == [1]


def test_files_follow_one_another_and_what_holds_nothing_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, *settles(1, 2), number=0)
    empty = write(tmp_path, number=1)
    done = write(tmp_path, *settles(9), acknowledged_line("lease-9"), number=2)
    write(tmp_path, *settles(3), number=3)
    backlog = Backlog(tmp_path)
    assert len(backlog) == 3
    assert numbers(backlog) == [3]
    assert numbers(backlog) == [1, 2]
    assert not done.exists()
    assert not empty.exists()


def test_the_latest_settlement_of_a_lease_in_a_page_counts(tmp_path: Path) -> None:
    write(tmp_path, settle_line(settle(1, completion_tokens=7)), settle_line(settle(1)))
    assert Backlog(tmp_path).turn() == [settle(1)]


def test_damaged_lines_cost_only_themselves_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, b"{x\n", *settles(1), b"\n", settle_line(settle(2))[:-9])
    assert numbers(Backlog(tmp_path)) == [1]
    assert [record.getMessage() for record in caplog.records] == [
        f"2 lines of the outbox {path} are damaged and skipped"
    ]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_rubbish_longer_than_pages_is_cut_off_and_what_is_before_it_comes(
    tmp_path: Path, end: bytes
) -> None:
    write(tmp_path, *settles(1, 2), b"x" * (10 * LINE_BYTES), end)
    backlog = Backlog(tmp_path)
    assert len(backlog) == 2
    found: list[int] = []
    for _ in range(10):
        found += numbers(backlog)
    assert found == [1, 2]
    assert done(backlog)


def test_whatever_a_file_holds_each_settlement_that_is_not_acknowledged_comes_once(
    tmp_path: Path,
) -> None:
    chance = random.Random(1)
    for _ in range(50):
        lines: list[bytes] = []
        pending: set[int] = set()
        for number in range(chance.randrange(60)):
            lines += settles(number)
            pending.add(number)
            if chance.random() < 0.4:
                gone = chance.choice(sorted(pending))
                pending.remove(gone)
                lines.append(acknowledged_line(f"lease-{gone}"))
            if chance.random() < 0.1:
                lines.append(b"rubbish" * chance.randrange(80) + b"\n")
        write(tmp_path, *lines)
        backlog = Backlog(tmp_path)
        assert len(backlog) == len(pending)
        found: list[int] = []
        while not backlog.is_done:
            found += numbers(backlog)
            assert len(found) + len(backlog) == len(pending)
        assert sorted(found) == sorted(pending)


def test_a_file_that_cannot_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *settles(*range(5)))
    backlog = Backlog(tmp_path)
    assert numbers(backlog) == [2, 3, 4]

    def broken(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", broken)
        with pytest.raises(OSError, match="Input/output"):
            backlog.turn()
    assert numbers(backlog) == [0, 1]


def test_a_file_that_somebody_took_away_is_done(tmp_path: Path) -> None:
    path = write(tmp_path, *settles(1))
    backlog = Backlog(tmp_path)
    assert numbers(backlog) == [1]
    path.unlink()
    assert numbers(backlog) == []
    assert done(backlog)
