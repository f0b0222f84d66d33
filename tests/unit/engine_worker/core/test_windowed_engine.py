"""Blocks behind windows are freed while the real engine runs, and no answer shows it."""

from collections.abc import Iterator
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from msgspec import structs

from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.cache_group import NO_BLOCK
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine import Engine
from protocol.wire.messages import Finished, SamplingParams
from tests.fakes.packed_decoder import packed, why_not_native
from tests.fakes.tiny_decoder import GreedyReference, tiny_spec, tiny_weights
from tests.fakes.tiny_engine import Answer, answer_of, generate, run_all
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
BLOCK_SIZE = 8
CHUNK = 16
MAX_MODEL_LEN = 160
NUM_TOKENS = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
COMMON = tuple(range(3, 90))
PROMPTS = (COMMON, (*COMMON, 7, 7, 7), (*COMMON[:50], 5), tuple(range(80, 200)))
# A request of 160 tokens has 20 blocks where all tokens are seen, and 6 behind the windows: those
# of 20 tokens before a token, and of a chunk.
CASES = {
    "all windows on xla": ((20, 13), "xla", (13,)),
    "mixed on xla": ((None, 20), "xla", (44, 13)),
    "mixed on cpu_native": ((20, None, 13), "cpu_native", (44, 13)),
}


@cache
def weights_of(windows: tuple[int | None, ...]) -> DecoderWeights:
    return tiny_weights(spec=tiny_spec(windows, vocab_size=TOKENIZER.num_tokens))


@cache
def expected(windows: tuple[int | None, ...], prompt: tuple[int, ...]) -> list[int]:
    """What dense attention with masks chooses, token by token."""
    reference = GreedyReference(weights_of(windows), MAX_MODEL_LEN)
    return reference.continue_greedily(prompt, NUM_TOKENS)


class Harness:
    """An engine whose cache holds NaN wherever nothing was stored."""

    def __init__(self, case: str) -> None:
        self.windows, backend, self.num_blocks = CASES[case]
        if backend == "cpu_native" and why_not_native():
            pytest.skip(why_not_native())
        self.runner = JaxModelRunner.create(
            packed(weights_of(self.windows), backend, "float32", BLOCK_SIZE),
            num_blocks=self.num_blocks,
            max_model_len=MAX_MODEL_LEN,
            block_size=BLOCK_SIZE,
            max_num_seqs=4,
            max_num_batched_tokens=CHUNK,
            speculates=True,
        )

    def engine(self, speculation: SpeculationMode = SpeculationMode.OFF) -> Engine:
        self.runner.reset()
        spoiled = jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), self.runner.state.cache)
        self.runner._state = self.runner._state._replace(cache=spoiled)
        return Engine(
            self.runner,
            TOKENIZER,
            vocab_size=TOKENIZER.num_tokens,
            max_model_len=MAX_MODEL_LEN,
            speculation=speculation,
        )

    def is_right(self, prompt: tuple[int, ...], answer: Answer, num_known: int = 0) -> bool:
        assert isinstance(answer.end, Finished), answer.end
        return answer.token_ids == expected(self.windows, prompt)[num_known:]


@pytest.fixture(
    params=[
        pytest.param("all windows on xla", marks=pytest.mark.long),
        pytest.param("mixed on xla", marks=pytest.mark.long),
        "mixed on cpu_native",
    ],
    scope="module",
)
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    harness = Harness(request.param)
    yield harness
    harness.runner.close()


def test_requests_that_share_and_take_each_others_blocks_answer_as_alone(harness: Harness) -> None:
    engine = harness.engine()
    for index, prompt in enumerate(PROMPTS):
        engine.add("g", generate(str(index), GREEDY, prompt_token_ids=prompt))
    answers = run_all(engine)
    assert all(harness.is_right(prompt, answers[str(i)]) for i, prompt in enumerate(PROMPTS))


def test_requests_that_outgrow_the_blocks_are_preempted_and_answer_as_alone(
    harness: Harness,
) -> None:
    engine = harness.engine()
    short = [(*COMMON[:5], index) for index in range(4)]
    # One token a step: what computes several may end before the others want its blocks.
    step_by_step = structs.replace(GREEDY, logit_bias=((0, 0.0),))
    for index, prompt in enumerate(short):
        engine.add("g", generate(str(index), step_by_step, prompt_token_ids=prompt))
    answers = run_all(engine)
    # Each of them comes to four blocks behind windows, of which there are thirteen.
    assert engine.num_preemptions > 0
    assert all(harness.is_right(prompt, answers[str(i)]) for i, prompt in enumerate(short))


def test_a_beginning_is_found_after_its_early_blocks_were_freed(harness: Harness) -> None:
    engine = harness.engine()
    assert harness.is_right(COMMON, answer_of(engine, GREEDY, prompt_token_ids=COMMON))
    again = answer_of(
        engine, GREEDY, prompt_token_ids=(*COMMON, *expected(harness.windows, COMMON))
    )
    assert isinstance(again.end, Finished)
    # The last full block before the last token.
    assert again.end.usage.cached_tokens == 120
    long = answer_of(engine, GREEDY, prompt_token_ids=COMMON)
    assert harness.is_right(COMMON, long)


def test_an_answer_goes_on_in_another_engine(harness: Harness) -> None:
    known = tuple(expected(harness.windows, COMMON)[:17])
    engine = harness.engine()
    rest = answer_of(engine, GREEDY, prompt_token_ids=COMMON, output_token_ids=known)
    assert harness.is_right(COMMON, rest, len(known))


@pytest.mark.parametrize("is_streaming", [True, False])
def test_drafts_and_look_ahead_change_nothing(harness: Harness, is_streaming: bool) -> None:
    engine = harness.engine(SpeculationMode.ALWAYS if is_streaming else SpeculationMode.OFF)
    for index, prompt in enumerate(PROMPTS[:2]):
        engine.add(
            "g",
            generate(str(index), GREEDY, prompt_token_ids=prompt, is_streaming=is_streaming),
        )
    answers = run_all(engine)
    assert all(harness.is_right(prompt, answers[str(i)]) for i, prompt in enumerate(PROMPTS[:2]))


def test_a_request_holds_no_more_than_its_window_and_a_chunk(harness: Harness) -> None:
    engine = harness.engine()
    engine.add("g", generate("r", GREEDY, prompt_token_ids=PROMPTS[3]))
    (choice,) = engine._scheduler.choices()
    most = 0
    while engine.has_work():
        engine.step()
        table = engine._scheduler.tables(choice)[-1]
        most = max(most, sum(block_id != NO_BLOCK for block_id in table))
    assert most == 6
