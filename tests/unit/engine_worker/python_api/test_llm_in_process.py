import pytest

from engine_worker.core.engine import Engine
from engine_worker.errors import EngineError
from engine_worker.python_api.llm import LLM
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.preparation import PromptPreparer
from protocol.wire.messages import SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


def make_llm(*, reads_text: bool = False) -> LLM:
    runner = DeterministicFakeRunner(lambda token_ids: token_ids[0] + len(token_ids))
    tokenizer = byte_level_tokenizer()
    engine = Engine(runner, tokenizer, vocab_size=258, max_model_len=100)
    preparer = PromptPreparer(
        tokenizer,
        ChatTemplate(tokenizer, "m"),
        vocab_size=tokenizer.num_tokens,
        max_model_len=100,
        block_size=4,
    )
    return LLM.of_engine(engine, preparer if reads_text else None)


def test_each_prompt_gets_its_own_output_in_order() -> None:
    llm = make_llm()
    prompts = [[index] for index in range(10)]
    expected = [[index + 1, index + 2, index + 3] for index in range(10)]
    assert llm.generate_token_ids(prompts, GREEDY) == expected
    assert llm.generate_token_ids(prompts[:2], GREEDY) == expected[:2]


def test_closing_leaves_nothing_running_behind() -> None:
    runner = DeterministicFakeRunner(lambda token_ids: 1)
    engine = Engine(runner, byte_level_tokenizer(), vocab_size=258, max_model_len=100)
    with LLM.of_engine(engine):
        assert not runner.is_closed
    assert runner.is_closed


def test_a_refused_prompt_raises_and_the_next_call_works() -> None:
    llm = make_llm()
    with pytest.raises(EngineError, match="empty"):
        llm.generate_token_ids([[1], []], GREEDY)
    assert llm.generate_token_ids([[1]], GREEDY) == [[2, 3, 4]]


def test_calls_that_interleave_lose_nothing_of_each_other() -> None:
    """A step computes for all of them; what it told of a stream that waited was dropped."""
    llm = make_llm(reads_text=True)
    sampling = SamplingParams(temperature=0.0, max_tokens=5)
    alone = [list(llm.stream([start], sampling)) for start in (65, 75)]
    first, second = llm.stream([65], sampling), llm.stream([75], sampling)
    pieces = [[next(first)], [next(second)]]
    assert llm.generate_token_ids([[1]], GREEDY) == [[2, 3, 4]]
    pieces[0] += first
    pieces[1] += second
    assert ["".join(one) for one in pieces] == ["".join(one) for one in alone]
    assert all("".join(one) for one in pieces)


def test_a_call_ends_with_its_own_choices() -> None:
    """It doesn't wait for a stream that somebody has not read to its end."""
    llm = make_llm(reads_text=True)
    stream = llm.stream([65], SamplingParams(temperature=0.0, max_tokens=50))
    text = next(stream)
    llm.generate_token_ids([[1]], GREEDY)
    assert llm._engine is not None
    assert llm._engine.has_work()
    stream.close()  # type: ignore[attr-defined]
    assert text
    assert not llm._engine.has_work()
