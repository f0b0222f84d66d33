"""Compiled grammars have megabytes: only few keep what their outputs share."""

import pytest

from engine_worker.grammar import trial
from engine_worker.grammar.compiler import MAX_AWAKE, MAX_CACHED, CompiledGrammar
from protocol.wire.messages import Grammar, SamplingParams
from tests.fakes.grammar_texts import compiler_for
from tests.fakes.tiny_tokenizers import byte_level_tokenizer


def keeps_states(compiled: CompiledGrammar) -> bool:
    return compiled._shared is not None


def test_only_the_grammars_that_were_used_last_keep_what_outputs_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grammars = [Grammar(kind="regex", source=f"{number}a*") for number in range(2 * MAX_AWAKE)]
    assert len(grammars) <= MAX_CACHED
    with compiler_for(byte_level_tokenizer()) as compiler:
        first = compiler.start(grammars[0], SamplingParams()).mask().tolist()
        compiled = [compiler.compile(grammar) for grammar in grammars]
        newest = [False] * MAX_AWAKE + [True] * MAX_AWAKE
        assert list(map(keeps_states, compiled)) == newest
        monkeypatch.setattr(trial.GrammarTrial, "check", None)  # none is tried again
        assert compiler.start(grammars[0], SamplingParams()).mask().tolist() == first
        # It is one of those that were used last now; another one makes room for it.
        newest[0], newest[MAX_AWAKE] = True, False
        assert list(map(keeps_states, compiled)) == newest
