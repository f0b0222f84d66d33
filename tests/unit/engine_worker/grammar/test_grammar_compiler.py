import errno
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from llguidance import LLMatcher

from engine_worker.errors import HelperLostError, UnsupportedGrammarError
from engine_worker.grammar import compiler as compiler_module
from engine_worker.grammar import trial, trial_process
from engine_worker.grammar.compiler import MAX_CACHED, NUM_TRIALS, GrammarCompiler
from engine_worker.grammar.constraint import MAX_TAKEN, Constraint
from engine_worker.grammar.limits import LIMITS, parser_limits
from engine_worker.grammar.source import lark_source
from engine_worker.grammar.special_tokens import SpecialTokens
from engine_worker.grammar.vocabulary import GrammarVocabulary
from protocol.errors import ErrorCode
from protocol.wire.messages import Grammar, SamplingParams
from tests.fakes.grammar_texts import compiler_for, random_walk
from tests.fakes.tiny_tokenizers import byte_level_tokenizer, wordpiece_tokenizer

TOKENIZER = byte_level_tokenizer()
ENDLESS = " & ".join(f"/(?s:.*)[a-z]{{{n}}}(?s:.*){n}/" for n in range(1, 60))


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(TOKENIZER) as compiler:
        yield compiler


HOPELESS = [
    (Grammar(kind="json_schema", source="{"), "not valid JSON"),
    (Grammar(kind="json_schema", source="[]"), "is an object"),
    (Grammar(kind="json_schema", source='{"type": "strin"}'), "/type: there is no type"),
    (Grammar(kind="json_schema", source='{"$ref": "#/$defs/x"}'), "goes nowhere"),
    (Grammar(kind="json_schema", source='{"minimum": "1"}'), "/minimum: it is a number"),
    (Grammar(kind="json_schema", source='{"not": {}}'), "no value is valid"),
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
]


def test_a_hopeless_grammar_is_refused_with_the_reason(compiler: GrammarCompiler) -> None:
    for grammar, reason in HOPELESS:
        with pytest.raises(UnsupportedGrammarError, match=f"(?s).*{reason}") as caught:
            compiler.compile(grammar)
        assert caught.value.code is ErrorCode.UNSUPPORTED_GRAMMAR, reason
        assert "\n" not in caught.value.message, reason
        assert len(caught.value.message) < 400, reason


def test_a_grammar_that_compiles_for_ever_is_cut_off_and_the_next_one_works() -> None:
    with compiler_for(TOKENIZER, trial_timeout_s=1.0) as compiler:
        with pytest.raises(UnsupportedGrammarError, match="more than 1 s to compile"):
            compiler.compile(Grammar(kind="lark", source=f"start: A\nA: {ENDLESS}\n"))
        for pattern in ("a", "b", "c"):
            compiler.compile(Grammar(kind="regex", source=pattern))


def test_a_grammar_is_not_refused_because_the_machine_was_busy() -> None:
    with compiler_for(TOKENIZER, trial_timeout_s=1.0) as compiler:
        compiler.compile(Grammar(kind="regex", source="a"))
        wait_for_trials(compiler)
        processes = trial_processes()
        for process in processes:
            process.suspend()
        resume = threading.Timer(2.0, lambda: [process.resume() for process in processes])
        resume.start()
        compiler.compile(Grammar(kind="regex", source="b"))
        resume.join()
        assert trial_processes() == processes


def test_a_grammar_is_not_refused_because_idle_processes_were_killed() -> None:
    with compiler_for(TOKENIZER) as compiler:
        compiler.compile(Grammar(kind="regex", source="a"))
        wait_for_trials(compiler)
        for process in trial_processes():
            process.kill()
            process.wait(60)
        compiler.compile(Grammar(kind="regex", source="b"))


def dying(number: signal.Signals, num_deaths: int, counted: Path) -> Grammar:
    return Grammar(kind="regex", source=f"{number.value} {num_deaths} {counted}")


@pytest.fixture
def dying_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarCompiler]:
    monkeypatch.setattr(trial, "_MODULE", "tests.fakes.dying_trial")
    with compiler_for(TOKENIZER) as compiler:
        yield compiler


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_a_grammar_on_which_a_process_died_once_is_tried_in_a_fresh_one(
    number: signal.Signals, dying_compiler: GrammarCompiler, tmp_path: Path
) -> None:
    dying_compiler.compile(dying(number, 1, tmp_path / "deaths"))


