"""The literal matcher: leftmost, longest, and never early."""

from hypothesis import given
from hypothesis import strategies as st

from toolparser_worker.machine.literals import LiteralMatcher, literal_matcher


def test_text_before_a_literal_is_plain() -> None:
    assert LiteralMatcher(("<a>",)).find("xy<a>z", 0, final=False) == (2, 5)


def test_the_beginning_of_a_literal_at_the_end_is_held_back() -> None:
    assert LiteralMatcher(("<tool>",)).find("xy<to", 0, final=False) == (2, 2)


def test_nothing_is_held_back_at_the_end_of_the_text() -> None:
    assert LiteralMatcher(("<tool>",)).find("xy<to", 0, final=True) == (5, 5)


def test_a_literal_that_could_grow_into_a_longer_one_waits() -> None:
    matcher = LiteralMatcher(("<a>", "<a>!"))
    assert matcher.find("x<a>", 0, final=False) == (1, 1)
    assert matcher.find("x<a>", 0, final=True) == (1, 4)
    assert matcher.find("x<a>!", 0, final=False) == (1, 5)
    assert matcher.find("x<a>?", 0, final=False) == (1, 4)


def test_a_possible_literal_further_left_wins_over_one_inside_it() -> None:
    assert LiteralMatcher(("ab", "xabc")).find("-xab", 0, final=False) == (1, 1)
    assert LiteralMatcher(("ab", "xabc")).find("-xabd", 0, final=False) == (2, 4)


def test_without_literals_all_text_is_plain() -> None:
    assert LiteralMatcher(()).find("<a>", 1, final=False) == (3, 3)


def test_characters_with_a_meaning_in_patterns_are_plain_characters() -> None:
    assert LiteralMatcher(("<|a.b|>",)).find("<|axb|><|a.b|>", 0, final=False) == (7, 14)


def test_matchers_are_compiled_once() -> None:
    assert literal_matcher(("<a>",)) is literal_matcher(("<a>",))


@given(
    st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4),
    st.text("ab<", max_size=20),
    st.integers(0, 20),
)
def test_what_is_called_plain_or_literal_stays_so_whatever_follows(
    literals: list[str], text: str, size: int
) -> None:
    matcher = LiteralMatcher(tuple(literals))
    start, stop = matcher.find(text[:size], 0, final=False)
    expected_start, expected_stop = matcher.find(text, 0, final=True)
    if stop > start:
        assert (start, stop) == (expected_start, expected_stop)
    else:
        assert start <= expected_start
