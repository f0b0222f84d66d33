"""Recordings: one at a time, bounded, below their folder."""

import threading
from pathlib import Path

import pytest

from engine_worker.compute.runner.profiling import Profiler
from engine_worker.errors import InvalidRequestError, ProfileError


def test_a_recording_is_written_below_the_folder(tmp_path: Path) -> None:
    waited: list[float] = []
    folder, size_bytes = Profiler(tmp_path, waited.append).record(2.5)
    assert waited == [2.5]
    assert folder.parent == tmp_path
    assert size_bytes > 0
    assert list(folder.rglob("*.xplane.pb"))


@pytest.mark.parametrize("seconds", [0, -1, 60.5, float("nan")])
def test_a_time_out_of_range_is_refused_by_name(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Profiler(tmp_path).record(seconds)
    assert caught.value.param == "seconds"
    assert not list(tmp_path.iterdir())


def test_only_one_recording_runs_at_a_time(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait(_: float) -> None:
        inside.set()
        leave.wait(60)

    profiler = Profiler(tmp_path, wait)
    thread = threading.Thread(target=profiler.record, args=(1.0,))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ProfileError, match="Another"):
        profiler.record(1.0)
    leave.set()
    thread.join()
    assert profiler.record(1.0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ProfileError, match="file"):
        Profiler(tmp_path / "file", lambda _: None).record(1.0)