def test_a_grammar_that_fresh_processes_die_of_is_refused_and_not_tried_again(
    dying_compiler: GrammarCompiler, tmp_path: Path
) -> None:
    grammar = dying(signal.SIGABRT, 2, tmp_path / "deaths")
    for _ in range(2):
        with pytest.raises(UnsupportedGrammarError, match="too much memory"):
            dying_compiler.compile(grammar)


def test_processes_that_are_killed_from_outside_are_nothing_to_their_grammar(
    dying_compiler: GrammarCompiler, tmp_path: Path
) -> None:
    grammar = dying(signal.SIGKILL, 2, tmp_path / "deaths")
    with pytest.raises(HelperLostError, match="was killed") as caught:
        dying_compiler.compile(grammar)
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    dying_compiler.compile(grammar)


def test_a_process_that_can_not_be_started_is_nothing_to_its_grammar(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = Grammar(kind="regex", source="a")

    def no_process(module: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(trial, "start_helper", no_process)
        with pytest.raises(HelperLostError, match="can't start") as caught:
            compiler.compile(grammar)
    assert caught.value.code is ErrorCode.OVERLOADED
    compiler.compile(grammar)


def test_a_grammar_that_a_process_is_kept_from_trying_is_not_refused_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grammar = Grammar(kind="regex", source="b")
    with compiler_for(TOKENIZER, trial_timeout_s=1.0) as compiler:
        compiler.compile(Grammar(kind="regex", source="a"))
        wait_for_trials(compiler)
        with monkeypatch.context() as patched:
            patched.setattr(trial, "_MAX_TURNS", 1)
            for process in trial_processes():
                process.suspend()
            with pytest.raises(HelperLostError, match="too busy"):
                compiler.compile(grammar)
            for process in trial_processes():
                process.resume()
        compiler.compile(grammar)


def test_another_process_is_ready_before_the_next_tenant_needs_it() -> None:
    with compiler_for(TOKENIZER) as compiler:
        compiler.compile(Grammar(kind="regex", source="a"))
        wait_for_trials(compiler)
        assert len(trial_processes()) == NUM_TRIALS


def test_whose_grammar_ends_a_process_leaves_another_one_ready() -> None:
    with compiler_for(TOKENIZER, trial_timeout_s=1.0) as compiler:
        compiler.compile(Grammar(kind="regex", source="a"))
        wait_for_trials(compiler)
        before = trial_processes()
        with pytest.raises(UnsupportedGrammarError, match="more than 1 s to compile"):
            compiler.compile(Grammar(kind="lark", source=f"start: A\nA: {ENDLESS}\n"))
        after = trial_processes()
        assert len(after) == NUM_TRIALS
        assert len(set(after) & set(before)) == NUM_TRIALS - 1


def trial_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if any(part.endswith("trial_process") for part in child.cmdline())
    ]


def wait_for_trials(compiler: GrammarCompiler) -> None:
    """Until all processes are ready and nobody has one."""
    held = [compiler._trials.get(timeout=60) for _ in range(NUM_TRIALS)]
    assert not any(is_absent for is_absent, _ in held)
    for each in held:
        compiler._trials.put(each)


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


def test_a_grammar_that_rests_keeps_no_states_and_can_be_used_again(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    resting, used = (Grammar(kind="regex", source=source) for source in ("ab*", "cd*"))
    masks = [compiler.start(one, SamplingParams()).mask().tolist() for one in (resting, used)]
    compiler.rest()
    assert compiler.compile(resting)._shared is not None
    compiler.start(used, SamplingParams())
    compiler.rest()
    assert compiler.compile(resting)._shared is None
    assert compiler.compile(used)._shared is not None
    with monkeypatch.context() as patch:
        patch.setattr(trial.GrammarTrial, "check", None)  # it is not tried again
        again = [compiler.start(one, SamplingParams()).mask().tolist() for one in (resting, used)]
    assert again == masks


def test_what_rests_is_looked_for_until_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler_module, "REST_S", 0.001)
    compiler = GrammarCompiler(TOKENIZER, TOKENIZER.num_tokens)
    looks, before = threading.Semaphore(0), set(threading.enumerate())

    def rest() -> None:
        looks.release()
        raise BaseException("a panic")

    monkeypatch.setattr(compiler, "rest", rest)
    compiler.compile(Grammar(kind="regex", source="ab*"))
    for _ in range(2):
        assert looks.acquire(timeout=60)
    started = set(threading.enumerate()) - before
    (keeper,) = (thread for thread in started if thread.name == "grammar-rest")
    compiler.close()
    keeper.join(60)
    assert not keeper.is_alive()
    assert "could not release their states" in caplog.text


def test_a_tokenizer_without_bytes_is_refused() -> None:
    compiler = GrammarCompiler(wordpiece_tokenizer(), 7)
    with pytest.raises(UnsupportedGrammarError, match="tokenizer"):
        compiler.compile(Grammar(kind="regex", source="a"))


def test_a_clients_own_compiler_options_are_left_out() -> None:
    options = json.dumps({"x-guidance": {"whitespace_flexible": True}, "type": "array"})
    special = SpecialTokens({}, frozenset())
    written = lark_source(Grammar(kind="json_schema", source=options), special)
    assert '"whitespace_flexible": false' in written.text
    assert "true" not in written.text


def test_forced_tokens_are_jumped_over_unless_they_must_be_sampled(
    compiler: GrammarCompiler,
) -> None:
    for sampling, jumps in (
        (SamplingParams(), True),
        (SamplingParams(logprobs=0), False),
        (SamplingParams(prompt_logprobs=1), False),
        (SamplingParams(allowed_token_ids=(97,)), False),
    ):
        constraint = compiler.start(Grammar(kind="choice", source='["abc"]'), sampling)
        assert constraint.has_forced is jumps, sampling


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


class CountingMatcher:
    """A matcher that tells how many tokens it takes in a call."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.taken: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def consume_tokens(self, token_ids: list[int]) -> bool:
        self.taken.append(len(token_ids))
        return bool(self._matcher.consume_tokens(token_ids))


def counted_constraint(source: str) -> tuple[Constraint, CountingMatcher]:
    vocabulary = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
    grammar = lark_source(Grammar(kind="regex", source=source), vocabulary.special).text
    matcher = CountingMatcher(
        LLMatcher(vocabulary.ll_tokenizer, grammar, log_level=0, limits=parser_limits())
    )
    return Constraint(cast("LLMatcher", matcher), vocabulary, jumps=True), matcher


def test_of_many_forced_tokens_the_matcher_takes_few_at_a_time() -> None:
    constraint, matcher = counted_constraint("x{1000}[ab]")
    assert matcher.taken == [MAX_TAKEN]
    for _ in range(1000):
        assert constraint.next_forced() == ord("x")
        assert not constraint.is_complete
        constraint.push(ord("x"))
    assert sum(matcher.taken) == 1000
    assert max(matcher.taken) == MAX_TAKEN
    assert not constraint.has_forced
    constraint.push(ord("a"))
    assert constraint.is_complete


def test_a_token_that_parts_from_many_forced_ones_leaves_none_of_them() -> None:
    constraint, _ = counted_constraint("(x{1000}|x{300}yz)")
    for _ in range(300):
        constraint.push(ord("x"))
    assert not constraint.has_forced
    constraint, _ = counted_constraint("x{1000}")
    for _ in range(10):
        constraint.push(ord("x"))
    constraint.push(ord("y"))
    assert constraint.failure
    assert not constraint.has_forced


def object_with(**properties: object) -> Grammar:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Grammar(kind="json_schema", source=json.dumps(schema))


COUNTING = {"type": "string", "pattern": "^[a-z ]*e[a-z ]{30}$", "maxLength": 160}
WORDS = {"type": "string", "maxLength": 500, "pattern": "^(?:\\S+\\s+){0,49}\\S+$"}


def test_the_outputs_of_a_grammar_use_up_nothing_of_those_after_them(
    compiler: GrammarCompiler,
) -> None:
    compiled = compiler.compile(object_with(s=COUNTING))
    for seed in range(150):
        token_ids, is_whole = random_walk(
            compiled.start(jumps=True), TOKENIZER.eos_token_ids, seed=seed
        )
        assert is_whole
        assert re.fullmatch('{"s": "[a-z ]*e[a-z ]{30}"}', TOKENIZER.decode(token_ids))


def test_long_outputs_of_ordinary_patterns_meet_no_limit(compiler: GrammarCompiler) -> None:
    compiled = compiler.compile(object_with(a={"type": "integer"}, b=WORDS))
    for seed in range(3):
        random_walk(compiled.start(jumps=True), TOKENIZER.eos_token_ids, seed=seed, max_tokens=900)


def test_a_limit_that_only_long_outputs_meet_is_told_before_the_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_process, "CALM_LEXER_STATES", 200)
    vocabulary = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
    one = a_trial()
    source = 'start: e\ne: e "+" e | e e e | e e | /[a-z]{1,40}e[a-z]{30}/ | "(" e ")"\n'
    grammar = Grammar(kind="lark", source=source)
    assert not one.check(grammar).refusal
    monkeypatch.setitem(LIMITS, "max_lexer_states", 300)
    matcher = LLMatcher(vocabulary.ll_tokenizer, source, log_level=0, limits=parser_limits())
    matcher.compute_bitmask()
    assert not matcher.is_error()
    assert "more states than the engine keeps" in one.check(grammar).refusal


def a_trial() -> trial_process.Trial:
    vocabulary = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
    return trial_process.Trial(
        trial_process.Setup(
            tokenizer=vocabulary.serialized,
            num_tokens=vocabulary.num_tokens,
            special=vocabulary.special.ids,
            eos_token_ids=sorted(vocabulary.special.eos_token_ids),
            max_memory_bytes=0,
        )
    )


class Panic(BaseException):
    """As native libraries raise it."""


@pytest.mark.parametrize(
    ("raised", "refusal", "fault"),
    [
        (TypeError("secret"), "can't be read", "TypeError at broken:"),
        (Panic("secret"), "can't be read", "Panic at broken:"),
        (MemoryError(), "too much memory", ""),
    ],
)
def test_a_fault_on_one_grammar_is_an_answer_and_the_process_goes_on(
    raised: BaseException, refusal: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise raised

    one = a_trial()
    with monkeypatch.context() as patched:
        patched.setattr(trial_process, "lark_source", broken)
        result = one.check(Grammar(kind="regex", source="a"))
    assert refusal in result.refusal
    assert result.fault.startswith(fault)
    assert bool(result.fault) is bool(fault)
    assert "secret" not in result.refusal + result.fault
    assert not one.check(Grammar(kind="regex", source="a")).refusal


def test_thousands_of_choices_are_one_lexeme(compiler: GrammarCompiler) -> None:
    choices = [f"word {number} " * 3 for number in range(4000)]
    compiled = compiler.compile(Grammar(kind="choice", source=json.dumps(choices)))
    token_ids, _ = random_walk(compiled.start(jumps=True), TOKENIZER.eos_token_ids, seed=1)
    assert TOKENIZER.decode(token_ids) in choices


def test_the_values_of_a_long_enum_are_read_in_time(compiler: GrammarCompiler) -> None:
    values = [f"word {number}" for number in range(4000)]
    compiled = compiler.compile(Grammar(kind="json_schema", source=json.dumps({"enum": values})))
    token_ids, _ = random_walk(compiled.start(jumps=True), TOKENIZER.eos_token_ids, seed=1)
    assert json.loads(TOKENIZER.decode(token_ids)) in values


def test_no_message_shows_the_grammar_within(compiler: GrammarCompiler) -> None:
    heavy = [{"type": "string", "pattern": f"[a-z]*z[a-z]{{{n}}}"} for n in range(12)]
    schema = {"allOf": heavy}
    with pytest.raises(UnsupportedGrammarError) as caught:
        compiler.compile(Grammar(kind="json_schema", source=json.dumps(schema)))
    assert not re.search(r"%json|start|And|failed to compile|lexer", caught.value.message)


def test_a_strict_schema_that_can_not_be_enforced_is_refused_in_words(
    compiler: GrammarCompiler,
) -> None:
    source = json.dumps({"type": "array", "items": {"type": "string"}, "uniqueItems": True})
    lenient = compiler.start(Grammar(kind="json_schema", source=source), SamplingParams())
    assert lenient.unenforced == ("/uniqueItems",)
    with pytest.raises(UnsupportedGrammarError, match="`uniqueItems` at /uniqueItems can't be"):
        compiler.compile(Grammar(kind="json_schema", source=source, is_strict=True))


def test_schemas_within_lark_are_read_by_the_same_rules(compiler: GrammarCompiler) -> None:
    schema = '{"type": "array", "items": {"type": "string"}, "uniqueItems": true}'
    source = f'start: "a: " %json {schema} " b: " %json {{"const": 9007199254740993}}\n'
    constraint = compiler.start(Grammar(kind="lark", source=source), SamplingParams(logprobs=0))
    assert constraint.unenforced == ("/uniqueItems",)
    constraint.push_all(b'a: ["x", "y"] b: 9007199254740993')
    assert constraint.is_complete
    strict = source.replace('{"type"', '{"x-penstock-strict": true, "type"')
    with pytest.raises(UnsupportedGrammarError, match="`uniqueItems`"):
        compiler.compile(Grammar(kind="lark", source=strict))
