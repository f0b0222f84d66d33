"""Typed settings: bad values stop the start and name their setting."""

from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from protocol.runtime.settings import SettingsReader


def test_unset_and_empty_settings_take_their_default() -> None:
    reader = SettingsReader({"PENSTOCK_PORT": "  "})
    assert reader.int("PENSTOCK_PORT", 8000) == 8000
    assert reader.str("PENSTOCK_HOST") is None
    assert reader.path("PENSTOCK_DIR", Path("/x")) == Path("/x")


def test_values_are_read_with_their_types() -> None:
    reader = SettingsReader(
        {
            "A": " 7 ",
            "B": "0.5",
            "C": "Yes",
            "D": "off",
            "E": "~/models",
            "F": "JSON",
            "G": "a, b,,c",
        }
    )
    assert reader.int("A", 1) == 7
    assert reader.float("B", 1.0) == 0.5
    assert reader.bool("C", False) is True
    assert reader.bool("D", True) is False
    assert reader.path("E") == Path("~/models").expanduser()
    assert reader.choice("F", "human", ("json", "human")) == "json"
    assert reader.words("G") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 2**20),
        ("512MiB", 2**29),
        ("2G", 2**31),
        ("2gb", 2 * 10**9),
        ("1.5 KiB", 1536),
        ("7B", 7),
    ],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert SettingsReader({"S": text}).size_bytes("S", 0) == size


@pytest.mark.parametrize(
    "read",
    [
        lambda reader: reader.int("BAD", 1),
        lambda reader: reader.float("BAD", 1.0),
        lambda reader: reader.bool("BAD", True),
        lambda reader: reader.choice("BAD", "a", ("a", "b")),
        lambda reader: reader.size_bytes("BAD", 1),
        lambda reader: reader.float("NAN", 1.0),
        lambda reader: reader.int("BIG", 1, maximum=10),
        lambda reader: reader.float("BIG", 1.0, minimum=1000.0),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_setting(read) -> None:  # type: ignore[no-untyped-def]
    reader = SettingsReader({"BAD": "wat", "NAN": "nan", "BIG": "100"})
    with pytest.raises(ConfigurationError, match=r"BAD|NAN|BIG"):
        read(reader)


def test_the_name_itself_wins_over_its_aliases() -> None:
    environ = {"MODEL_PATH": "/old", "PENSTOCK_MODEL_PATH": "/new"}
    reader = SettingsReader(environ)
    assert reader.str("PENSTOCK_MODEL_PATH", aliases=["MODEL_PATH"]) == "/new"
    assert SettingsReader({"MODEL_PATH": "/old"}).str(
        "PENSTOCK_MODEL_PATH", aliases=["MODEL_PATH"]
    ) == ("/old")
    assert reader.seen == {"PENSTOCK_MODEL_PATH"}
