"""Scoring: exact answers, intervals, and the table in the document."""

from pathlib import Path

import pytest

from engine_worker.demo import demo_model_path
from tools.demo_model.conversation import Conversation, Example, assistant, assistant_calls, user
from tools.demo_model.grammar import CATEGORIES
from tools.demo_model.packing import ChatFormat
from tools.demo_model.scoring import Score, draw_examples, expected_text, score
from tools.eval_demo_model import TABLE_BEGIN, TABLE_END, table, together, write_table


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return ChatFormat(demo_model_path())


def test_the_interval_is_wilsons() -> None:
    low, high = Score("talk", "closed", 81, 263).interval()
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Score("talk", "closed", 500, 500).interval() == pytest.approx((0.99237, 1.0), abs=1e-4)


def test_calls_are_expected_letter_for_letter() -> None:
    message = assistant_calls([("f", {"a": 1, "b": True}), ("g", {})])
    assert expected_text(message) == (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": true}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )


def test_only_exact_answers_count(chat_format: ChatFormat) -> None:
    prompt = Conversation((user("Hi"),))
    examples = [Example("talk", prompt, assistant(text)) for text in ("Hello!", "Hello", "Bye")]
    wrong: list[str] = []

    def generate(prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        assert max_tokens > 2
        return [chat_format.tokenizer.encode("Hello!").ids for _ in prompts]

    result = score(
        generate,
        chat_format,
        examples,
        "closed",
        batch_size=2,
        on_wrong=lambda item, text: wrong.append(f"{item.expected['content']} {text}"),
    )
    assert (result.num_right, result.num_asked) == (1, 3)
    assert wrong == ["Hello Hello!", "Bye Hello!"]


def test_examples_follow_from_the_seed() -> None:
    first = draw_examples("sort", "closed", 5, seed=1)
    assert first == draw_examples("sort", "closed", 5, seed=1)
    assert first != draw_examples("sort", "closed", 5, seed=2)


def test_the_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    scores = [Score(name, level, 9, 10) for name in CATEGORIES for level in ("closed", "open")]
    assert together(scores, "closed") == Score("tool calls, all", "closed", 54, 60)
    text = table(scores, Score("README prompts", "closed", 24, 24), "Exact answers.")
    document = tmp_path / "page.md"
    document.write_text(f"before\n{TABLE_BEGIN}\nold\n{TABLE_END}\nafter\n", encoding="utf-8")
    write_table(document, text)
    written = document.read_text(encoding="utf-8")
    assert written == f"before\n{TABLE_BEGIN}\n{text}\n{TABLE_END}\nafter\n"
    assert "| **tool calls, all** | 90.0% (79.9%–95.3%) |" in written
    document.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the markers"):
        write_table(document, text)
