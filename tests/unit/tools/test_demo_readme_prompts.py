"""The shipped weights answer README's prompts, exactly and every time."""

import pytest

from engine_worker.demo import demo_model_path
from tools.demo_model.packing import ChatFormat
from tools.demo_model.readme_prompts import README_PROMPTS, WELL_KNOWN_CITIES
from tools.eval_demo_model import generate_with_training_code, print_wrong, readme_score


@pytest.mark.long
def test_the_shipped_weights_answer_every_readme_prompt() -> None:
    chat_format = ChatFormat(demo_model_path())
    generate = generate_with_training_code(demo_model_path(), chat_format)
    result = readme_score(generate, chat_format, on_wrong=print_wrong)
    assert result.num_right == result.num_asked == len(README_PROMPTS)


def test_twenty_cities_and_four_other_prompts_are_pinned() -> None:
    assert len(set(WELL_KNOWN_CITIES)) == 20
    assert {prompt.name for prompt in README_PROMPTS} == {
        "weather",
        "sum",
        "greeting",
        "capital",
        "count",
    }


@pytest.mark.parametrize("prompt", README_PROMPTS, ids=lambda prompt: prompt.question)
def test_each_prompt_promises_an_answer_or_a_call(prompt: object) -> None:
    answer, call = getattr(prompt, "answer", None), getattr(prompt, "call", None)
    assert (answer is None) != (call is None)
