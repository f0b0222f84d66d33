"""Packs hold every label once, in rows that are the questions and labels themselves."""

from hypothesis import given
from hypothesis import strategies as st

from engine_worker.core.choice.score_pack import (
    ScoredTexts,
    ScoreLimits,
    ScorePack,
    ScoreShape,
    fits,
    packs_of,
)

LIMITS = ScoreLimits((ScoreShape(4, 4), ScoreShape(2, 12)), max_pairs=8, max_places=(6, 4))
tokens = st.integers(0, 3)
texts = st.tuples(
    st.lists(tokens, min_size=1, max_size=8).map(tuple),
    st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), min_size=1, max_size=12),
)


def scored(packs: list[ScorePack]) -> dict[int, list[tuple[tuple[int, ...], int]]]:
    """By label: after which tokens which token is scored, in order."""
    found: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for pack in packs:
        for pair in pack.pairs:
            before = pack.rows[pair.row][: pair.offset + 1]
            found.setdefault(pair.label, []).append((before, pair.token_id))
    return found


def numbered(questions: list[tuple[tuple[int, ...], list[tuple[int, ...]]]]) -> list[ScoredTexts]:
    first, found = 0, []
    for token_ids, labels in questions:
        found.append(ScoredTexts(token_ids, tuple(labels), first))
        first += len(labels)
    return found


def expected(asked: list[ScoredTexts]) -> dict[int, list[tuple[tuple[int, ...], int]]]:
    return {
        one.first + offset: [
            ((*one.token_ids, *label[:place]), token_id) for place, token_id in enumerate(label)
        ]
        for one in asked
        for offset, label in enumerate(one.labels)
    }


@given(st.lists(texts, max_size=8))
def test_each_token_of_each_label_is_scored_once_after_all_before_it(
    questions: list[tuple[tuple[int, ...], list[tuple[int, ...]]]],
) -> None:
    asked = numbered(questions)
    assert all(fits(len(one.token_ids), label, LIMITS) for one in asked for label in one.labels)
    packs = list(packs_of(asked, LIMITS))
    assert scored(packs) == expected(asked)
    for pack in packs:
        most = LIMITS.max_places[LIMITS.shapes.index(pack.shape)]
        assert 0 < len(pack.rows) <= pack.shape.num_rows
        assert max(map(len, pack.rows)) <= pack.shape.num_tokens
        assert len(pack.pairs) <= 8
        assert len({(pair.row, pair.offset) for pair in pack.pairs}) <= most


@given(st.lists(texts, min_size=1, max_size=5), st.integers(1, 4))
def test_a_pack_in_two_pieces_scores_the_same(
    questions: list[tuple[tuple[int, ...], list[tuple[int, ...]]]], num_rows: int
) -> None:
    asked, pieces = numbered(questions), list[ScorePack]()
    for pack in packs_of(asked, LIMITS):
        rest: ScorePack | None = pack
        while rest is not None:
            first, rest = rest.first_rows(num_rows)
            assert len(first.rows) <= num_rows
            pieces.append(first)
    assert scored(pieces) == expected(asked)


def test_a_row_has_the_shape_that_it_fits_whatever_stands_beside_it() -> None:
    asked = numbered([((1, 2), [(3,)]), ((1,) * 9, [(3,)]), ((2,), [(3, 1), (3, 2)])])
    shapes = {pack.shape.num_tokens: pack.rows for pack in packs_of(asked, LIMITS)}
    assert shapes == {4: [(1, 2), (2, 3)], 12: [(1,) * 9]}


def test_what_is_longer_than_a_row_does_not_fit() -> None:
    assert fits(12, (1,), LIMITS)
    assert not fits(12, (1, 2), LIMITS)
    assert not fits(1, (1,) * 5, LIMITS)
