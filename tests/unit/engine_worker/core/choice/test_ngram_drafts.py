"""Drafts from what was said before: the same as a search through all of it, in bounded memory."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine_worker.core.choice.ngram_drafts import NGRAM_SIZES, ChoiceDrafts, NgramIndex


def index_of(token_ids: Sequence[int], window: int = 1000) -> NgramIndex:
    index = NgramIndex(window)
    for token_id in token_ids:
        index.push(token_id)
    return index


def searched(token_ids: Sequence[int], first: int) -> tuple[int, int] | None:
    """By search: the length of the match and the position after its last earlier occurrence.

    Args:
        token_ids: Everything.
        first: Occurrences that end at or before it are forgotten.
    """
    end = len(token_ids)
    for size in NGRAM_SIZES:
        for source in range(end - 1, max(size - 1, first), -1):
            if token_ids[source - size : source] == token_ids[end - size : end]:
                return size, source
    return None


def continued(token_ids: Sequence[int], source: int, num_tokens: int) -> tuple[int, ...]:
    """The sequence copied onto itself from a position on."""
    whole = list(token_ids)
    for index in range(num_tokens):
        whole.append(whole[source + index])
    return tuple(whole[len(token_ids) :])


@given(st.lists(st.integers(0, 3), max_size=120), st.sampled_from([5, 16, 1000]))
def test_the_index_finds_what_a_search_finds(token_ids: list[int], window: int) -> None:
    index = NgramIndex(window)
    for end, token_id in enumerate(token_ids, start=1):
        index.push(token_id)
        assert index.num_tokens == end
        # Of what came before the previous generation nothing is remembered.
        found = searched(token_ids[:end], first=max(0, (end - 1) // window - 1) * window)
        if found is not None and end % window == 0 and found[1] < end - window:
            found = None
        if found is None:
            assert (index.match_length, index.draft_token(), index.draft(9)) == (0, None, ())
        else:
            size, source = found
            assert (index.match_length, index.draft_token()) == (size, token_ids[source])
            assert index.draft(9) == continued(token_ids[:end], source, 9)


def test_the_longest_match_wins_and_of_these_the_last() -> None:
    #                 0  1  2  3  4  5  6  7  8  9 10 11 12
    index = index_of([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3])
    assert (index.match_length, index.draft(2)) == (3, (7, 9))
    index = index_of([2, 3, 7, 9, 2, 3, 8, 4, 2, 3])
    assert (index.match_length, index.draft(3)) == (2, (8, 4, 2))


def test_what_goes_in_circles_is_drafted_without_end() -> None:
    assert index_of([5, 1, 2, 3, 1, 2, 3, 1, 2, 3]).draft(7) == (1, 2, 3, 1, 2, 3, 1)
    assert index_of([4, 4, 4]).draft(4) == (4, 4, 4, 4)


def test_without_a_match_there_is_no_draft() -> None:
    for token_ids in ([], [1], [1, 2], [1, 2, 3, 4]):
        index = index_of(token_ids)
        assert (index.match_length, index.draft_token(), index.draft(3)) == (0, None, ())


def test_memory_is_bounded_however_long_the_sequence() -> None:
    index = NgramIndex(window=50)
    for token_id in range(10_000):
        index.push(token_id % 997)
        assert len(index._tokens) <= 100
        assert len(index._young) + len(index._old) <= 2 * 3 * 50


def test_drafts_grow_with_the_tokens_that_were_right_in_a_row() -> None:
    drafts = ChoiceDrafts()
    drafts.read([1, 2, 3, 4, 5, 6, 1, 2], num_prompt_tokens=8)
    lengths = []
    for token_id in (3, 4, 5, 6, 1, 2, 3, 4, 5):
        lengths.append(len(drafts.chances(9)))
        drafts.read([token_id], num_prompt_tokens=8)
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    drafts.read([6, 1, 2, 3, 4, 5] * 5, num_prompt_tokens=8)
    chances = drafts.chances(15)
    assert len(chances) == 15
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.9
    assert drafts.draft(4) == (6, 1, 2, 3)


def test_a_wrong_draft_token_shortens_drafts_and_right_ones_bring_them_back() -> None:
    drafts = ChoiceDrafts()
    drafts.read([7, 8, 9, 6] * 6, num_prompt_tokens=0)
    assert len(drafts.chances(15)) == 15
    # After 1, 2 comes always something else.
    sequence = [token for other in range(10, 40) for token in (1, 2, other)]
    drafts.read([*sequence, 1, 2], num_prompt_tokens=0)
    assert drafts.chances(15) == []
    drafts.read([7, 8, 9, 6] * 3, num_prompt_tokens=0)
    assert len(drafts.chances(15)) > 5


def test_tokens_of_the_prompt_are_no_judgement() -> None:
    drafts = ChoiceDrafts()
    drafts.read([1, 2, 3, 4, 5] * 10, num_prompt_tokens=50)
    assert drafts.chances(5) == [0.3]
    assert drafts.draft(3) == (1, 2, 3)
