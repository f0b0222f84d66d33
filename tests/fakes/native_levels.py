"""The instruction levels of the native kernels, the best first."""

import itertools
from collections.abc import Sequence
from typing import Final

import pytest

LEVELS: Final = (
    "amx",
    "avx512_bf16",
    "avx512_vnni",
    "avx512",
    "avx2_vnni",
    "avx2",
    "generic",
)


def at_levels(names: str, *axes: Sequence[object]) -> pytest.MarkDecorator:
    """Parametrize with every level and every combination of some values.

    In `make test` the plain kernels take all combinations and each other level one, another one for
    each; `make soak` has the rest.
    """
    combinations = list(itertools.product(*axes))
    found = []
    for turn, level in enumerate(LEVELS):
        everyday = turn * (len(combinations) // len(LEVELS) + 1) % len(combinations)
        for number, values in enumerate(combinations):
            is_everyday = level == "generic" or number == everyday
            marks = () if is_everyday else (pytest.mark.long,)
            found.append(pytest.param(level, *values, marks=marks))
    return pytest.mark.parametrize(("level", *names.split(",")), found, indirect=["level"])
