"""A conversion takes the memory that it is estimated to, or is refused before it writes."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine_worker.conversion.converter import convert
from engine_worker.conversion.memory_need import Reading
from engine_worker.conversion.name_map import NO_MAP, read_map
from engine_worker.conversion.torch_archive import open_torch_file
from engine_worker.convert import main
from engine_worker.errors import ModelMemoryError
from tests.fakes.late import torch

MIB = 2**20
HEADERS_BYTES = MIB
"""Of what else there is: the archive's directory, names, the header that is written."""


def saved(path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, path)
    return path


def most_bytes(source: Path, *, is_reordered: bool = False) -> int:
    tensors = open_torch_file(source).tensors
    return max(Reading(name, one, is_reordered).most_bytes for name, one in tensors.items())


STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "storages of their own": lambda: {name: torch.ones(1024, 2048) for name in "abc"},
    "views of one storage": lambda: dict(zip("abc", torch.ones(3, 1024, 1024), strict=True)),
    "turned round": lambda: {"a": torch.ones(1024, 1024).T, "b": torch.ones(1024, 1024).T},
    "doubles": lambda: {"a": torch.ones(1024, 512).double(), "b": torch.ones(1024, 512).double()},
    "doubles turned round": lambda: {"a": torch.ones(512, 1024).double().T},
}


@pytest.mark.parametrize("name", STATES)
def test_no_more_is_there_at_once_than_was_estimated(tmp_path: Path, name: str) -> None:
    """Of two storages both were there, and of one beyond 2 GiB two copies."""
    source = saved(tmp_path / "m.pt", STATES[name]())
    needed = most_bytes(source)
    tracemalloc.start()
    try:
        convert(source, tmp_path / "out", NO_MAP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert needed / 2 < peak < needed + HEADERS_BYTES


def test_what_a_mapping_turns_round_is_counted(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.pt", {"1": torch.ones(1024, 2048)})
    needed = most_bytes(source, is_reordered=True)
    assert needed == most_bytes(source) + 8 * MIB
    path = tmp_path / "map.json"
    path.write_text('{"tensors": {"{n}": {"to": "w{n}", "transpose": true}}}')
    names = read_map(path)
    tracemalloc.start()
    try:
        convert(source, tmp_path / "out", names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert needed - 2 * MIB < peak < needed + HEADERS_BYTES


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.pt", {"small": torch.ones(2), "large": torch.ones(1024, 1024)})
    needed = most_bytes(source)
    with pytest.raises(ModelMemoryError, match=r"m\.pt: its tensor 'large' .* free here: give it"):
        convert(source, tmp_path / "out", NO_MAP, free_bytes=lambda: needed - 1)
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", NO_MAP, free_bytes=lambda: needed)


def test_a_part_of_what_was_saved_is_told_how_it_gets_smaller(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.pt", {"w": torch.ones(1024, 1024)[:10]})
    with pytest.raises(ModelMemoryError, match=r"small part of what was saved .*tensor\.clone\(\)"):
        convert(source, tmp_path / "out", NO_MAP, free_bytes=lambda: MIB)


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine_worker.conversion.converter._free_bytes", lambda: 1000)
    source = saved(tmp_path / "m.pt", {"w": torch.ones(4)})
    assert main([str(source), str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "0.00 GiB are free here" in told
