"""`penstock parse`: text in, JSON out, without a server."""

import io
import json
from pathlib import Path

import pytest

from toolparser_worker.parse_text import main

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def run(text: str, *arguments: str) -> tuple[int, str, str]:
    target, complaints = io.StringIO(), io.StringIO()
    code = main(arguments, io.StringIO(text), target, complaints)
    return code, target.getvalue(), complaints.getvalue()


def test_content_reasoning_and_calls_are_told_apart() -> None:
    text = f"<think>é</think>Well.\n{CALL}"
    code, out, _ = run(text, "--format", "hermes", "--reasoning=think")
    found = json.loads(out)
    assert code == 0
    assert (found["content"], found["reasoning"], found["num_malformed"]) == ("Well.\n", "é", 0)
    (call,) = found["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'}


def test_without_formats_all_is_content() -> None:
    assert json.loads(run(CALL)[1]) == {
        "content": CALL,
        "reasoning": None,
        "tool_calls": [],
        "num_malformed": 0,
    }


def test_tools_from_a_file_say_what_values_are(tmp_path: Path) -> None:
    text = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"function": {"name": "f", "parameters": schema}}]))
    for arguments, expected in (((), {"x": "1"}), ((f"--tools={path}",), {"x": 1})):
        found = json.loads(run(text, "--format=qwen3_coder", *arguments)[1])
        assert json.loads(found["tool_calls"][0]["function"]["arguments"]) == expected


def test_the_prompts_end_can_open_the_reasoning() -> None:
    found = json.loads(run("a</think>b", "--reasoning=think", "--prompt-tail=<think>")[1])
    assert (found["reasoning"], found["content"]) == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format=hermess"], "Did you mean 'hermes'"),
        (["--format=hermes", "--tools=/nowhere/tools.json"], "No such file"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: list[str], words: str) -> None:
    code, out, complaints = run("x", *arguments)
    assert (code, out) == (2, "")
    assert words in complaints
