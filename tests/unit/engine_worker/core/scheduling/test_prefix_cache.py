"""Shared beginnings: computed once, found again, never across tenants, never written twice."""

from typing import Any

import pytest

from engine_worker.core.engine import Engine
from engine_worker.core.scheduling.block_hashes import block_hashes
from engine_worker.core.scheduling.block_pool import ContentChanges
from protocol.wire.messages import Abort, Extend, Failure, Finished, Generate, SamplingParams, Usage
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
PROMPT = tuple(range(1, 23))  # five full blocks of 4 and two tokens


class House:
    """An engine on a fake runner whose blocks hold 4 tokens."""

    def __init__(self, *, prefix_cache: bool = True, **runner_options: Any) -> None:
        self.runner = DeterministicFakeRunner(hashed_token(250), **runner_options)
        self.engine = Engine(
            self.runner, TOKENIZER, vocab_size=258, max_model_len=100, prefix_cache=prefix_cache
        )
        self.token_ids: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], Finished | Failure] = {}

    def add(self, request_id: str, prompt: tuple[int, ...] = PROMPT, **changes: Any) -> None:
        options: dict[str, Any] = {
            "choice": 0,
            "attempt": 1,
            "sampling": SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True),
            "lease_tokens": 100,
            "deadline_s": 60.0,
            "want_token_ids": True,
            "tenant": "t",
            **changes,
        }
        self.engine.add("g", Generate(request_id=request_id, prompt_token_ids=prompt, **options))

    def step(self) -> None:
        for output in self.engine.step().values():
            for delta in output.deltas:
                token_ids = self.token_ids.setdefault((delta.request_id, delta.choice), [])
                token_ids.extend(delta.token_ids)
            for end in output.ends:
                self.ends[end.request_id, end.choice] = end

    def rest(self) -> None:
        for _ in range(300):
            if not self.engine.has_work():
                return
            self.step()
        raise AssertionError("no rest")

    def usage(self, request_id: str, choice: int = 0) -> Usage:
        usage = self.ends[request_id, choice].usage
        assert usage is not None
        return usage

    def num_prompt_tokens_computed(self) -> int:
        return sum(len(row.token_ids) for batch in self.runner.batches for row in batch.rows)


def test_an_equal_prompt_is_found_but_for_its_last_partial_block() -> None:
    house = House()
    house.add("first")
    house.rest()
    computed = house.num_prompt_tokens_computed()
    house.add("second")
    house.rest()
    assert house.usage("first").cached_tokens == 0
    assert house.usage("second") == Usage(prompt_tokens=22, completion_tokens=3, cached_tokens=20)
    assert house.token_ids["second", 0] == house.token_ids["first", 0]
    # Two tokens of the prompt, and two of the three that were sampled.
    assert house.num_prompt_tokens_computed() - computed == 4


def test_of_a_prompt_of_whole_blocks_the_last_one_is_computed_again() -> None:
    house = House()
    for name in ("first", "second"):
        house.add(name, PROMPT[:20])
        house.rest()
    assert house.usage("second").cached_tokens == 16
    assert house.token_ids["second", 0] == house.token_ids["first", 0]


