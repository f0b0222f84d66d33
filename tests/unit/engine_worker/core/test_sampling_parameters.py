"""Each sampling parameter through the whole engine: an answer that shows that it is honoured."""

from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.cache_group import CacheGroup
from engine_worker.core.engine import Engine
from protocol.errors import ErrorCode
from protocol.wire.messages import Failure, SamplingParams, TokenLogprobs
from tests.fakes.tiny_decoder import GreedyReference
from tests.fakes.tiny_engine import (
    MAX_MODEL_LEN,
    PROMPT,
    Answer,
    answer_of,
    engine_on,
    generate,
    run_all,
    tiny_engine_weights,
)
from tests.fakes.tiny_tokenizers import SPECIAL_TOKENS, byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
LETTERS = tuple(range(ord("a"), ord("z") + 1))
START, EOS = (TOKENIZER.encode(text, add_special_tokens=False)[0] for text in SPECIAL_TOKENS[:2])
A, B = ord("A"), ord("B")
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
RANDOM = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, seed=3)


@pytest.fixture
def engine(bucket_runner: JaxModelRunner) -> Engine:
    return engine_on(bucket_runner, TOKENIZER)


def changed(sampling: SamplingParams, **changes: Any) -> SamplingParams:
    return msgspec.structs.replace(sampling, **changes)


def test_temperature_moves_away_from_the_best_tokens(engine: Engine) -> None:
    greedy = answer_of(engine, GREEDY)
    assert answer_of(engine, changed(RANDOM, temperature=2.0)).token_ids != greedy.token_ids
    assert answer_of(engine, changed(RANDOM, temperature=1e-6)).token_ids == greedy.token_ids


