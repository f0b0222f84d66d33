"""Gateways that share a data folder: each has a folder of its own, and none loses a settlement."""

from pathlib import Path

import pytest

from gateway.ledger import data_slot
from gateway.ledger.data_slot import DataSlot
from gateway.ledger.outbox import FILE_NAME
from protocol.errors import ConfigurationError


def test_each_gateway_gets_its_own_folder(tmp_path: Path) -> None:
    first, second = DataSlot(tmp_path), DataSlot(tmp_path)
    assert (first.folder.name, second.folder.name) == ("gateway-0", "gateway-1")
    first.close()
    again = DataSlot(tmp_path)
    assert again.folder == first.folder
    again.close()
    second.close()


def test_what_a_gateway_that_is_gone_left_is_taken_over(tmp_path: Path) -> None:
    slots = [DataSlot(tmp_path) for _ in range(3)]
    for number, slot in enumerate(slots):
        (slot.folder / FILE_NAME).write_bytes(b"line %d\n" % number)
    slots[0].close()
    slots[2].close()
    fresh = DataSlot(tmp_path)
    assert fresh.folder == slots[0].folder
    assert (fresh.folder / FILE_NAME).read_bytes() == b"line 0\nline 2\n"
    assert not (slots[2].folder / FILE_NAME).exists()
    # The one that still runs keeps what it has.
    assert (slots[1].folder / FILE_NAME).read_bytes() == b"line 1\n"
    fresh.close()
    slots[1].close()


def test_what_is_taken_over_does_not_go_on_from_half_a_line(tmp_path: Path) -> None:
    slots = [DataSlot(tmp_path) for _ in range(2)]
    (slots[0].folder / FILE_NAME).write_bytes(b"whole\nha")
    (slots[1].folder / FILE_NAME).write_bytes(b"other\n")
    for slot in slots:
        slot.close()
    fresh = DataSlot(tmp_path)
    assert (fresh.folder / FILE_NAME).read_bytes() == b"whole\nha\nother\n"
    fresh.close()


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
