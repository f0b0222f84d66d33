"""The bench counts what it asked for."""

import pytest

from engine_worker.bench import main, measure
from engine_worker.core.engine import Engine
from engine_worker.python_api.llm import LLM
from tests.fakes.fake_runner import DeterministicFakeRunner
from tests.fakes.tiny_tokenizers import byte_level_tokenizer


def test_prefill_and_decode_are_measured_apart() -> None:
    runner = DeterministicFakeRunner(lambda token_ids: 7)
    engine = Engine(runner, byte_level_tokenizer(), vocab_size=258, max_model_len=64)
    llm = LLM.of_engine(engine)
    speed = measure(llm, 258, 3, prompt_tokens=8, new_tokens=4, repeats=1)
    assert speed.concurrency == 3
    assert speed.prefill_tokens_per_s > 0
    assert speed.decode_tokens_per_s > 0


def test_a_folder_without_a_model_is_one_line(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--concurrency", "1"]) == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--concurrency", "--repeats", "--prompt-tokens"])
def test_numbers_below_one_are_refused(option: str) -> None:
    with pytest.raises(SystemExit):
        main([option, "0"])
