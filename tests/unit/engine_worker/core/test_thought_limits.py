"""Reasoning is ended by the engine: whatever a step computes, streamed, drafted or resumed."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine import Engine
from protocol.wire.messages import Extend, Finished, SamplingParams, Thought
from tests.fakes.fake_runner import DeterministicFakeRunner, scripted_tokens
from tests.fakes.tiny_decoder import tiny_hybrid_spec, tiny_spec, tiny_weights
from tests.fakes.tiny_engine import PROMPT, Answer, engine_on, generate, run_all
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = TOKENIZER.num_tokens
THOUGHT = Thought(begins="open", starts=("<t>",), ends=("</t>",), closing="</t>")
CLOSING = TOKENIZER.encode("</t>", add_special_tokens=False)
MUSING = TOKENIZER.encode("so and so and so and so", add_special_tokens=False)
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
BUDGET = 6


def fake_engine(**options: Any) -> Engine:
    runner = DeterministicFakeRunner(
        scripted_tokens(len(PROMPT), MUSING * 4), **{"num_blocks": 100, **options}
    )
    return Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=100)


def answer(engine: Engine, sampling: SamplingParams = GREEDY, **changes: Any) -> Answer:
    command = {"thought": THOUGHT, "max_thought_tokens": BUDGET, **changes}
    engine.add("g", generate("r", sampling, **command))
    return run_all(engine)["r"]


def test_the_marker_stands_in_the_output_where_the_tokens_are_used_up() -> None:
    told = answer(fake_engine())
    assert told.token_ids[BUDGET : BUDGET + len(CLOSING)] == CLOSING
    assert told.text == TOKENIZER.decode(told.token_ids)
    assert isinstance(told.end, Finished)
    assert told.end.usage.completion_tokens == len(told.token_ids) == 20


def test_without_a_limit_the_same_engine_writes_no_marker() -> None:
    told = answer(fake_engine(), thought=None)
    assert told.token_ids == (MUSING * 4)[:20]


def test_a_limit_of_none_closes_before_the_first_draw() -> None:
    assert answer(fake_engine(), max_thought_tokens=0).token_ids[: len(CLOSING)] == CLOSING


@pytest.mark.parametrize("max_new_tokens", [1, 4, 16])
def test_steps_of_several_tokens_end_at_the_limit(max_new_tokens: int) -> None:
    plain = answer(fake_engine())
    told = answer(fake_engine(max_new_tokens=max_new_tokens), is_streaming=False)
    assert told.token_ids == plain.token_ids


REOPENING = Thought(begins="marked", starts=("<t>",), ends=("</t>",), closing="</t>", reopens=True)
SAID = "<t>so and so " + "and so and so and so and so and so <t>" + "and so " * 6


def said(mode: SpeculationMode, **options: Any) -> tuple[Answer, DeterministicFakeRunner]:
    """An answer whose reasoning is used up, and begins again."""
    script = scripted_tokens(len(PROMPT), TOKENIZER.encode(SAID, add_special_tokens=False))
    runner = DeterministicFakeRunner(script, num_blocks=100, decode_rows=(1, 2, 4, 8), **options)
    clock = itertools.count()
    engine = Engine(
        runner,
        TOKENIZER,
        vocab_size=VOCAB_SIZE,
        max_model_len=100,
        speculation=mode,
        clock=lambda: next(clock) / 1000,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=70, ignore_eos=True)
    return answer(engine, sampling, thought=REOPENING, is_streaming=False), runner


@pytest.mark.parametrize(
    ("mode", "max_new_tokens"),
    [(SpeculationMode.OFF, 8), (SpeculationMode.ALWAYS, 1), (SpeculationMode.ALWAYS, 8)],
)
def test_behind_reasoning_that_is_used_up_steps_have_several_tokens_again(
    mode: SpeculationMode, max_new_tokens: int
) -> None:
    """It may begin again, so each token had a step of its own for the rest of the answer."""
    plain, one_by_one = said(SpeculationMode.OFF)
    # What begins again is closed at once, wherever in a step it was drawn.
    assert plain.text.count("<t></t>") == 1
    told, runner = said(mode, max_new_tokens=max_new_tokens)
    assert told.token_ids == plain.token_ids
    assert len(runner.batches) < len(one_by_one.batches) / 2


def test_behind_reasoning_that_is_used_up_the_next_step_is_begun_again() -> None:
    plain, _ = said(SpeculationMode.OFF)
    told, runner = said(SpeculationMode.OFF, runs_ahead=True)
    assert told.token_ids == plain.token_ids
    num_begun = sum(bool(batch.next_rows) for batch in runner.batches)
    assert num_begun > len(runner.batches) / 2


def test_with_log_probabilities_the_marker_is_drawn_and_has_its_own(
    bucket_runner: JaxModelRunner,
) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logprobs=1)
    told = answer(engine_on(bucket_runner), sampling)
    assert told.token_ids[BUDGET : BUDGET + len(CLOSING)] == CLOSING
    assert [one.chosen.token_id for one in told.logprobs] == told.token_ids


def test_the_marker_may_be_written_among_allowed_tokens() -> None:
    allowed = tuple(sorted({*MUSING}))
    sampling = SamplingParams(
        temperature=0.0, max_tokens=20, ignore_eos=True, allowed_token_ids=allowed
    )
    told = answer(fake_engine(), sampling)
    assert told.token_ids[BUDGET : BUDGET + len(CLOSING)] == CLOSING


@pytest.mark.parametrize("num_resumed", range(14))
def test_it_goes_on_elsewhere_as_it_would_have_here(num_resumed: int) -> None:
    whole = answer(fake_engine()).token_ids
    told = answer(fake_engine(), attempt=1, output_token_ids=tuple(whole[:num_resumed]))
    assert whole[:num_resumed] + told.token_ids == whole


def test_the_marker_waits_for_a_lease_that_ends_within_it() -> None:
    engine = fake_engine()
    command = generate(
        "r", GREEDY, thought=THOUGHT, max_thought_tokens=BUDGET, lease_tokens=BUDGET + 1
    )
    engine.add("g", command)
    first = run_all(engine).get("r", Answer())
    engine.extend("g", Extend(request_id="r", choice=0, attempt=0, lease_tokens=20))
    rest = run_all(engine)["r"]
    assert first.token_ids + rest.token_ids == answer(fake_engine()).token_ids


def test_a_wrong_limit_refuses_the_choice() -> None:
    engine = fake_engine()
    engine.add("g", generate("r", GREEDY, thought=THOUGHT, max_thought_tokens=-1))
    end = run_all(engine)["r"].end
    assert end is not None
    assert not isinstance(end, Finished)
    assert end.param == "thought"


@pytest.mark.parametrize("mode", [SpeculationMode.OFF, SpeculationMode.ALWAYS])
@pytest.mark.parametrize("is_streaming", [True, False])
def test_a_real_decoder_sees_the_marker_in_its_cache(
    bucket_runner: JaxModelRunner, mode: SpeculationMode, is_streaming: bool
) -> None:
    """What follows the marker is what follows a prompt with the same tokens before it."""
    sampling = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    engine = engine_on(bucket_runner, speculation=mode)
    told = answer(engine, sampling, is_streaming=is_streaming)
    assert told.token_ids[BUDGET : BUDGET + len(CLOSING)] == CLOSING
    cut = BUDGET + len(CLOSING)
    again = engine_on(bucket_runner)
    rest = SamplingParams(temperature=0.0, max_tokens=24 - cut, ignore_eos=True)
    again.add("g", generate("s", rest, prompt_token_ids=(*PROMPT, *told.token_ids[:cut])))
    assert told.token_ids[cut:] == run_all(again)["s"].token_ids


@pytest.mark.long
@pytest.mark.parametrize("mode", [SpeculationMode.OFF, SpeculationMode.ALWAYS])
@pytest.mark.parametrize("spec", [tiny_spec(), tiny_hybrid_spec()], ids=["plain", "recurrent"])
def test_a_real_decoder_goes_on_as_if_nothing_had_been_dropped(
    monkeypatch: pytest.MonkeyPatch, spec: DecoderSpec, mode: SpeculationMode
) -> None:
    runner = JaxModelRunner.create(
        tiny_weights(spec=replace(spec, vocab_size=VOCAB_SIZE)),
        num_blocks=60,
        max_model_len=80,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=32,
    )

    def told(sampling: SamplingParams, thought: Thought | None) -> list[int]:
        engine = engine_on(runner, speculation=mode)
        options = {"thought": thought, "max_thought_tokens": 0, "is_streaming": False}
        return answer(engine, sampling, **options).token_ids

    num_closed = 0
    for seed in range(4):
        sampling = SamplingParams(temperature=0.4, seed=seed, max_tokens=50, ignore_eos=True)
        # What the model says most begins its reasoning, which has no token left.
        said = Counter(one for one in told(sampling, None)[3:] if 32 < one < 127)
        start = chr(said.most_common(1)[0][0])
        thought = Thought(
            begins="marked", starts=(start,), ends=("</t>",), closing="</t>", reopens=True
        )
        found = told(sampling, thought)
        num_closed += bytes(one for one in found if one < 256).count(b"</t>")
        with monkeypatch.context() as patch:
            patch.setattr("engine_worker.core.decoding.decode_plan.MAX_DRAFT_TOKENS", 0)
            assert told(sampling, thought) == found
    assert num_closed >= 4
