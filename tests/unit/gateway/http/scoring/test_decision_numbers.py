"""What is made of log probabilities, by the published rules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.scoring.probabilities import (
    choice_confidence,
    expected_level,
    label_mass,
    probabilities,
    score_confidence,
    shown,
)
from gateway.http.scoring.wording import letters

logprobs = st.lists(st.floats(-200, 0), min_size=1, max_size=255)


@given(logprobs)
def test_probabilities_sum_to_one_and_keep_the_order(numbers: list[float]) -> None:
    chances = probabilities(numbers)
    assert math.fsum(chances) == pytest.approx(1)
    assert chances[numbers.index(max(numbers))] == max(chances)
    assert 0 <= choice_confidence(chances) <= 1
    assert 0 <= score_confidence(chances) <= 1
    assert 0 <= expected_level(chances) <= len(chances) - 1 + 1e-9
    assert 0 <= label_mass(numbers) <= 1


def test_the_numbers_of_the_published_rules() -> None:
    assert choice_confidence([0.7, 0.2, 0.1]) == pytest.approx((0.7 - 1 / 3) / (2 / 3))
    assert choice_confidence([0.5, 0.5]) == 0
    chances = [0.1, 0.2, 0.7]
    assert expected_level(chances) == pytest.approx(1.6)
    # d = 0.1 * 2 + 0.2 * 1, u = (1 + 0 + 1) / 3
    assert score_confidence(chances) == pytest.approx(1 - 0.4 / (2 / 3))
    # Split between far levels: surer of nothing than even ones are.
    assert score_confidence([0.5, 0.0, 0.5]) == 0
    assert (choice_confidence([1.0]), score_confidence([1.0])) == (1, 1)
    assert probabilities([-1000.0, -1001.0])[0] == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_shown_number_has_six_digits_and_no_minus_before_zero() -> None:
    assert shown(0.12345678) == 0.123457
    assert math.copysign(1, shown(-1e-9)) == 1


def test_letters_are_distinct_and_none_begins_another() -> None:
    for num in (1, 2, 26, 27, 255):
        found = letters(num)
        assert len(set(found)) == num
        assert len({len(one) for one in found}) == 1
