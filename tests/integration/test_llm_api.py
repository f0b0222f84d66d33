"""`from engine_worker import LLM`: texts, conversations, streams and vectors without a server."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from engine_worker import LLM, Grammar, SamplingParams
from engine_worker.errors import EngineError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(
        deterministic=True,
        max_num_seqs=4,
        max_model_len=128,
        kv_memory_bytes=2**24,
        pooling="mean",
        compile_cache_dir=tmp_path_factory.mktemp("compile"),
    ) as llm:
        yield llm


def test_texts_and_token_ids_are_continued_in_order(llm: LLM) -> None:
    outputs = llm.generate(["One, two,", "Red, green,", "One, two,"], GREEDY)
    assert [len(output.completions) for output in outputs] == [1, 1, 1]
    assert outputs[0].text == outputs[2].text
    assert outputs[0].text != outputs[1].text
    by_ids = llm.generate(outputs[0].prompt_token_ids, GREEDY)
    assert by_ids[0].text == outputs[0].text
    assert by_ids[0].completions[0].finish_reason in ("stop", "length")


def test_choices_differ_and_are_repeated_by_their_seed(llm: LLM) -> None:
    sampling = SamplingParams(temperature=1.5, seed=4, max_tokens=10, ignore_eos=True)
    (first,) = llm.generate("Tell me", sampling, n=3)
    (again,) = llm.generate("Tell me", sampling, n=3)
    assert [one.index for one in first.completions] == [0, 1, 2]
    assert len({one.text for one in first.completions}) == 3
    assert [one.text for one in first.completions] == [one.text for one in again.completions]


def test_without_parameters_each_prompt_gets_a_seed_of_its_own(llm: LLM) -> None:
    assert llm.sampling().seed != llm.sampling().seed
    assert llm.sampling(seed=3, top_k=5).seed == 3
    # What the checkpoint recommends, unless something else is asked for.
    assert llm.sampling(temperature=0.25).temperature == 0.25
    assert llm.generate("Hello")[0].completions


def test_a_conversation_is_answered_and_streamed_alike(llm: LLM) -> None:
    whole = llm.chat(HELLO, GREEDY)
    pieces = list(llm.stream(HELLO, GREEDY))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_a_stream_that_is_closed_leaves_nothing_running(llm: LLM) -> None:
    stream = llm.stream("One, two,", SamplingParams(max_tokens=100, ignore_eos=True))
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.generate("Hello", GREEDY)[0].completions


def test_logprobs_and_a_grammar_are_honoured(llm: LLM) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, prompt_logprobs=0)
    (output,) = llm.generate("One, two,", sampling)
    assert len(output.completions[0].logprobs) == len(output.completions[0].token_ids)
    assert len(output.completions[0].logprobs[0].top) == 2
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids) - 1
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    grammar = Grammar(
        kind="json_schema", source=json.dumps({**schema, "additionalProperties": False})
    )
    held = llm.chat(HELLO, SamplingParams(seed=1, max_tokens=60), grammar=grammar)
    assert isinstance(json.loads(held.text)["a"], bool)


def test_a_decoder_makes_vectors_when_it_is_told_how(llm: LLM) -> None:
    vectors = llm.embed(["a cat", "a cat", "the stock market fell"])
    assert vectors.shape[0] == 3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert vectors[0] @ vectors[2] < 0.999
    assert llm.embed("a cat", dimensions=8).shape == (1, 8)
    with pytest.raises(EngineError, match="128"):
        llm.embed("word " * 300)
    assert llm.embed("word " * 300, truncate=True).shape[0] == 1


@pytest.mark.parametrize(
    ("prompt", "sampling", "named"),
    [
        ("", GREEDY, "empty"),
        ("word " * 200, GREEDY, "128"),
        ("x", SamplingParams(temperature=-1.0), "temperature"),
    ],
)
def test_what_is_refused_raises_with_the_reason(
    llm: LLM, prompt: str, sampling: SamplingParams, named: str
) -> None:
    with pytest.raises(EngineError, match=named):
        llm.generate(["fine", prompt], sampling)
    assert llm.generate("fine", GREEDY)[0].completions


def test_progress_is_shown_when_it_is_wanted(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["One", "Two"], GREEDY)
    assert not capsys.readouterr().err
    llm.generate(["One", "Two"], GREEDY, progress=True)
    assert "2/2" in capsys.readouterr().err
