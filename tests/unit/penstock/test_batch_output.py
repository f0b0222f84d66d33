"""A batch's output: only ever appended to, taken up after a cut, put in order by a rename."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from penstock.batch_output import SYNC_INTERVAL_S, BatchOutput
from penstock.errors import CommandError, UsageError


def answer(custom_id: str, status: int = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": {}}
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response} | {
        "error": None
    }


def line(custom_id: str, status: int = 200, **more: Any) -> bytes:
    return f"{json.dumps(answer(custom_id, status) | more)}\n".encode()


def text_of(answers: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(one)}\n" for one in answers)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text("utf-8").splitlines()]


def test_reading_what_was_answered_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text(text_of([answer("a"), answer("b", 500), answer("c")]), "utf-8")
    before = path.stat()
    with BatchOutput(path) as output:
        assert output.answered == {"a", "c"}
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_mtime_ns == before.st_mtime_ns


def test_at_every_cut_the_whole_lines_before_it_are_kept_and_the_next_one_is_readable(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out"
    whole = text_of([answer("a"), answer("b")]).encode()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with BatchOutput(path) as output:
            # A line that lacks nothing but its line feed is an answer.
            expected = {"a"} if first - 1 <= cut < len(whole) - 1 else set()
            expected |= {"a", "b"} if cut >= len(whole) - 1 else set()
            assert output.answered == expected, cut
            output.append(line("c"))
        assert ids_in(path) == [*sorted(expected), "c"], cut


def test_a_half_line_of_a_server_is_dropped_as_one_of_ours_is(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(line("a") + b'{"id":"batch_req_1","custom_id":"b","resp')
    with BatchOutput(path) as output:
        assert output.answered == {"a"}
        with pytest.raises(CommandError, match="no answer of a batch"):
            output.append(b'{"error":"no"}\n')
    assert path.read_bytes() == line("a")


def test_a_half_line_that_ends_inside_a_character_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "out"
    whole = text_of([answer("a")]).encode()
    path.write_bytes(whole + '{"id": "batch_req_1", "custom_id": "ü'.encode()[:-1])
    with BatchOutput(path) as output:
        assert output.answered == {"a"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("half", [b"", b'{"id": "batch_req_1", "custom'])
@pytest.mark.parametrize("num_answers", [0, 2])
def test_nuls_that_a_power_cut_left_at_the_end_are_dropped(
    tmp_path: Path, half: bytes, num_answers: int
) -> None:
    path = tmp_path / "out"
    whole = b"".join(line(f"a{number}") for number in range(num_answers))
    path.write_bytes(whole + half + b"\0" * 5000)
    with BatchOutput(path) as output:
        assert len(output.answered) == num_answers
        assert path.read_bytes() == whole
        output.append(line("b"))
    assert path.read_bytes() == whole + line("b")


def test_unusual_line_separators_in_an_answer_do_not_cut_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with BatchOutput(path) as output:
        output.append(line("a", text="\u2028 \x85 \x0b \ud800"))
        text = "\u2028 \x85 \x0b"
        told = json.dumps(answer("b") | {"text": text}, ensure_ascii=False)
        output.append(f"{told}\n".encode())
    with BatchOutput(path) as output:
        assert output.answered == {"a", "b"}


@pytest.mark.parametrize(
    "content",
    [
        '{"my": "data"}\n',
        '{"id": "of something else"}',
        '{"id": "of something else"}\n',
        "my notes",
        "my notes\nof two lines\n",
        "[1]\n",
        "null\n",
        text_of([answer("a")]) + "and a note\n" + text_of([answer("b")]),
        text_of([answer("a")]) + "my notes",
        text_of([answer("a")]) + "\0\0\0\n" + text_of([answer("b")]),
        text_of([answer("a")]) + "\0\0\0\n",
        text_of([answer("a")]) + "\0\0\0my notes",
    ],
)
def test_a_file_that_is_no_output_is_refused_and_untouched(tmp_path: Path, content: str) -> None:
    path = tmp_path / "precious"
    path.write_text(content, "utf-8")
    with (
        pytest.raises(UsageError, match=r"precious:\d: .* not the output of a batch"),
        BatchOutput(path),
    ):
        pass
    assert path.read_text("utf-8") == content


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a regular file"), BatchOutput(Path("/dev/null")):
        pass
    with pytest.raises(CommandError, match="can't be opened"), BatchOutput(tmp_path / "no" / "out"):
        pass


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with BatchOutput(path), pytest.raises(UsageError, match="Another run-batch"), BatchOutput(path):
        pass
    with BatchOutput(path):
        pass


def test_the_end_is_in_the_order_of_the_input_with_the_last_answer_of_each(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out"
    path.write_text(text_of([answer("x"), answer("b", 500), answer("a")]), "utf-8")
    path.chmod(0o640)
    with BatchOutput(path) as output:
        output.append(line("c", 503))
        output.append(line("b"))
        output.put_in_order(["a", "b", "missing", "c"])
    assert ids_in(path) == ["a", "b", "c", "x"]
    with BatchOutput(path) as output:
        assert output.answered == {"a", "b", "x"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_order_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with BatchOutput(path) as output:
        for name in ("a", "b"):
            output.append(line(name))
        inode = path.stat().st_ino
        output.put_in_order(["a", "b"])
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("call", ["fsync", "pread", "fchmod"])
def test_an_ordering_that_fails_leaves_every_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "out"

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with BatchOutput(path) as output:
        for name in ("b", "a"):
            output.append(line(name))
        with monkeypatch.context() as patch, pytest.raises(CommandError, match="can't be sorted"):
            patch.setattr(f"penstock.batch_output.os.{call}", fail)
            output.put_in_order(["a", "b"])
    assert ids_in(path) == ["b", "a"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_what_it_points_to_is_put_in_order(tmp_path: Path) -> None:
    path, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(path)
    with BatchOutput(link) as output:
        for name in ("b", "a"):
            output.append(line(name))
        output.put_in_order(["a", "b"])
    assert link.is_symlink()
    assert ids_in(path) == ["a", "b"]


def test_after_a_write_that_failed_half_way_no_line_follows_the_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    real_write = os.write
    left = [10]

    def write_a_little(descriptor: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, data[: left[0]])
        left[0] -= written
        return written

    with BatchOutput(path) as output:
        output.append(line("a"))
        monkeypatch.setattr("penstock.batch_output.os.write", write_a_little)
        with pytest.raises(CommandError, match="No space left"):
            output.append(line("b"))
        monkeypatch.undo()
        with pytest.raises(CommandError):
            output.append(line("c"))
    with BatchOutput(path) as output:
        assert output.answered == {"a"}
    assert ids_in(path) == ["a"]


def test_answers_are_synced_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("penstock.batch_output.os.fsync", synced.append)
    now = 0.0
    with BatchOutput(tmp_path / "out", clock=lambda: now) as output:
        for _ in range(10):
            now += SYNC_INTERVAL_S / 4
            output.append(line("a"))
        assert len(synced) == 2
    assert len(synced) == 3


def test_a_sync_brings_every_line_to_the_disk_and_a_new_file_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "out", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append("folder" if is_folder else os.fstat(descriptor).st_size)

    monkeypatch.setattr("os.fsync", fsync)
    with BatchOutput(path, clock=lambda: 0.0) as output:
        output.append(line("a"))
        assert synced == []
        output.sync()
        output.append(line("b"))
        output.sync()
        size = path.stat().st_size
        assert synced == [len(line("a")), "folder", size]
        monkeypatch.setattr("os.fsync", fail_to_sync)
        with pytest.raises(CommandError, match=r"out can't be written: Input/output error\."):
            output.sync()
        with pytest.raises(CommandError, match="could not be written"):
            output.append(line("c"))


def fail_to_sync(descriptor: int) -> None:
    raise OSError(5, "Input/output error")
