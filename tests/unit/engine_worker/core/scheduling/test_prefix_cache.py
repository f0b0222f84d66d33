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


class Harness:
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
    harness = Harness()
    harness.add("first")
    harness.rest()
    computed = harness.num_prompt_tokens_computed()
    harness.add("second")
    harness.rest()
    assert harness.usage("first").cached_tokens == 0
    assert harness.usage("second") == Usage(prompt_tokens=22, completion_tokens=3, cached_tokens=20)
    assert harness.token_ids["second", 0] == harness.token_ids["first", 0]
    # Two tokens of the prompt, and two of the three that were sampled.
    assert harness.num_prompt_tokens_computed() - computed == 4


def test_of_a_prompt_of_whole_blocks_the_last_one_is_computed_again() -> None:
    harness = Harness()
    for name in ("first", "second"):
        harness.add(name, PROMPT[:20])
        harness.rest()
    assert harness.usage("second").cached_tokens == 16
    assert harness.token_ids["second", 0] == harness.token_ids["first", 0]


def test_a_second_turn_finds_the_first_ones_answer() -> None:
    harness = Harness()
    harness.add("first", sampling=SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
    harness.rest()
    turn = (*PROMPT, *harness.token_ids["first", 0], 7, 8, 9)
    harness.add("second", turn)
    harness.rest()
    # 22 + 12 tokens, of which the last was sampled but never computed.
    assert harness.usage("second").cached_tokens == 32
    alone = Harness()
    alone.add("second", turn)
    alone.rest()
    assert harness.token_ids["second", 0] == alone.token_ids["second", 0]


def test_no_tenant_is_called_like_another_one_with_a_salt() -> None:
    harness = Harness()
    harness.add("first", cache_salt="secret")
    harness.rest()
    harness.add("second", tenant=repr(("t", "secret")))
    harness.rest()
    assert harness.usage("second").cached_tokens == 0
    harness.add("third", cache_salt="secret")
    harness.rest()
    assert harness.usage("third").cached_tokens == 20


def test_another_tenant_finds_nothing() -> None:
    harness = Harness()
    harness.add("first")
    harness.rest()
    harness.add("second", tenant="other")
    harness.rest()
    assert harness.usage("second").cached_tokens == 0


def test_hashes_that_a_gateway_sends_open_no_door() -> None:
    harness = Harness()
    harness.add("first")
    harness.rest()
    stolen = block_hashes(PROMPT, 4, "t")
    harness.add("second", tenant="other", block_hashes=stolen)
    harness.add("third", tuple(reversed(PROMPT)), block_hashes=stolen)
    harness.rest()
    assert harness.usage("second").cached_tokens == harness.usage("third").cached_tokens == 0


def test_without_the_prefix_cache_only_the_choices_of_one_request_share() -> None:
    harness = Harness(prefix_cache=False)
    harness.add("first", choice=0, num_choices=2)
    harness.add("first", choice=1, num_choices=2)
    harness.rest()
    harness.add("second")
    harness.rest()
    assert [harness.usage("first", choice).cached_tokens for choice in (0, 1)] == [0, 20]
    assert harness.usage("second").cached_tokens == 0
    assert harness.engine.cached_blocks() == ()
    assert harness.engine.take_cache_changes() is None


def test_choices_compute_their_prompt_once_and_write_to_blocks_of_their_own() -> None:
    harness = Harness(num_blocks=40)
    for choice in range(4):
        harness.add("r", choice=choice, num_choices=4)
    harness.rest()
    assert [harness.usage("r", choice).cached_tokens for choice in range(4)] == [0, 20, 20, 20]
    # The prompt once, its last partial block and two of three outputs each.
    assert harness.num_prompt_tokens_computed() == 20 + 4 * (2 + 2)
    alone = Harness()
    alone.add("r")
    alone.rest()
    for choice in range(4):
        assert harness.token_ids["r", choice] == alone.token_ids["r", 0]
    assert harness.engine.load().num_free_blocks == 40


def test_requests_that_arrive_together_compute_a_common_beginning_once() -> None:
    harness = Harness(num_blocks=40)
    prompts = [(*PROMPT[:16], 100 + index, 101, 102) for index in range(3)]
    for index, prompt in enumerate(prompts):
        harness.add(str(index), prompt)
    harness.rest()
    assert [harness.usage(str(index)).cached_tokens for index in range(3)] == [0, 16, 16]
    for index, prompt in enumerate(prompts):
        alone = Harness()
        alone.add("r", prompt)
        alone.rest()
        assert harness.token_ids[str(index), 0] == alone.token_ids["r", 0]


def test_who_waits_for_a_prompt_goes_on_alone_when_its_owner_leaves() -> None:
    harness = Harness()
    harness.add("owner")
    harness.add("waiter")
    harness.step()
    assert harness.engine.load().num_running == 1
    harness.engine.abort("g", Abort(request_id="owner", attempt=1))
    assert harness.engine.has_work()
    harness.rest()
    end = harness.ends["waiter", 0]
    assert isinstance(end, Finished)
    assert end.finish_reason == "length"
    # The first chunk, 8 tokens, was computed before its owner left.
    assert harness.usage("waiter").cached_tokens == 8


def test_who_waits_for_a_prompt_can_be_aborted_and_run_out_of_time() -> None:
    harness = Harness()
    harness.add("owner")
    harness.add("aborted")
    harness.add("late", deadline_s=0.0)
    harness.engine.abort("g", Abort(request_id="aborted", attempt=1))
    harness.rest()
    assert harness.usage("aborted").cached_tokens == 0
    assert isinstance(harness.ends["late", 0], Failure)
    assert harness.engine.num_unfinished == 0


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    harness = Harness()
    harness.add("first")
    harness.rest()
    computed = harness.num_prompt_tokens_computed()
    try:
        harness.add("second", sampling=SamplingParams(max_tokens=1, prompt_logprobs=0))
        harness.rest()
    finally:
        assert harness.num_prompt_tokens_computed() - computed == len(PROMPT)
    assert harness.usage("second").cached_tokens == 0


def test_a_preempted_request_finds_its_own_blocks_again_and_reports_them_not() -> None:
    harness = Harness(num_blocks=14, max_num_seqs=2)
    for name, prompt, num_tokens in (("old", range(40, 60), 12), ("young", PROMPT, 30)):
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        harness.add(name, tuple(prompt), sampling=sampling)
    harness.rest()
    assert harness.engine.num_preemptions > 0
    assert harness.usage("young").cached_tokens == 0
    num_lost = harness.num_prompt_tokens_computed() - (20 + 11 + 22 + 29)
    # Without its blocks the young one would compute all of its more than 22 tokens again.
    assert 0 < num_lost < 16


def test_a_failed_step_empties_the_cache_and_says_so() -> None:
    harness = Harness(fail_steps=frozenset({6}))
    harness.add("first")
    harness.rest()
    assert harness.engine.take_cache_changes() == ContentChanges(
        is_reset=False,
        added=(*block_hashes(PROMPT, 4, "t"), harness.engine.cached_blocks()[-1]),
        removed=(),
    )
    harness.add("unlucky", (9,) * 8)
    harness.step()
    harness.step()
    assert isinstance(harness.ends["unlucky", 0], Failure)
    assert harness.engine.take_cache_changes() == ContentChanges(True, (), ())
    harness.add("second")
    harness.rest()
    assert harness.usage("second").cached_tokens == 0
    assert harness.token_ids["second", 0] == harness.token_ids["first", 0]


def test_blocks_of_a_request_without_numbers_are_not_used_again() -> None:
    harness = Harness(nan_prompts=frozenset({7}))
    for name in ("first", "second"):
        harness.add(name, (7,) * 22)
        harness.rest()
        assert isinstance(harness.ends[name, 0], Failure)
    assert harness.usage("second").cached_tokens == 0
    assert harness.engine.cached_blocks() == ()


def test_changes_name_what_came_and_what_had_to_go() -> None:
    harness = Harness(num_blocks=8, max_num_seqs=1)
    harness.add("first", PROMPT[:17])
    harness.rest()
    first = harness.engine.take_cache_changes()
    assert first is not None
    assert first.added == block_hashes(PROMPT[:17], 4, "t")
    harness.add("second", tuple(range(100, 124)))
    harness.rest()
    second = harness.engine.take_cache_changes()
    assert second is not None
    # The end of the first prompt went before its beginning.
    assert second.removed == tuple(reversed(first.added))[: len(second.removed)]
    assert set(harness.engine.cached_blocks()) == {*first.added, *second.added} - {*second.removed}
    assert harness.engine.take_cache_changes() is None


def test_a_request_that_waits_for_its_lease_keeps_what_it_shares() -> None:
    harness = Harness()
    harness.add("paused", lease_tokens=1)
    harness.rest()
    harness.add("other")
    harness.rest()
    harness.engine.extend("g", Extend(request_id="paused", choice=0, attempt=1, lease_tokens=9))
    harness.rest()
    assert harness.token_ids["paused", 0] == harness.token_ids["other", 0]


@pytest.mark.parametrize("prompt_length", [3, 4, 5, 8, 21])
def test_a_resumed_output_is_found_too(prompt_length: int) -> None:
    sampling = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    harness = Harness()
    harness.add("whole", PROMPT[:prompt_length], sampling=sampling)
    harness.rest()
    output = harness.token_ids["whole", 0]
    harness.add(
        "resumed", PROMPT[:prompt_length], sampling=sampling, output_token_ids=tuple(output[:6])
    )
    harness.rest()
    assert harness.token_ids["resumed", 0] == output[6:]
    assert harness.usage("resumed").cached_tokens == min(
        prompt_length, (prompt_length + 5) // 4 * 4
    )
