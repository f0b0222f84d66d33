"""The JSON scanner against Python's own parser."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolparser_worker.machine.json_value import MAX_NESTING, JsonValueScanner

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def scan(text: str, size: int) -> tuple[JsonValueScanner, int]:
    """Feeds pieces of this size; the scanner, and the offset of what it did not take."""
    scanner = JsonValueScanner()
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        stop = scanner.feed(piece, 0)
        if scanner.done or scanner.broken:
            return scanner, start + stop
    return scanner, len(text)


@given(JSON_VALUES, st.booleans(), st.sampled_from((None, 1)), st.integers(1, 9))
def test_every_json_value_is_followed_to_its_end(
    value: Any, is_ascii: bool, indent: int | None, size: int
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    scanner, stop = scan(text + " ,", size)
    assert (scanner.done, scanner.broken, scanner.flawed, stop) == (True, False, False, len(text))


@given(st.text('{}[]:,"\\u0e1.-+ truefalsn\n\x01', max_size=24), st.integers(1, 5))
def test_what_python_refuses_is_refused_and_the_other_way_round(text: str, size: int) -> None:
    scanner, stop = scan(text + " ", size)
    accepted = scanner.done and not scanner.flawed and not text[stop:].strip(" \n")
    try:
        json.loads(text)
        expected = True
    except ValueError:
        expected = False
    assert accepted == expected


@given(st.text('{}[]:,"\\u0e1 tru', max_size=24))
def test_the_cut_changes_nothing(text: str) -> None:
    outcomes = set()
    for size in (1, 2, 3, 100):
        scanner, stop = scan(text, size)
        outcomes.add((scanner.done, scanner.broken, scanner.flawed, stop))
    assert len(outcomes) == 1


@pytest.mark.parametrize("text", ['"a\nb"', r'"a\qb"', r'"\u12g4"', '"\x00"'])
def test_a_flawed_string_is_followed_to_its_end(text: str) -> None:
    scanner, stop = scan(text + "x", 1)
    assert (scanner.done, scanner.broken, scanner.flawed, stop) == (True, False, True, len(text))


def test_deep_nesting_is_followed_and_deeper_nesting_is_broken() -> None:
    deep, _ = scan("[" * MAX_NESTING + "]" * MAX_NESTING, 1000)
    assert deep.done
    deeper, stop = scan("[" * (MAX_NESTING + 1), 1000)
    assert deeper.broken
    assert stop == MAX_NESTING
