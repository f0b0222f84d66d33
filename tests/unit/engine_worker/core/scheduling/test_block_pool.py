import pytest

from engine_worker.core.scheduling.block_hashes import block_hashes
from engine_worker.core.scheduling.block_pool import BlockPool


def test_allocation_takes_distinct_blocks_and_all_or_nothing() -> None:
    pool = BlockPool(num_blocks=4, block_size=2)
    first = pool.allocate(3)
    assert first is not None
    assert len(set(first)) == 3
    assert pool.allocate(2) is None
    assert pool.num_free == 1


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(num_blocks=2, block_size=2)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.share(blocks)
    pool.release(blocks)
    assert (pool.num_free, pool.num_holders(blocks[0])) == (1, 1)
    pool.release(blocks)
    assert pool.num_free == 2


def test_the_end_of_a_released_prompt_is_reused_before_its_beginning() -> None:
    pool = BlockPool(num_blocks=3, block_size=2)
    blocks = pool.allocate(3)
    assert blocks is not None
    pool.release(blocks)
    assert pool.allocate(3) == blocks[::-1]


def test_releasing_a_free_block_is_our_own_mistake() -> None:
    pool = BlockPool(num_blocks=1, block_size=2)
    with pytest.raises(AssertionError):
        pool.release([0])


def test_partly_filled_blocks_count_whole() -> None:
    pool = BlockPool(num_blocks=8, block_size=4)
    assert [pool.num_blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_only_full_blocks_have_hashes_and_they_chain() -> None:
    first = block_hashes([1, 2, 3, 4, 5], 2, "tenant")
    assert len(first) == 2
    assert block_hashes([1, 2, 3, 9, 5], 2, "tenant")[0] == first[0]
    assert block_hashes([1, 2, 3, 9, 5], 2, "tenant")[1] != first[1]
    assert block_hashes([9, 2, 3, 4], 2, "tenant")[1] != first[1]


def test_tenants_do_not_share_hashes() -> None:
    assert block_hashes([1, 2], 2, "a") != block_hashes([1, 2], 2, "b")


def test_hashes_are_stable_across_processes_and_versions() -> None:
    hashes = block_hashes(range(4), 2, "tenant")
    assert [value.hex() for value in hashes] == [
        "4d09b3350f7c9aa8387559c7be9295d1",
        "62e6b180b11805fbb38a70ea19930926",
    ]


def test_clearing_forgets_what_nobody_holds_and_leaves_the_rest() -> None:
    pool = BlockPool(num_blocks=4, block_size=1)
    blocks = pool.allocate(3)
    assert blocks is not None
    for block_id, content in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.register(block_id, content)
    pool.release(blocks[:2])
    pool.take_changes()
    assert pool.forget_unused() == 2
    assert pool.contents() == (b"c",)
    changes = pool.take_changes()
    assert changes is not None
    assert (changes.is_reset, set(changes.removed), changes.added) == (False, {b"a", b"b"}, ())
    assert pool.num_free == 3
    assert pool.forget_unused() == 0
    assert len(set(pool.allocate(3) or [])) == 3
