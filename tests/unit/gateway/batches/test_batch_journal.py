"""What a batch's journal finds after a kill."""

from pathlib import Path

from gateway.batches.journal import Journal


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
