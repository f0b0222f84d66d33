from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequestError
from gateway.json_numbers import (
    dump_integers,
    has_long_numbers,
    keep_digits,
    load_integers,
    loads,
)

LONG = [
    "123456789012345678901234567890",
    "18446744073709551616",
    "-9223372036854775809",
    "0.1000000000000000055",
    "12345678901234567.25e3",
    "9007199254740993.0",
    "-1e-400",
    "4.940656458412465E-324",
    "1e-99999999999999999999",
]
SHORT = ["18446744073709551615", "-9223372036854775808", "0.30000000000000004", "1e22", "0.5", "7"]


def kept(text: str, *names: str) -> Any:
    value = orjson.loads(text)
    keep_digits(text.encode(), value, set(names))
    return value


@pytest.mark.parametrize("number", LONG)
def test_a_number_that_no_float_holds_is_written_as_it_was_read(number: str) -> None:
    for text in (f'{{"a":{number}}}', f'{{"a":[{{"b":[1.5,{number},"x"]}},null]}}'):
        assert orjson.dumps(kept(text, "a")).decode() == text


@pytest.mark.parametrize("number", SHORT)
def test_a_number_that_a_float_or_64_bits_hold_is_one(number: str) -> None:
    value = kept(f'{{"a":[{number},"{"9" * 30}"]}}', "a")
    assert value["a"][0] == orjson.loads(number)
    assert type(value["a"][0]) is type(orjson.loads(number))
    assert value["a"][1] == "9" * 30


def test_members_that_are_not_named_hold_numbers_only() -> None:
    value = kept(f'{{"a":{"9" * 30},"b":[{"9" * 30}]}}', "a", "c")
    assert isinstance(value["a"], orjson.Fragment)
    assert value["b"] == [1e30]


def test_an_integer_keeps_as_many_digits_as_are_read_at_all() -> None:
    assert orjson.dumps(kept(f'{{"a":{"1" * 309}}}', "a")).decode() == f'{{"a":{"1" * 309}}}'
    with pytest.raises(orjson.JSONDecodeError, match="infinity"):
        kept(f'{{"a":{"1" * 310}}}', "a")


def test_what_nests_deeper_than_pythons_parser_goes_is_the_clients_error() -> None:
    text = f'{{"a":{"[" * 1020}{"9" * 30}{"]" * 1020}}}'
    with pytest.raises(InvalidRequestError, match="nested too deep"):
        kept(text, "a")


def test_digits_within_strings_start_no_second_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed_again(*_: object, **__: object) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr("gateway.json_numbers.json.loads", parsed_again)
    text = r'{"a":[1.5,-0.25e3,"1234567890123456","\\\"12345678901234567890","1e-400"],"2e-400":7}'
    assert kept(text, "a") == orjson.loads(text)
    with pytest.raises(AssertionError, match="parsed again"):
        kept(text.replace("7", "1e-400"), "a")


def test_short_floats_and_those_that_python_writes_are_not_compared_as_decimals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compared(_: object) -> None:
        raise AssertionError("compared")

    monkeypatch.setattr("gateway.json_numbers.Decimal", compared)
    text = f'{{"a":[1.5,-0.1234567890123,0.30000000000000004,1.5e-07,{"9" * 30}]}}'
    assert orjson.dumps(kept(text, "a")).decode() == text.replace("1.5e-07", "1.5e-7")
    with pytest.raises(AssertionError, match="compared"):
        kept('{"a":0.1000000000000000055}', "a")


@pytest.mark.parametrize("number", LONG)
def test_long_numbers_are_seen_wherever_they_stand(number: str) -> None:
    for text in (number, f"[{number}]", f'{{"a\\\\":"\\"",\n"b": {number} }}'):
        assert has_long_numbers(text.encode())
        assert orjson.dumps(loads(text)).decode() == "".join(text.split())


def test_what_nests_deeper_than_pythons_parser_goes_has_floats() -> None:
    value = loads(f"{'[' * 1020}{'9' * 30}{']' * 1020}")
    while isinstance(value, list):
        (value,) = value
    assert value == 1e30


def test_integers_of_any_size_are_read_and_written_again() -> None:
    long = "9" * 30
    text = f'{{"a":[{long},-{long},{{"b":18446744073709551616}}],"c":[0.5,true,"{long}"]}}'
    value = load_integers(text.encode())
    assert value["a"] == [int(long), -int(long), {"b": 2**64}]
    assert dump_integers(value).decode() == text
    assert dump_integers({"a": (int(long), 1)}).decode() == f'{{"a":[{long},1]}}'


def test_what_is_no_json_is_told_whatever_numbers_stand_in_it() -> None:
    endless: list[object] = [2**64]
    endless.append(endless)
    for value in (object(), {"a": [2**64, object()]}, {1: 2**64}, endless, 10**5000):
        with pytest.raises(TypeError):
            dump_integers(value)
