"""How long a sequence, or a prompt with questions behind it, may be that runs alone."""

from hypothesis import given
from hypothesis import strategies as st

from engine_worker.core.choice.cache_group import CacheGroup, longest_scored

_groups = st.builds(CacheGroup, st.integers(1, 9), st.none() | st.integers(1, 12))


def _num_blocks(num_stored: int, num_row: int, block_size: int, reach: int | None) -> int:
    """Of a prompt that is computed, and of a row behind it."""
    num_freed = 0 if reach is None else max(0, num_stored - reach + 1) // block_size
    held = -(-num_stored // block_size) - num_freed
    return held + -(-(num_stored % block_size + num_row) // block_size)


@given(
    st.lists(_groups, min_size=1, max_size=2),
    st.integers(1, 5),
    st.integers(1, 10),
    st.integers(0, 60),
)
def test_what_may_be_scored_always_has_blocks(
    groups: list[CacheGroup], block_size: int, num_row: int, num_stored: int
) -> None:
    longest = longest_scored(groups, block_size, num_row)
    if longest is None or 0 < num_stored <= longest - num_row:
        for group in groups:
            needed = _num_blocks(num_stored, num_row, block_size, group.reach)
            assert needed <= group.num_blocks


def test_one_block_is_kept_for_the_copy_of_the_last_one() -> None:
    assert longest_scored([CacheGroup(10)], 4, 16) == 36
    assert _num_blocks(37, 1, 4, None) == 11
    # A window whose blocks are enough for any length limits nothing.
    assert longest_scored([CacheGroup(7, reach=6)], 4, 16) is None
    assert longest_scored([CacheGroup(6, reach=6)], 4, 16) == 20
