import pytest

from engine_worker.core.engine import Engine
from engine_worker.errors import EngineError
from engine_worker.python_api.llm import LLM
from protocol.wire.messages import SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


def make_llm() -> LLM:
    runner = DeterministicFakeRunner(lambda token_ids: token_ids[0] + len(token_ids))
    engine = Engine(runner, byte_level_tokenizer(), vocab_size=258, max_model_len=100)
    return LLM.of_engine(engine)


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
