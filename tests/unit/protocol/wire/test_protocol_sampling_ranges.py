"""The bounds of sampling parameters are facts of the wire: who checks them has no others."""

import math

import pytest

from gateway.http.schemas.base import ranges
from protocol.wire.sampling_ranges import NUMBER_RANGES, WORDS, NumberRange


def test_the_gateways_ranges_are_the_wires() -> None:
    for name, bounds in NUMBER_RANGES.items():
        # Clients write -1 for a top_k that is off; the gateway makes it 0.
        expected = NumberRange(-1, bounds.maximum) if name == "top_k" else bounds
        assert ranges.RANGES[name] == expected
    for name in ("stop", "stop_token_ids", "bad_words", "logit_bias", "allowed_token_ids"):
        assert ranges.LIST_BOUNDS[name] == WORDS[name]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_no_bounds_hold_what_is_no_number_or_beyond_any(value: float) -> None:
    assert not any(bounds.holds(value) for bounds in NUMBER_RANGES.values())