@pytest.mark.parametrize(
    "only_the_best", [{"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"min_p": 1.0}]
)
def test_a_filter_that_leaves_one_token_is_greedy(
    engine: Engine, only_the_best: dict[str, Any]
) -> None:
    hot = changed(RANDOM, temperature=2.0, **only_the_best)
    assert answer_of(engine, hot).token_ids == answer_of(engine, GREEDY).token_ids


def test_a_seed_and_a_choice_decide_about_the_draws(engine: Engine) -> None:
    hot = changed(RANDOM, temperature=2.0)
    first = answer_of(engine, hot).token_ids
    assert answer_of(engine, hot).token_ids == first
    assert answer_of(engine, changed(hot, seed=4)).token_ids != first
    assert answer_of(engine, hot, choice=1).token_ids != first


def test_a_bias_brings_a_token_in_or_keeps_it_out(engine: Engine) -> None:
    best = answer_of(engine, GREEDY).token_ids[0]
    assert set(answer_of(engine, changed(GREEDY, logit_bias=((A, 100.0),))).token_ids) == {A}
    assert best not in answer_of(engine, changed(GREEDY, logit_bias=((best, -100.0),))).token_ids


def test_penalties_turn_an_answer_away_from_what_it_said(engine: Engine) -> None:
    """A is far ahead of B: each penalty brings B in when it has grown enough."""
    ahead = changed(GREEDY, logit_bias=((A, 100.0), (B, 85.0)))
    assert set(answer_of(engine, ahead).token_ids) == {A}
    assert B in answer_of(engine, changed(ahead, frequency_penalty=2.0)).token_ids
    assert answer_of(engine, changed(ahead, repetition_penalty=2.0)).token_ids[:2] == [A, B]
    in_prompt = answer_of(engine, changed(ahead, repetition_penalty=2.0), prompt_token_ids=(A,))
    assert in_prompt.token_ids[0] == B
    letters = changed(GREEDY, allowed_token_ids=LETTERS)
    plain, penalised = (
        answer_of(engine, changed(letters, presence_penalty=penalty)) for penalty in (0.0, 2.0)
    )
    assert len(set(penalised.token_ids)) > len(set(plain.token_ids))


def test_only_allowed_tokens_come(engine: Engine) -> None:
    answer = answer_of(engine, changed(RANDOM, temperature=2.0, allowed_token_ids=LETTERS))
    assert len(answer.token_ids) == 12
    assert set(answer.token_ids) <= set(LETTERS)


def test_a_bad_word_of_any_length_is_never_completed(engine: Engine) -> None:
    letters = changed(GREEDY, allowed_token_ids=LETTERS)
    text = answer_of(engine, letters).text
    for word in (text[3], text[2:4], text[4:9]):
        without = answer_of(engine, changed(letters, bad_words=(word,)))
        assert word not in without.text
        assert without.text[: text.index(word)] == text[: text.index(word)]


def test_an_answer_cannot_end_before_min_tokens_however_many_ends_there_are(
    engine: Engine,
) -> None:
    eager = SamplingParams(temperature=0.0, max_tokens=9, logit_bias=((EOS, 100.0),))
    assert answer_of(engine, eager).token_ids == [EOS]
    later = answer_of(engine, changed(eager, min_tokens=4))
    assert (len(later.token_ids), later.token_ids[-1]) == (5, EOS)
    many = changed(eager, min_tokens=4, stop_token_ids=tuple(range(128)))
    assert not set(answer_of(engine, many).token_ids[:4]) & {*range(128), EOS}


def test_ignore_eos_goes_on_to_max_tokens(engine: Engine) -> None:
    eager = SamplingParams(temperature=0.0, max_tokens=6, logit_bias=((EOS, 100.0),))
    assert answer_of(engine, eager).finish_reason == "stop"
    answer = answer_of(engine, changed(eager, ignore_eos=True))
    assert (answer.token_ids, answer.finish_reason) == ([EOS] * 6, "length")


def test_without_max_tokens_the_context_is_filled(engine: Engine) -> None:
    answer = answer_of(engine, changed(GREEDY, max_tokens=None))
    assert len(answer.token_ids) == MAX_MODEL_LEN - len(PROMPT)
    assert answer.finish_reason == "length"


def test_stops_end_the_text_before_or_after_what_was_found(engine: Engine) -> None:
    letters = changed(GREEDY, allowed_token_ids=LETTERS)
    text = answer_of(engine, letters).text
    place = text.index(text[3:5])
    stopped = changed(letters, stop=(text[3:5],))
    assert answer_of(engine, stopped).text == text[:place]
    shown = answer_of(engine, changed(stopped, include_stop_str_in_output=True))
    assert shown.text == text[: place + 2]
    by_id = answer_of(engine, changed(letters, stop_token_ids=(ord(text[3]),)))
    assert by_id.text == text[: text.index(text[3])]


def test_special_tokens_are_text_only_when_they_are_not_skipped(engine: Engine) -> None:
    sampling = changed(GREEDY, max_tokens=2, logit_bias=((START, 100.0),))
    assert answer_of(engine, sampling).text == ""
    assert answer_of(engine, changed(sampling, skip_special_tokens=False)).text == (
        SPECIAL_TOKENS[0] * 2
    )


@cache
def reference() -> GreedyReference:
    return GreedyReference(tiny_engine_weights(TOKENIZER), MAX_MODEL_LEN)


def assert_scored(scores: list[TokenLogprobs], token_ids: list[int], first: int, num: int) -> None:
    """Against the dense reference, teacher-forced; `token_ids[first:]` is what was scored."""
    logits = reference().logits(token_ids)
    exact = logits.astype(np.float64)
    logprobs = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    assert [one.chosen.token_id for one in scores] == token_ids[first:]
    for place, one in enumerate(scores, start=first - 1):
        row = logprobs[place]
        assert one.chosen.logprob == pytest.approx(row[one.chosen.token_id], abs=1e-4)
        assert one.chosen.rank == 1 + np.sum(row > row[one.chosen.token_id])
        assert one.chosen.data == TOKENIZER.token_bytes(one.chosen.token_id)
        assert [top.token_id for top in one.top] == np.argsort(-row)[:num].tolist()
        assert [top.rank for top in one.top] == list(range(1, num + 1))


@pytest.mark.parametrize("num_logprobs", [0, 5])
def test_each_output_token_comes_with_its_log_probability(
    engine: Engine, num_logprobs: int
) -> None:
    sampling = changed(RANDOM, temperature=1.7, presence_penalty=1.0, logprobs=num_logprobs)
    answer = answer_of(engine, sampling)
    assert_scored(answer.logprobs, [*PROMPT, *answer.token_ids], len(PROMPT), num_logprobs)
    unscored = changed(sampling, logprobs=None)
    assert answer_of(engine, unscored).token_ids == answer.token_ids


@pytest.mark.parametrize("length", [1, 2, 21, 33, 60])
def test_each_token_of_the_prompt_but_the_first_comes_with_its_log_probability(
    engine: Engine, length: int
) -> None:
    prompt = tuple((3 * PROMPT)[:length])
    sampling = changed(GREEDY, max_tokens=2, prompt_logprobs=3, logprobs=0)
    # The second time its blocks are cached; the scores come all the same.
    for _ in range(2):
        answer = answer_of(engine, sampling, prompt_token_ids=prompt)
        assert_scored(answer.prompt_logprobs, list(prompt), 1, 3)
        assert len(answer.logprobs) == 2


def test_a_prompt_that_is_preempted_is_scored_once(
    bucket_runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tuple(CacheGroup(11, group.reach) for group in bucket_runner.cache_groups)
    monkeypatch.setattr(JaxModelRunner, "cache_groups", property(lambda runner: groups))
    engine = engine_on(bucket_runner, TOKENIZER)
    sampling = changed(GREEDY, max_tokens=40, prompt_logprobs=1, allowed_token_ids=LETTERS)
    for name in ("a", "b"):
        engine.add("g", generate(name, sampling))
    answers = run_all(engine)
    assert engine.num_preemptions > 0
    for answer in answers.values():
        assert answer.finish_reason == "length"
        assert [one.chosen.token_id for one in answer.prompt_logprobs] == list(PROMPT[1:])


RESUMED = {
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    "limits": {"min_tokens": 9, "stop_token_ids": LETTERS[:13], "ignore_eos": False},
    "bias": {"logit_bias": tuple((letter, letter % 7) for letter in LETTERS), "top_p": 0.9},
}


@pytest.mark.parametrize("parameters", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(
    engine: Engine, parameters: dict[str, Any]
) -> None:
    sampling = changed(
        RANDOM, temperature=1.5, logprobs=2, allowed_token_ids=LETTERS, max_tokens=14, **parameters
    )
    whole = answer_of(engine, sampling)
    for num_kept in (1, 5, 8, 13):
        kept = whole.token_ids[:num_kept]
        if num_kept >= len(whole.token_ids):
            continue
        rest = answer_of(
            engine,
            sampling,
            attempt=2,
            output_token_ids=tuple(kept),
            num_sent_characters=num_kept,
        )
        assert rest.token_ids == whole.token_ids[num_kept:]
        assert rest.text == whole.text[num_kept:]
        assert rest.finish_reason == whole.finish_reason
        assert [one.chosen.token_id for one in rest.logprobs] == rest.token_ids


def test_a_bad_word_that_began_before_the_break_is_not_completed_after_it(
    engine: Engine,
) -> None:
    letters = changed(GREEDY, allowed_token_ids=LETTERS)
    text = answer_of(engine, letters).text
    sampling = changed(letters, bad_words=(text[:5],))
    whole = answer_of(engine, sampling)
    assert whole.token_ids[:4] == list(text[:4].encode())
    rest = answer_of(engine, sampling, attempt=1, output_token_ids=tuple(whole.token_ids[:4]))
    assert rest.token_ids == whole.token_ids[4:]
    assert whole.text[4] != text[4]


def test_parameters_that_leave_no_token_fail_their_own_request(engine: Engine) -> None:
    """What was allowed at first is forbidden after one token."""
    hopeless = changed(GREEDY, allowed_token_ids=(A,), bad_words=("AA",))
    engine.add("g", generate("hopeless", hopeless))
    engine.add("g", generate("other", GREEDY))
    answers: dict[str, Answer] = run_all(engine)
    end = answers["hopeless"].end
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.INVALID_REQUEST
    assert "leave no token" in end.message
    assert answers["hopeless"].token_ids == [A]
    assert len(answers["other"].token_ids) == 12