def test_a_second_turn_finds_the_first_ones_answer() -> None:
    house = House()
    house.add("first", sampling=SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
    house.rest()
    turn = (*PROMPT, *house.token_ids["first", 0], 7, 8, 9)
    house.add("second", turn)
    house.rest()
    # 22 + 12 tokens, of which the last was sampled but never computed.
    assert house.usage("second").cached_tokens == 32
    alone = House()
    alone.add("second", turn)
    alone.rest()
    assert house.token_ids["second", 0] == alone.token_ids["second", 0]


def test_another_tenant_finds_nothing() -> None:
    house = House()
    house.add("first")
    house.rest()
    house.add("second", tenant="other")
    house.rest()
    assert house.usage("second").cached_tokens == 0


def test_hashes_that_a_gateway_sends_open_no_door() -> None:
    house = House()
    house.add("first")
    house.rest()
    stolen = block_hashes(PROMPT, 4, "t")
    house.add("second", tenant="other", block_hashes=stolen)
    house.add("third", tuple(reversed(PROMPT)), block_hashes=stolen)
    house.rest()
    assert house.usage("second").cached_tokens == house.usage("third").cached_tokens == 0


def test_without_the_prefix_cache_only_the_choices_of_one_request_share() -> None:
    house = House(prefix_cache=False)
    house.add("first", choice=0, num_choices=2)
    house.add("first", choice=1, num_choices=2)
    house.rest()
    house.add("second")
    house.rest()
    assert [house.usage("first", choice).cached_tokens for choice in (0, 1)] == [0, 20]
    assert house.usage("second").cached_tokens == 0
    assert house.engine.cached_blocks() == ()
    assert house.engine.take_cache_changes() is None


def test_choices_compute_their_prompt_once_and_write_to_blocks_of_their_own() -> None:
    house = House(num_blocks=40)
    for choice in range(4):
        house.add("r", choice=choice, num_choices=4)
    house.rest()
    assert [house.usage("r", choice).cached_tokens for choice in range(4)] == [0, 20, 20, 20]
    # The prompt once, its last partial block and two of three outputs each.
    assert house.num_prompt_tokens_computed() == 20 + 4 * (2 + 2)
    alone = House()
    alone.add("r")
    alone.rest()
    for choice in range(4):
        assert house.token_ids["r", choice] == alone.token_ids["r", 0]
    assert house.engine.load().num_free_blocks == 40


def test_requests_that_arrive_together_compute_a_common_beginning_once() -> None:
    house = House(num_blocks=40)
    prompts = [(*PROMPT[:16], 100 + index, 101, 102) for index in range(3)]
    for index, prompt in enumerate(prompts):
        house.add(str(index), prompt)
    house.rest()
    assert [house.usage(str(index)).cached_tokens for index in range(3)] == [0, 16, 16]
    for index, prompt in enumerate(prompts):
        alone = House()
        alone.add("r", prompt)
        alone.rest()
        assert house.token_ids[str(index), 0] == alone.token_ids["r", 0]


def test_who_waits_for_a_prompt_goes_on_alone_when_its_owner_leaves() -> None:
    house = House()
    house.add("owner")
    house.add("waiter")
    house.step()
    assert house.engine.load().num_running == 1
    house.engine.abort("g", Abort(request_id="owner", attempt=1))
    assert house.engine.has_work()
    house.rest()
    end = house.ends["waiter", 0]
    assert isinstance(end, Finished)
    assert end.finish_reason == "length"
    # The first chunk, 8 tokens, was computed before its owner left.
    assert house.usage("waiter").cached_tokens == 8


def test_who_waits_for_a_prompt_can_be_aborted_and_run_out_of_time() -> None:
    house = House()
    house.add("owner")
    house.add("aborted")
    house.add("late", deadline_s=0.0)
    house.engine.abort("g", Abort(request_id="aborted", attempt=1))
    house.rest()
    assert house.usage("aborted").cached_tokens == 0
    assert isinstance(house.ends["late", 0], Failure)
    assert house.engine.num_unfinished == 0


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    house = House()
    house.add("first")
    house.rest()
    computed = house.num_prompt_tokens_computed()
    try:
        house.add("second", sampling=SamplingParams(max_tokens=1, prompt_logprobs=0))
        house.rest()
    finally:
        assert house.num_prompt_tokens_computed() - computed == len(PROMPT)
    assert house.usage("second").cached_tokens == 0


def test_a_preempted_request_finds_its_own_blocks_again_and_reports_them_not() -> None:
    house = House(num_blocks=14, max_num_seqs=2)
    for name, prompt, num_tokens in (("old", range(40, 60), 12), ("young", PROMPT, 30)):
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        house.add(name, tuple(prompt), sampling=sampling)
    house.rest()
    assert house.engine.num_preemptions > 0
    assert house.usage("young").cached_tokens == 0
    num_lost = house.num_prompt_tokens_computed() - (20 + 11 + 22 + 29)
    # Without its blocks the young one would compute all of its more than 22 tokens again.
    assert 0 < num_lost < 16


def test_a_failed_step_empties_the_cache_and_says_so() -> None:
    house = House(fail_steps=frozenset({6}))
    house.add("first")
    house.rest()
    assert house.engine.take_cache_changes() == ContentChanges(
        is_reset=False,
        added=(*block_hashes(PROMPT, 4, "t"), house.engine.cached_blocks()[-1]),
        removed=(),
    )
    house.add("unlucky", (9,) * 8)
    house.step()
    house.step()
    assert isinstance(house.ends["unlucky", 0], Failure)
    assert house.engine.take_cache_changes() == ContentChanges(True, (), ())
    house.add("second")
    house.rest()
    assert house.usage("second").cached_tokens == 0
    assert house.token_ids["second", 0] == house.token_ids["first", 0]


def test_blocks_of_a_request_without_numbers_are_not_used_again() -> None:
    house = House(nan_prompts=frozenset({7}))
    for name in ("first", "second"):
        house.add(name, (7,) * 22)
        house.rest()
        assert isinstance(house.ends[name, 0], Failure)
    assert house.usage("second").cached_tokens == 0
    assert house.engine.cached_blocks() == ()


def test_changes_name_what_came_and_what_had_to_go() -> None:
    house = House(num_blocks=8, max_num_seqs=1)
    house.add("first", PROMPT[:17])
    house.rest()
    first = house.engine.take_cache_changes()
    assert first is not None
    assert first.added == block_hashes(PROMPT[:17], 4, "t")
    house.add("second", tuple(range(100, 124)))
    house.rest()
    second = house.engine.take_cache_changes()
    assert second is not None
    # The end of the first prompt went before its beginning.
    assert second.removed == tuple(reversed(first.added))[: len(second.removed)]
    assert set(house.engine.cached_blocks()) == {*first.added, *second.added} - {*second.removed}
    assert house.engine.take_cache_changes() is None


def test_a_request_that_waits_for_its_lease_keeps_what_it_shares() -> None:
    house = House()
    house.add("paused", lease_tokens=1)
    house.rest()
    house.add("other")
    house.rest()
    house.engine.extend("g", Extend(request_id="paused", choice=0, attempt=1, lease_tokens=9))
    house.rest()
    assert house.token_ids["paused", 0] == house.token_ids["other", 0]


@pytest.mark.parametrize("prompt_length", [3, 4, 5, 8, 21])
def test_a_resumed_output_is_found_too(prompt_length: int) -> None:
    sampling = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    house = House()
    house.add("whole", PROMPT[:prompt_length], sampling=sampling)
    house.rest()
    output = house.token_ids["whole", 0]
    house.add(
        "resumed", PROMPT[:prompt_length], sampling=sampling, output_token_ids=tuple(output[:6])
    )
    house.rest()
    assert house.token_ids["resumed", 0] == output[6:]
    assert house.usage("resumed").cached_tokens == min(prompt_length, (prompt_length + 5) // 4 * 4)
