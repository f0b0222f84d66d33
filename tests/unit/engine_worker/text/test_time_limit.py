"""Python code that computes for too long is ended, and nothing else is."""

import time
from contextlib import suppress

import pytest

from engine_worker.text.time_limit import OutOfTimeError, limited


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        with suppress(Exception):
            sum(range(100))


def test_what_computes_for_too_long_is_ended_whatever_it_catches() -> None:
    begun = time.thread_time()
    with pytest.raises(OutOfTimeError), limited(0.05):
        compute(30)
    assert time.thread_time() - begun < 30


def test_what_ends_in_time_is_left_alone_then_and_later() -> None:
    for _ in range(3):
        with limited(0.05):
            pass
    # Longer than any of them, and than the interval at which clocks are looked at.
    compute(0.3)
    with limited(60):
        compute(0.3)


def test_an_error_inside_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError), limited(60):
        raise KeyError
