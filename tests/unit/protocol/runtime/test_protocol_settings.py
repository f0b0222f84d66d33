"""Typed settings: bad values stop the start and name their setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigurationError
from protocol.runtime.setting_kinds import UnfitValueError
from protocol.runtime.settings import (
    Setting,
    choice,
    declared_fields,
    environment_of,
    file_path,
    fill_settings,
    number,
    read_settings,
    setting,
    size,
    switch,
    text,
    whole_number,
    words,
)

COUNT = whole_number("COUNT", 3, minimum=1, maximum=10, option="--max-count", meaning="a count")
SHARE = number("SHARE", 0.5, minimum=0, maximum=1, meaning="a share")
MEMORY = size("MEMORY", None, minimum=1, meaning="memory")
FAST = switch("FAST", False, option="--fast/--slow", meaning="speed")
FOLDER = file_path("FOLDER", Path("~/models"), meaning="a folder")
FORM = choice("FORM", "human", ("json", "human"), meaning="a form")
NAME = text("NAME", None, aliases=("OLD_NAME", "OLDER_NAME"), meaning="a name")
HOSTS = words("HOSTS", each=str.lower, meaning="hosts")


@dataclass(frozen=True)
class Settings:
    """One field of each kind, and one that no setting fills."""

    place: str
    count: int = setting(COUNT)
    share: float = setting(SHARE)
    memory_bytes: int | None = setting(MEMORY)
    fast: bool = setting(FAST)
    folder: Path = setting(FOLDER)
    form: str = setting(FORM, default="json")
    name: str | None = setting(NAME)
    hosts: tuple[str, ...] = setting(HOSTS)


def read(**environ: str) -> Settings:
    return read_settings(Settings, environ, place="here")


def test_what_is_unset_or_empty_takes_the_default_of_the_field() -> None:
    expected = Settings("here", 3, 0.5, None, False, Path("~/models").expanduser(), "json", None)
    assert read() == Settings("here") == expected
    assert read(COUNT="  ", FORM="", NAME=" ", HOSTS="") == expected


def test_values_are_read_with_their_types() -> None:
    settings = read(
        COUNT=" 7 ",
        SHARE="0.25",
        MEMORY="1KiB",
        FAST="Yes",
        FOLDER="~/x",
        FORM="JSON",
        NAME=" me ",
        HOSTS="A, b,,c",
    )
    folder = Path("~/x").expanduser()
    assert settings == Settings("here", 7, 0.25, 1024, True, folder, "json", "me", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("given", "num_bytes"),
    [
        ("1048576", 2**20),
        ("512MiB", 2**29),
        ("2G", 2**31),
        ("2gb", 2 * 10**9),
        ("1.5 KiB", 1536),
        ("7B", 7),
    ],
)
def test_sizes_have_units(given: str, num_bytes: int) -> None:
    assert MEMORY.read({"MEMORY": given}) == num_bytes


@pytest.mark.parametrize("given", ["0", "off", "No", "FALSE"])
def test_a_switch_that_is_on_can_be_turned_off(given: str) -> None:
    assert switch("ON", True, meaning="").read({"ON": given}) is False


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"COUNT": "many"}, "COUNT must be a whole number, not 'many'."),
        ({"COUNT": "1.5"}, "COUNT must be a whole number, not '1.5'."),
        ({"COUNT": "0"}, "COUNT must be at least 1, not 0."),
        ({"COUNT": "11"}, "COUNT must be at most 10, not 11."),
        ({"COUNT": "9" * 5000}, f"COUNT must be a whole number, not '{'9' * 79}…."),
        ({"SHARE": "half"}, "SHARE must be a number, not 'half'."),
        ({"SHARE": "nan"}, "SHARE must be a finite number, not 'nan'."),
        ({"SHARE": "-1"}, "SHARE must be at least 0, not -1.0."),
        ({"MEMORY": "much"}, "MEMORY must be a size such as 512MiB or 2GiB, not 'much'."),
        ({"MEMORY": "0"}, "MEMORY must be at least 1, not 0."),
        ({"MEMORY": "9" * 400}, f"MEMORY must be a size that memory can have, not '{'9' * 79}…."),
        ({"FAST": "wat"}, "FAST must be true or false, not 'wat'."),
        ({"FORM": "xml"}, "FORM must be one of json, human, not 'xml'."),
    ],
)
def test_a_bad_value_is_refused_with_its_setting_and_the_limit(
    environ: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**environ)
    assert caught.value.message == message


def test_a_word_that_its_check_refuses_is_named() -> None:
    def digit(word: str) -> str:
        if not word.isdigit():
            raise UnfitValueError(word, "digits")
        return word

    declared = words("DIGITS", each=digit, meaning="")
    assert declared.read({"DIGITS": "1, 2"}) == ("1", "2")
    with pytest.raises(ConfigurationError, match=r"^DIGITS must be digits, not 'x'\.$"):
        declared.read({"DIGITS": "1, x"})


def test_a_home_that_is_not_there_is_named_with_its_setting() -> None:
    nowhere = file_path("FOLDER", Path("~nobody-here/x"), meaning="a folder")

    @dataclass(frozen=True)
    class InNoHome:
        folder: Path = setting(nowhere)

    with pytest.raises(ConfigurationError, match="^FOLDER must be a path .*'~nobody-here/y'"):
        read(FOLDER="~nobody-here/y")
    for in_no_home in (lambda: nowhere.read({}), lambda: read_settings(InNoHome, {})):
        with pytest.raises(ConfigurationError, match="^FOLDER: '~nobody-here/x' begins with a"):
            in_no_home()
    with pytest.raises(ConfigurationError, match="^--folder: '~nobody-here/z' begins with a"):
        nowhere.accept("~nobody-here/z", "--folder")


def test_the_name_itself_wins_over_its_aliases_and_these_in_their_order() -> None:
    environ = {"OLDER_NAME": "older", "OLD_NAME": "old", "NAME": "new"}
    assert NAME.read(environ) == "new"
    assert NAME.read({**environ, "NAME": " "}) == "old"
    assert NAME.read({"OLDER_NAME": "older"}) == "older"


def test_a_file_may_hold_typed_values_which_go_by_the_name_they_have_there() -> None:
    assert COUNT.accept(4, "count") == 4
    assert SHARE.accept(1, "share") == 1.0
    assert FAST.accept(True, "fast") is True
    assert MEMORY.accept(4096, "memory") == 4096
    assert FORM.accept(" Json ", "form") == "json"


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (COUNT, "many", "--max-count: 'many' is no whole number."),
        (COUNT, True, "--max-count: 'True' is no whole number."),
        (COUNT, 1.5, "--max-count: '1.5' is no whole number."),
        (COUNT, [1], "--max-count: '[1]' is no whole number."),
        (COUNT, 0, "--max-count: 0 is below 1."),
        (COUNT, 11, "--max-count: 11 is above 10."),
        (SHARE, {}, "SHARE: '{}' is no number."),
        (SHARE, float("nan"), "SHARE: 'nan' is no finite number."),
        (FAST, "yes", "--fast: 'yes' must be true or false."),
        (FAST, 1, "--fast: 1 must be true or false."),
        (MEMORY, False, "MEMORY must be a size such as 512MiB or 2GiB, not 'False'."),
        (FOLDER, 5, "FOLDER: 5 must be a non-empty string."),
        (FOLDER, " ", "FOLDER: ' ' must be a non-empty string."),
        (FORM, 5, "FORM: 5 must be one of json, human."),
        (NAME, 5, "NAME: 5 must be a non-empty string."),
        (HOSTS, ["a"], "HOSTS: ['a'] must be a non-empty string."),
    ],
)
def test_a_bad_value_of_a_file_or_an_option_is_refused_by_what_the_setting_is_called_there(
    declared: Setting[Any], value: object, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declared.accept(value, declared.flag)
    assert caught.value.message == message


def test_an_option_gives_a_setting_its_flag_and_its_key_in_a_file() -> None:
    assert (COUNT.flag, COUNT.key) == ("--max-count", "max_count")
    assert (FAST.flag, FAST.key) == ("--fast", "fast")
    assert (NAME.flag, NAME.key) == ("NAME", "")


def test_given_fields_are_not_looked_for() -> None:
    looked_for: list[str] = []

    def find(declared: Setting[Any]) -> Any:
        looked_for.append(declared.name)

    settings = fill_settings(Settings, find, place="here", count=9)
    assert settings.count == 9
    assert looked_for == [
        declared.name for name, declared in declared_fields(Settings) if name != "count"
    ]


def test_another_process_is_told_only_what_it_may_read_and_what_is_set() -> None:
    settings = Settings("here", 7, fast=True, hosts=("a", "b"))
    told = environment_of(settings, (COUNT, FAST, HOSTS, MEMORY))
    assert told == {"COUNT": "7", "FAST": "true", "HOSTS": "a,b"}
    assert read_settings(Settings, told, place="here") == settings


@pytest.mark.parametrize(
    ("declared", "default", "values"),
    [
        (COUNT, "3", "1 to 10"),
        (SHARE, "0.5", "0 to 1"),
        (MEMORY, "none", "1B or more"),
        (size("S", 10 * 2**20, maximum=2**30, meaning=""), "10MiB", "at most 1GiB"),
        (size("S", 0, meaning=""), "0B", "size"),
        (whole_number("W", None, meaning=""), "none", "whole number"),
        (number("N", 600.0, meaning=""), "600", "number"),
        (FAST, "false", "true, false"),
        (FOLDER, "`~/models`", "path"),
        (FORM, "human", "`json`, `human`"),
        (NAME, "none", "text"),
        (HOSTS, "none", "comma list"),
    ],
)
def test_defaults_and_values_are_told_to_people(
    declared: Setting[Any], default: str, values: str
) -> None:
    assert (declared.default_text(), declared.kind.describe()) == (default, values)
