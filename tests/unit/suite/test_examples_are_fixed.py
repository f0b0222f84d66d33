"""`make test` tries the same examples everywhere."""

import os

import pytest
from hypothesis import settings


@pytest.mark.skipif("FUZZ_EFFORT" in os.environ, reason="`make fuzz` draws others each time")
def test_examples_of_make_test_are_the_same_for_everybody() -> None:
    assert settings.default is not None
    assert settings.default.derandomize
    assert settings.default.database is None
