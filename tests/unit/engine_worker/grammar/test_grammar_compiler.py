import json
import threading
from collections.abc import Iterator

import psutil
import pytest

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.compiler import MAX_CACHED, GrammarCompiler
from engine_worker.grammar.source import lark_source
from engine_worker.grammar.vocabulary import SpecialTokens
from protocol.errors import ErrorCode
from protocol.wire.messages import Grammar, SamplingParams
from tests.fakes.grammar_texts import compiler_for
from tests.fakes.tiny_tokenizers import byte_level_tokenizer, wordpiece_tokenizer

TOKENIZER = byte_level_tokenizer()
ENDLESS = " & ".join(f"/(?s:.*)[a-z]{{{n}}}(?s:.*){n}/" for n in range(1, 60))


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(TOKENIZER) as compiler:
        yield compiler


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar(kind="json_schema", source="{"), "not valid JSON"),
        (Grammar(kind="json_schema", source="[]"), "is an object"),
        (Grammar(kind="json_schema", source='{"type": "strin"}'), "Invalid type: strin"),
        (Grammar(kind="json_schema", source='{"type": "string", "format": "no"}'), "no"),
        (Grammar(kind="json_schema", source='{"$ref": "#"}'), "no text satisfies"),
        (Grammar(kind="json_schema", source='{"$ref": "http://x/y"}'), "http://x/y"),
        (Grammar(kind="json_schema", source='{"not": {}}'), "not"),
        (Grammar(kind="json_schema", source="[" * 70 + "]" * 70), "nested deeper than 64"),
        (Grammar(kind="json_schema", source=f'"{"x" * 300_000}"'), "longer than 262144 bytes"),
        (Grammar(kind="regex", source="(a"), "unclosed group"),
        (Grammar(kind="regex", source="(?=a)b"), "look-around"),
        (Grammar(kind="choice", source="[]"), "list of texts"),
        (Grammar(kind="choice", source='["a", 1]'), "list of texts"),
        (Grammar(kind="lark", source="start: nothing\n"), 'unknown name: "nothing"'),
        (Grammar(kind="lark", source="start: MARKER_1\n", markers=("a",)), "no marker 1"),
        (Grammar(kind="lark", source="start: MARKER_0\n", markers=("",)), "1 to 256 characters"),
        (Grammar(kind="regex", source="a", after_marker=""), "1 to 256 characters"),
        (Grammar(kind="lark", source="", markers=("a",) * 129), "more than 128 markers"),
    ],
)
def test_a_hopeless_grammar_is_refused_with_the_reason(
    grammar: Grammar, reason: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(UnsupportedGrammarError, match=f"(?s).*{reason}") as caught:
        compiler.compile(grammar)
    assert caught.value.code is ErrorCode.UNSUPPORTED_GRAMMAR
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_grammar_that_compiles_for_ever_is_cut_off_and_the_next_one_works() -> None:
    with compiler_for(TOKENIZER, trial_timeout_s=1.0) as compiler:
        with pytest.raises(UnsupportedGrammarError, match="more than 1 s to compile"):
            compiler.compile(Grammar(kind="lark", source=f"start: A\nA: {ENDLESS}\n"))
        for pattern in ("a", "b", "c"):
            compiler.compile(Grammar(kind="regex", source=pattern))


def test_a_grammar_is_not_refused_because_the_machine_was_busy() -> None:
    with compiler_for(TOKENIZER, trial_timeout_s=0.3) as compiler:
        compiler.compile(Grammar(kind="regex", source="a"))
        (process,) = (
            child
            for child in psutil.Process().children()
            if any(part.endswith("trial_process.py") for part in child.cmdline())
        )
        process.suspend()
        resume = threading.Timer(1.0, process.resume)
        resume.start()
        compiler.compile(Grammar(kind="regex", source="b"))
        resume.join()
        assert process.is_running()


def test_a_grammar_is_compiled_once_even_by_many_threads() -> None:
    durations: list[float] = []
    compiler = GrammarCompiler(TOKENIZER, TOKENIZER.num_tokens, on_compiled=durations.append)
    grammar = Grammar(kind="regex", source="ab*")
    threads = [threading.Thread(target=compiler.compile, args=(grammar,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiler.compile(grammar) is compiler.compile(grammar)
    assert len(durations) == 1
    compiler.close()


def test_the_cache_is_bounded_and_keeps_what_was_used_last(compiler: GrammarCompiler) -> None:
    first = Grammar(kind="regex", source="first")
    compiled = compiler.compile(first)
    for number in range(MAX_CACHED - 1):
        compiler.compile(Grammar(kind="choice", source=json.dumps([f"{number}"])))
    assert compiler.compile(first) is compiled
    for number in range(MAX_CACHED):
        compiler.compile(Grammar(kind="choice", source=json.dumps([f"again {number}"])))
    assert compiler.compile(first) is not compiled


def test_a_tokenizer_without_bytes_is_refused() -> None:
    compiler = GrammarCompiler(wordpiece_tokenizer(), 7)
    with pytest.raises(UnsupportedGrammarError, match="tokenizer"):
        compiler.compile(Grammar(kind="regex", source="a"))


def test_a_clients_own_compiler_options_are_left_out() -> None:
    options = json.dumps({"x-guidance": {"whitespace_flexible": True}, "type": "array"})
    special = SpecialTokens({}, frozenset())
    written = lark_source(Grammar(kind="json_schema", source=options), special)
    assert '"whitespace_flexible": false' in written
    assert "true" not in written


@pytest.mark.parametrize(
    ("sampling", "jumps"),
    [
        (SamplingParams(), True),
        (SamplingParams(logprobs=0), False),
        (SamplingParams(prompt_logprobs=1), False),
        (SamplingParams(allowed_token_ids=(97,)), False),
    ],
)
def test_forced_tokens_are_jumped_over_unless_they_must_be_sampled(
    sampling: SamplingParams, jumps: bool, compiler: GrammarCompiler
) -> None:
    constraint = compiler.start(Grammar(kind="choice", source='["abc"]'), sampling)
    assert constraint.has_forced is jumps


def test_an_output_that_jumped_elsewhere_is_followed_token_by_token(
    compiler: GrammarCompiler,
) -> None:
    compiled = compiler.compile(Grammar(kind="regex", source="x[ab] the end[cd]"))
    jumping, stepping = compiled.start(jumps=True), compiled.start(jumps=False)
    token_ids = [jumping.next_forced()]
    for token_id in (*b"xa", *b" the end", *b"c"):
        jumping.push(token_id)
        stepping.push(token_id)
    assert token_ids == [ord("x")]
    assert jumping.is_complete
    assert stepping.is_complete
