"""What a batch's journal finds after a kill."""

import errno
from pathlib import Path
from typing import BinaryIO

import pytest

from gateway.batches import journal as journal_module
from gateway.batches.journal import Journal
from protocol.wire.messages import Settle


def test_outputs_that_were_handed_over_are_not_begun_anew(tmp_path: Path) -> None:
    """A gateway was killed after it moved the output, and before it wrote that the batch ended."""
    journal = Journal(tmp_path)
    journal.note_done(0, "output", {"custom_id": "a"}, None)
    journal.close()
    (tmp_path / "output.jsonl").rename(tmp_path / "handed over")

    again = Journal(tmp_path, is_over=True)
    again.close()
    assert (again.recovered.done, again.recovered.counts.completed) == ({0}, 1)
    assert again.has_any("output")
    assert not (tmp_path / "output.jsonl").exists()
    assert (tmp_path / "handed over").read_bytes() == b'{"custom_id":"a"}\n'


@pytest.mark.parametrize("torn", ["output.jsonl", "journal.jsonl"])
def test_after_a_write_that_failed_half_way_nothing_is_written_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    """A disk that is full for a moment: what is answered next must not be lost behind half a line.

    Lines are answered side by side, so others go on until their batch has ended its try.
    """
    real = journal_module._write_all

    def full(file: BinaryIO, data: bytes) -> None:
        if Path(f"/proc/self/fd/{file.fileno()}").resolve().name == torn:
            real(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    journal = Journal(tmp_path)
    journal.note_done(1, "output", {"custom_id": "a"}, None)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_write_all", full)
        with pytest.raises(OSError, match="No space"):
            journal.note_done(2, "output", {"custom_id": "b"}, None)
    with pytest.raises(OSError, match="earlier write") as later:
        journal.note_done(3, "output", {"custom_id": "c"}, None)
    assert later.value.errno == errno.ENOSPC
    journal.close()

    again = Journal(tmp_path)
    assert again.recovered.done == {1}
    again.note_done(3, "output", {"custom_id": "c"}, None)
    again.close()
    assert (tmp_path / "output.jsonl").read_bytes() == b'{"custom_id":"a"}\n{"custom_id":"c"}\n'


@pytest.mark.parametrize("left", ["gone", "short", "NULs"])
def test_lines_whose_answers_are_missing_are_not_done(tmp_path: Path, left: str) -> None:
    """A machine died, or an output was moved away: what a journal says alone is no answer."""
    journal, output = Journal(tmp_path), tmp_path / "output.jsonl"
    for line, name in ((1, "a"), (2, "b"), (3, "c")):
        journal.note_lease(line, f"lease-{name}")
        settle = Settle(
            lease_id=f"lease-{name}", request_id=name, prompt_tokens=0, completion_tokens=2
        )
        journal.note_done(line, "output", {"custom_id": name}, settle)
    journal.note_lease(4, "lease-d")
    journal.close()
    first = b'{"custom_id":"a"}\n'
    if left == "gone":
        output.unlink()
    else:
        output.write_bytes(first + (b"" if left == "short" else bytes(2 * len(first))))

    again = Journal(tmp_path)
    found = again.recovered
    done = set() if left == "gone" else {1}
    assert found.done == done
    assert (found.counts.completed, found.counts.completion_tokens) == (len(done), 2 * len(done))
    assert [settle.lease_id for settle in found.settles] == ["lease-a"][: len(done)]
    lost = {1: ["lease-a"], 2: ["lease-b"], 3: ["lease-c"], 4: ["lease-d"]}
    assert found.open_leases == {line: ids for line, ids in lost.items() if line not in done}
    assert output.read_bytes() == (first if done else b"")
    again.note_done(2, "output", {"custom_id": "b"}, None)
    again.close()
    last = Journal(tmp_path)
    last.close()
    assert last.recovered.done == done | {2}
    assert output.read_bytes() == (first if done else b"") + b'{"custom_id":"b"}\n'
