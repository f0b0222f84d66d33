"""Grammars whose texts can be read in many ways: each of their tokens holds up everybody's step."""

import pytest

from engine_worker.grammar import trial_process
from engine_worker.grammar.compiler import CompiledGrammar
from engine_worker.grammar.limits import BROAD_ROW_ITEMS, ROW_ITEMS
from engine_worker.grammar.trial_process import TrialResult
from engine_worker.grammar.vocabulary import GrammarVocabulary
from protocol.wire.messages import Grammar
from tests.unit.engine_worker.grammar.test_grammar_compiler import TOKENIZER, a_trial

AMBIGUOUS = "start: s\ns: s s | s s s | C\nC: /[a-z]/\n"


def tried(source: str) -> TrialResult:
    return a_trial().check(Grammar(kind="lark", source=source))


def named(num_tools: int) -> str:
    """A grammar of so many tools, which may be called again and again."""
    names = [f"t{number}" for number in range(num_tools)]
    rules = [f'{name}: "<{name} " /[a-z]+/ ">"' for name in names]
    return "\n".join([f"start: ({' | '.join(names)})+", *rules, ""])


def test_a_grammar_that_is_read_in_more_ways_the_longer_its_text_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_process, "_WALK_S", 60.0)
    monkeypatch.setattr(trial_process, "_SECOND_WALK_S", 60.0)
    assert "more work than the engine allows" in tried(AMBIGUOUS).refusal


def test_a_grammar_of_many_things_at_one_place_is_not() -> None:
    for num_tools in (3, 230):
        result = tried(named(num_tools))
        assert (result.refusal, result.max_row_items) == ("", ROW_ITEMS)
    broad = tried(named(1024))
    assert (broad.refusal, broad.max_row_items) == ("", BROAD_ROW_ITEMS)


def test_an_output_ends_where_a_trial_did_not_come_to() -> None:
    vocabulary = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
    compiled = CompiledGrammar(TrialResult(source=AMBIGUOUS, max_row_items=100), vocabulary)
    constraint = compiled.start(jumps=False)
    for _ in range(100):
        constraint.push(ord("a"))
    assert "more work than the engine allows" in constraint.failure


def test_a_mask_with_too_many_ways_to_go_on_is_refused() -> None:
    rules = [f"r{number}" for number in range(900)]
    lines = [f"start: ({' | '.join(rules)})*", *(f"{rule}: C" for rule in rules), "C: /(?s:.)/", ""]
    assert "more work than the engine allows" in tried("\n".join(lines)).refusal


def test_a_grammar_whose_masks_take_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tried("start: /[a-z]*/").refusal
    monkeypatch.setattr(trial_process, "_SLOW_STEP_S", 0.0)
    assert "more work than the engine allows" in tried("start: /[a-z]*/").refusal
