"""The law of cuts: the same text in any pieces is the same, for every pair of formats.

A parser that died is replaced by one that reads the text again and skips what the client has, so
everything rests on this law. `FUZZ_SEED` and `FUZZ_EFFORT` draw other texts, and more of them.
"""

import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.format_pairs import PAIRS, formats
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.law_of_cuts import BLANKS, broken_law, find_broken, outcome
from tests.fakes.loops import of_each
from tests.fakes.parsed_text import REASONING, TOOLS, parse
from toolparser_worker.machine import braced_call, output
from toolparser_worker.machine.channels import Action
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.names import NameReader
from toolparser_worker.machine.reading import DONE, MORE, Answer

SEED = os.environ.get("FUZZ_SEED", "the same for everybody")
NUM_EXAMPLES = 2
NUM_EXAMPLES_OF_USUAL_PAIRS = 10
"""So many more for pairs that models have; a thousand take less than half a second."""

FOUND_WITHIN = 4000


def assert_law_holds(tool: str, reasoning: str, num_examples: int) -> None:
    found = find_broken(formats(tool, reasoning), num_examples, f"{SEED} {tool} {reasoning}")
    assert found is None, f"{tool} + {reasoning}: {found[0]!r} with {found[1]}\n  {found[2]}"


@pytest.mark.timeout(300 * EFFORT)
@of_each("tool", TOOLS)
def test_no_cut_of_any_text_changes_anything_and_nothing_is_left_behind(tool: str) -> None:
    for reasoning in REASONING:
        usual = NUM_EXAMPLES_OF_USUAL_PAIRS if (tool, reasoning) in PAIRS else 0
        assert_law_holds(tool, reasoning, (NUM_EXAMPLES + usual) * EFFORT)


# The three ways in which the law was broken once, put back one by one.


def put_back_guessed_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that hands over without taking a character stops the reading, as if it waited."""
    act = Machine._act

    def guessing(self: Machine, literal: str, start: int, stop: int) -> Answer:
        action = self._table.actions[literal]
        step, position = act(self, literal, start, stop)
        return (MORE if action is Action.INTERRUPT_REASONING else step), position

    monkeypatch.setattr(Machine, "_act", guessing)


def put_back_a_second_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trimmed is more than what may stand between markers."""
    monkeypatch.setattr(output, "BLANKS", "".join(BLANKS))


def put_back_endless_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in braces goes on to the next brace, whatever stands between."""

    class EndlessNameReader(NameReader):
        def feed(self, text: str, position: int, *, final: bool) -> Answer:
            stop = text.find("{", position)
            self.name += text[position : stop if stop >= 0 else len(text)]
            if stop < 0:
                return MORE, len(text)
            self.end = "{" if re.fullmatch(r"[\w.\-]+", self.name.strip()) else ""
            self.name = self.name.strip()
            return DONE, stop if self.end else position

    monkeypatch.setattr(braced_call, "NameReader", EndlessNameReader)


@pytest.mark.parametrize(
    ("put_back", "tool", "reasoning"),
    [
        (put_back_guessed_progress, "none", "mistral"),
        (put_back_guessed_progress, "none", "minimax_m3"),
        (put_back_a_second_white_space, "pythonic", "think"),
        (put_back_a_second_white_space, "xlam", "none"),
        (put_back_endless_names, "gemma4", "gemma4"),
        (put_back_endless_names, "functiongemma", "none"),
    ],
)
def test_a_fault_that_is_put_back_is_found(
    put_back: Callable[[pytest.MonkeyPatch], None],
    tool: str,
    reasoning: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_back(monkeypatch)
    assert find_broken(formats(tool, reasoning), FOUND_WITHIN, "fault") is not None


# Texts that broke the law, each in every cut in two.


@pytest.mark.parametrize(
    ("tool", "reasoning", "text"),
    [
        ("none", "mistral", "[THINK]a[TOOL_CALLS]f{}"),
        ("none", "kimi_k2", "<think><|tool_calls_section_begin|>b"),
        ("hermes", "deepseek_v4", "<｜DSML｜tool_calls><｜DSML｜invoke<think><｜DSML｜tool_calls>"),
        ("mistral", "mistral", "[TOOL_CALLS], :{[THINK][TOOL_CALLS]"),
        ("glm45", "glm45", "a<tool_call>f\n</tool_call><think><tool_call>g\n</tool_call>"),
        *(("pythonic", "none", f"{blank}[f(x=1)]") for blank in BLANKS),
        *(("xlam", "none", f"{blank}[{{}}]") for blank in BLANKS),
        ("gemma4", "gemma4", "<|tool_call>call:<|tool_call>call:f{x:1}<tool_call|>"),
        ("functiongemma", "none", "<start_function_call>call:a <start_function_call>call:f{"),
        ("granite4", "none", '<tool_call>{"name":"g","arguments":" {\\"a\\": 1} "'),
        ("olmo3", "none", "<function_calls>f(a='',b["),
        ("minimax_m3", "none", f"]<]minimax[>[<invoke name={'x' * 600}<f>"),
        ("minimax_m2", "none", '<invoke name="f">a{"":""}<parameter name="x">1</parameter>'),
        ("lfm2", "none", f"<|tool_call_start|>[f(x='a'){' ' * 70}x'y')]<|tool_call_end|>"),
        ("pythonic", "muse_glimmer", "to=<|message|>][f()"),
    ],
)
def test_texts_that_once_broke_the_law(tool: str, reasoning: str, text: str) -> None:
    chosen = formats(tool, reasoning)
    options: dict[str, Any] = {}
    whole = outcome([text], *chosen, options)
    assert whole[-1] == ""
    for place in range(len(text) + 1):
        assert outcome([text[:place], text[place:]], *chosen, options) == whole
    assert outcome(list(text), *chosen, options) == whole


@of_each("tool", TOOLS)
def test_the_end_of_the_text_leaves_nothing_behind(tool: str) -> None:
    """After every beginning of a text with all that a text can have."""
    reasoning = "think"
    tool_format, _ = formats(tool, reasoning)
    markers = () if tool_format is None else tool_format.markers
    text = "<think>a" + "".join(f"{marker} b" for marker in markers) + "</think>c"
    for size in range(len(text) + 1):
        assert outcome([text[:size]], *formats(tool, reasoning), {})[-1] == ""


def test_a_broken_law_is_told_with_a_small_text(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back_a_second_white_space(monkeypatch)
    found = find_broken(formats("pythonic", "none"), FOUND_WITHIN, "fault")
    assert found is not None
    text, options, how = found
    assert len(text) < 30
    assert "gives" in how
    assert broken_law(text, formats("pythonic", "none"), options, random.Random(0))


@pytest.mark.parametrize("blank", [blank for blank in BLANKS if blank not in " \t\n\r"])
def test_what_only_unicode_takes_for_white_space_is_text(blank: str) -> None:
    parsed = parse(f"{blank}[f(x=1)]", TOOLS["pythonic"])
    assert (parsed.content, parsed.calls) == (f"{blank}[f(x=1)]", [])
    parsed = parse(f'{blank}<tool_call>{{"name": "f"}}</tool_call>', TOOLS["ernie45"])
    assert (parsed.content, len(parsed.calls)) == (blank, 1)
