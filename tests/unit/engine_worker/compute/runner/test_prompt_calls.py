"""Which prompts of a step are predicted to be cheaper together."""

from collections.abc import Sequence

import pytest
from msgspec import structs

from engine_worker.compute.runner.buckets import Bucket, Buckets, choose_buckets
from engine_worker.compute.runner.prompt_calls import Chunk, groups_of, prompt_calls
from engine_worker.core.choice.batch import RowSampling, RowWork

SOME = Bucket(16, 32, 16)


def buckets(*, skips_padding: bool, max_num_seqs: int = 32, max_tokens: int = 512) -> Buckets:
    return choose_buckets(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_tokens,
        min_rows=1,
        deterministic=False,
        skips_padding=skips_padding,
    )


def fresh(*lengths: int) -> dict[int, Chunk]:
    """Prompts of some lengths with nothing before them."""
    return {i: Chunk(length, length) for i, length in enumerate(lengths)}


def works(*lengths: int) -> list[RowWork]:
    return [
        RowWork(slot, (1,) * length, 0, (), sample=True, sampling=RowSampling())
        for slot, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("max_num_seqs", "max_tokens", "groups"),
    [
        (32, 512, [(16, 32)]),
        (32, 4096, [(16, 32)]),
        (3, 512, [(3, 32)]),
        (32, 100, [(3, 32)]),
        (1, 512, []),
        (32, 40, []),
    ],
)
def test_groups_have_no_more_tokens_than_the_largest_chunk(
    max_num_seqs: int, max_tokens: int, groups: list[tuple[int, int]]
) -> None:
    chosen = buckets(skips_padding=True, max_num_seqs=max_num_seqs, max_tokens=max_tokens)
    assert [(one.num_prompts, one.num_queries) for one in chosen.groups] == groups
    assert all(one.num_rows == one.num_token_rows == one.num_prompts for one in chosen.groups)
    assert not set(chosen.groups) & set(chosen.largest)
    assert set(chosen.groups) <= set(chosen.by_demand)


def test_the_deterministic_mode_has_no_groups() -> None:
    chosen = choose_buckets(
        max_num_seqs=64, max_num_batched_tokens=512, min_rows=1, deterministic=True
    )
    assert chosen.groups == ()
    assert groups_of(chosen, fresh(4, 4)) == []


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([24] * 8, [(SOME, [0, 1, 2, 3, 4, 5, 6, 7])]),
        ([24] * 18, [(SOME, list(range(16))), (SOME, [16, 17])]),
        ([24] * 17, [(SOME, list(range(16)))]),
        ([24], []),
        ([100, 100, 100], []),
        ([24, 100, 300], []),
        ([24, 25, 100, 90, 128, 32, 1], [(SOME, [5, 1, 0, 6])]),
    ],
)
def test_where_padding_costs_nothing_whatever_fits_shares_a_program(
    lengths: Sequence[int], groups: list[tuple[Bucket, list[int]]]
) -> None:
    assert groups_of(buckets(skips_padding=True), fresh(*lengths)) == groups


def test_where_padding_is_computed_a_group_has_to_be_full_enough() -> None:
    chosen = buckets(skips_padding=False)
    assert groups_of(chosen, fresh(*[24] * 16)) == [(SOME, list(range(16)))]
    assert groups_of(chosen, fresh(24, 24)) == []
    # As many tokens as eight chunks of 32 with their calls, and one call.
    assert groups_of(chosen, fresh(*[24] * 8)) == []
    assert groups_of(chosen, fresh(*[24] * 9)) == [(SOME, list(range(9)))]


def test_where_padding_is_computed_no_row_attends_as_far_as_a_much_longer_one() -> None:
    chosen = buckets(skips_padding=False)
    late = Chunk(24, 8000)
    chunks = {**fresh(*[24] * 16), 16: late}
    assert groups_of(chosen, chunks) == [(SOME, list(range(16)))]
    # Those before 8,000 tokens each are together among themselves.
    assert groups_of(chosen, dict.fromkeys(range(16), late)) == [(SOME, list(range(16)))]
    # The kernels read the pages that a row has.
    assert (SOME, list(range(16))) not in groups_of(buckets(skips_padding=True), chunks)
    assert groups_of(buckets(skips_padding=True), {0: late, 1: Chunk(24, 24)}) == [(SOME, [0, 1])]


def test_every_chunk_is_computed_once() -> None:
    lengths = [24, 100, 300, 32, 128, 512, 129, 7, 60]
    calls = list(prompt_calls(buckets(skips_padding=True), first, works(*lengths), range(9)))
    assert sorted(i for _, indices in calls for i in indices) == list(range(9))
    for bucket, indices in calls:
        assert len(indices) <= bucket.num_prompts
        assert all(lengths[i] <= bucket.num_queries for i in indices)
    assert [indices for bucket, indices in calls if not bucket.is_group] == [
        [1],
        [2],
        [4],
        [5],
        [6],
        [8],
    ]


def first(keys: Sequence[Bucket]) -> Bucket:
    """All programs are ready."""
    return keys[0]


def test_a_prompt_whose_tokens_are_scored_is_computed_alone() -> None:
    rows = works(24, 24, 24)
    rows[1] = structs.replace(rows[1], scored_token_ids=(1,) * 23)
    calls = list(prompt_calls(buckets(skips_padding=True), first, rows, range(3)))
    assert calls == [(SOME, [0, 2]), (Bucket(1, 32), [1])]


def test_until_a_program_for_several_is_ready_each_has_its_own() -> None:
    asked = []

    def ready(keys: Sequence[Bucket]) -> Bucket:
        asked.append(keys[0])
        return next(key for key in keys if not key.is_group)

    calls = list(prompt_calls(buckets(skips_padding=True), ready, works(24, 24, 100), range(3)))
    assert calls == [(Bucket(1, 32), [0]), (Bucket(1, 32), [1]), (Bucket(1, 128), [2])]
    # Who misses it says so: it is compiled sooner.
    assert asked[0] == SOME
