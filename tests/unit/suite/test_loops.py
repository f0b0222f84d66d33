"""A loop of cases is one test that runs them all, and names the one that fails."""

import pytest

from tests.fakes.loops import of_each


def test_each_case_is_run_with_its_values() -> None:
    seen: list[object] = []

    @of_each("a,b", [(1, "x"), (2, "y")])
    def test_both(a: int, b: str) -> None:
        seen.append((a, b))

    @of_each("a", ["xy"])
    def test_one(a: str) -> None:
        seen.append(a)

    test_both()
    test_one()
    assert seen == [(1, "x"), (2, "y"), "xy"]
    assert test_both.__name__ == "test_both"


def test_a_failure_names_its_case() -> None:
    @of_each("number", [1, 2, 3])
    def test_small(number: int) -> None:
        assert number < 2

    with pytest.raises(AssertionError) as raised:
        test_small()
    assert raised.value.__notes__ == ["With number = 2"]
