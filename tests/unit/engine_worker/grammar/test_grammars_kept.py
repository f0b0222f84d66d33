"""What compiled grammars and refused ones keep, whoever asked for them."""

import gc
import weakref

import pytest

from engine_worker.errors import HelperLostError, UnsupportedGrammarError
from engine_worker.grammar import trial
from engine_worker.grammar.compiler import (
    MAX_AWAKE,
    MAX_CACHED,
    CompiledGrammar,
    GrammarCompiler,
)
from protocol.errors import ErrorCode
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


class Asker:
    """Something that only the frame of one request knows."""


@pytest.mark.parametrize(
    "refusal",
    [
        UnsupportedGrammarError("it is wrong."),
        HelperLostError("it was killed.", code=ErrorCode.INTERNAL_ERROR),
    ],
)
def test_a_grammar_that_is_refused_keeps_nothing_of_those_who_asked(
    monkeypatch: pytest.MonkeyPatch, refusal: UnsupportedGrammarError | HelperLostError
) -> None:
    def refuse(self: GrammarCompiler, grammar: Grammar) -> CompiledGrammar:
        try:
            raise KeyError
        except KeyError as error:
            raise type(refusal)(refusal.message, code=refusal.code) from error

    monkeypatch.setattr(GrammarCompiler, "_compile", refuse)
    askers: weakref.WeakSet[Asker] = weakref.WeakSet()
    grammar = Grammar(kind="regex", source="(")

    def ask(compiler: GrammarCompiler) -> None:
        asker = Asker()
        askers.add(asker)
        told = None
        try:
            compiler.start(grammar, SamplingParams())
        except type(refusal) as error:
            told = error.message, error.code
        assert told == (refusal.message, refusal.code)

    gc.disable()
    try:
        with compiler_for(byte_level_tokenizer()) as compiler:
            for _ in range(20):
                ask(compiler)
                assert not askers
    finally:
        gc.enable()
