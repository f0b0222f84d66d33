import gc
import json
import re
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLParserLimits

from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from engine_worker.grammar.vocabulary import GrammarVocabulary
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Extend,
    Failure,
    Finished,
    Generate,
    Grammar,
    SamplingParams,
)
from tests.fakes.fake_runner import DeterministicFakeRunner, NextToken, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.encode("<|im_end|>", add_special_tokens=False)[0]
VOCAB_SIZE = TOKENIZER.num_tokens
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ann", "bob"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PERSON = Grammar(kind="json_schema", source=json.dumps(SCHEMA))
TICKET = Grammar(kind="regex", source="[A-Z]{2}-[0-9]{4,6}")
GREEDY = SamplingParams(temperature=0.0)


def always(token_id: int) -> NextToken:
    return lambda token_ids: token_id


def make_engine(next_token: NextToken, **options: Any) -> tuple[Engine, DeterministicFakeRunner]:
    runner = DeterministicFakeRunner(next_token, **{"num_blocks": 200, **options})
    engine = Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=300, grammars=COMPILER)
    return engine, runner


COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE)


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    COMPILER.close()


def generate(request_id: str = "r", sampling: SamplingParams = GREEDY, **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": (104, 105),
        "lease_tokens": 1000,
        "deadline_s": 60.0,
        "want_token_ids": True,
        **changes,
    }
    return Generate(request_id=request_id, sampling=sampling, **options)


def run(engine: Engine) -> GatewayOutput:
    told = GatewayOutput()
    for _ in range(2000):
        if not engine.has_work():
            return told
        output = engine.step().get("g", GatewayOutput())
        told.deltas.extend(output.deltas)
        told.ends.extend(output.ends)
    raise AssertionError("the engine doesn't come to rest")


def text_of(output: GatewayOutput, request_id: str = "r") -> str:
    return "".join(delta.text for delta in output.deltas if delta.request_id == request_id)


def ids_of(output: GatewayOutput) -> list[int]:
    return [token_id for delta in output.deltas for token_id in delta.token_ids]


def only_end(output: GatewayOutput) -> Finished | Failure:
    (end,) = output.ends
    return end


def reason(output: GatewayOutput) -> str:
    end = only_end(output)
    assert isinstance(end, Finished), end
    return end.finish_reason


def fits_person(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"name", "age"} and value["name"] in ("ann", "bob") and value["age"] <= 99


@pytest.mark.parametrize("seed", range(5))
def test_any_model_writes_a_sentence_and_stops(seed: int) -> None:
    random_model = hashed_token(VOCAB_SIZE)
    engine, _ = make_engine(lambda ids: random_model([*ids, seed]))
    engine.add("g", generate(grammar=PERSON))
    output = run(engine)
    assert fits_person(text_of(output))
    assert reason(output) == "stop"


def test_the_end_of_sequence_is_drawn_only_where_a_sentence_ends() -> None:
    engine, _ = make_engine(always(EOS))
    engine.add("g", generate(grammar=TICKET))
    output = run(engine)
    assert re.fullmatch("[A-Z]{2}-[0-9]{4}", text_of(output))
    assert ids_of(output)[-1] == EOS


def test_an_output_that_can_not_go_on_ends_without_a_token_that_says_so() -> None:
    engine, _ = make_engine(always(ord("7")))
    engine.add("g", generate(grammar=TICKET))
    output = run(engine)
    assert text_of(output).endswith("-777777")
    assert EOS not in ids_of(output)
    assert reason(output) == "stop"


def test_max_tokens_cuts_a_prefix() -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE))
    sampling = SamplingParams(temperature=0.0, max_tokens=12)
    engine.add("g", generate(sampling=sampling, grammar=PERSON))
    output = run(engine)
    assert text_of(output) in ('{"name": "an', '{"name": "bo')
    assert reason(output) == "length"


def test_forced_tokens_cost_no_steps_and_are_told_like_others() -> None:
    engine, runner = make_engine(hashed_token(VOCAB_SIZE))
    engine.add("g", generate(grammar=Grammar(kind="regex", source="[ab] forced[cd]")))
    output = run(engine)
    assert re.fullmatch("[ab] forced[cd]", text_of(output))
    assert len(runner.batches) == 2
    assert runner.batches[1].rows[0].token_ids[1:] == tuple(b" forced")
    first = output.deltas[0]
    assert first.token_ids[1:] == tuple(b" forced")
    assert first.token_ends == tuple(range(1, len(first.text) + 1))


def test_a_text_that_is_all_forced_needs_no_step() -> None:
    engine, runner = make_engine(always(0))
    engine.add("g", generate(grammar=Grammar(kind="choice", source='["only this"]')))
    output = run(engine)
    assert text_of(output) == "only this"
    assert reason(output) == "stop"
    assert not runner.batches


def test_forced_tokens_wait_for_their_lease() -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE))
    grammar = Grammar(kind="regex", source="[ab] is forced[cd]")
    engine.add("g", generate(grammar=grammar, lease_tokens=4))
    assert text_of(run(engine))[1:] == " is"
    for lease_tokens in (6, 100):
        engine.extend("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=lease_tokens))
        output = run(engine)
    assert text_of(output)[:-1] == "orced"
    assert reason(output) == "stop"


def test_penalties_count_forced_tokens() -> None:
    engine, runner = make_engine(hashed_token(VOCAB_SIZE))
    sampling = SamplingParams(temperature=0.0, presence_penalty=1.0)
    grammar = Grammar(kind="regex", source="[ab] is forced[cd]")
    engine.add("g", generate(sampling=sampling, grammar=grammar))
    run(engine)
    _, _, counted = runner.assigned[-1]
    assert bytes(counted[1:]) == b" is forced"


def test_blocks_for_forced_tokens_are_found_by_preempting_others() -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE), num_blocks=14, max_num_seqs=3)
    grammar = Grammar(kind="regex", source="[ab] this is all forced ok[cd]")
    for number in range(3):
        engine.add("g", generate(f"{number}", grammar=grammar))
    output = run(engine)
    for number in range(3):
        assert re.fullmatch("[ab] this is all forced ok[cd]", text_of(output, f"{number}"))
    assert engine.num_preemptions > 0


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 20), seed=st.integers(0, 99))
def test_an_output_goes_on_elsewhere_as_it_would_have_here(cut: int, seed: int) -> None:
    random_model = hashed_token(VOCAB_SIZE)

    def model(ids: Sequence[int]) -> int:
        return random_model([*ids, seed])

    engine, _ = make_engine(model)
    engine.add("g", generate(grammar=PERSON))
    whole = run(engine)
    token_ids = ids_of(whole)[:cut]
    other, _ = make_engine(model)
    sent = TOKENIZER.decode(token_ids)
    other.add(
        "g",
        generate(
            attempt=2,
            grammar=PERSON,
            output_token_ids=tuple(token_ids),
            num_sent_characters=len(sent),
        ),
    )
    rest = run(other)
    assert sent + text_of(rest) == text_of(whole)
    assert token_ids + ids_of(rest) == ids_of(whole)
    assert reason(rest) == "stop"


@settings(max_examples=10, deadline=None)
@given(kinds=st.lists(st.sampled_from(["free", "person", "ticket"]), min_size=2, max_size=8))
def test_neighbours_of_any_kind_share_their_steps(kinds: list[str]) -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE - 5))
    sampling = SamplingParams(temperature=0.0, max_tokens=40)
    grammars = {"free": None, "person": PERSON, "ticket": TICKET}
    for number, kind in enumerate(kinds):
        engine.add(
            "g",
            generate(
                f"{number}",
                sampling,
                grammar=grammars[kind],
                prompt_token_ids=(number, *range(9)),
            ),
        )
    output = run(engine)
    for number, kind in enumerate(kinds):
        text = text_of(output, f"{number}")
        if kind == "person":
            assert fits_person(text)
        elif kind == "ticket":
            assert re.fullmatch(TICKET.source, text)
        else:
            assert text
    assert len(output.ends) == len(kinds)


def test_min_tokens_put_the_end_off_but_never_past_the_grammar() -> None:
    engine, _ = make_engine(always(EOS))
    sampling = SamplingParams(temperature=0.0, min_tokens=9)
    engine.add("g", generate("long", sampling, grammar=TICKET))
    engine.add("g", generate("short", sampling, grammar=Grammar(kind="regex", source="[ab]x?")))
    output = run(engine)
    assert len(text_of(output, "long")) == 9
    assert re.fullmatch("[ab]x", text_of(output, "short"))
    assert all(isinstance(end, Finished) and end.finish_reason == "stop" for end in output.ends)


def test_stop_strings_and_stop_ids_end_a_sentence_early() -> None:
    engine, _ = make_engine(always(ord("7")))
    by_text = SamplingParams(temperature=0.0, stop=("-77",))
    by_id = SamplingParams(temperature=0.0, stop_token_ids=(ord("7"),))
    engine.add("g", generate("text", by_text, grammar=TICKET))
    engine.add("g", generate("id", by_id, grammar=TICKET))
    output = run(engine)
    assert re.fullmatch("[A-Z]{2}", text_of(output, "text"))
    assert re.fullmatch("[A-Z]{2}-", text_of(output, "id"))
    assert [end.stop_reason for end in output.ends if isinstance(end, Finished)] in (
        ["-77", 55],
        [55, "-77"],
    )


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParams(ignore_eos=True), "ignore_eos"),
        (SamplingParams(bad_words=("a",)), "bad_words"),
        (SamplingParams(allowed_token_ids=(ord("z"),)), "allowed_token_ids"),
    ],
)
def test_what_makes_no_sense_beside_a_grammar_is_refused_and_named(
    sampling: SamplingParams, param: str
) -> None:
    engine, runner = make_engine(always(0))
    engine.add("g", generate(sampling=sampling, grammar=TICKET))
    end = only_end(run(engine))
    assert isinstance(end, Failure)
    assert (end.code, end.param) == (ErrorCode.INVALID_REQUEST, param)
    assert not runner.batches


def test_allowed_token_ids_hold_within_a_grammar() -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE))
    allowed = tuple(b"XY-12")
    sampling = SamplingParams(temperature=0.0, allowed_token_ids=allowed, max_tokens=9)
    engine.add("g", generate(sampling=sampling, grammar=TICKET))
    assert re.fullmatch("[XY]{2}-[12]{6}", text_of(run(engine)))


def test_a_dead_end_fails_its_own_request_only() -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE))
    sampling = SamplingParams(temperature=0.0, allowed_token_ids=tuple(b"XY12"))
    engine.add("g", generate("dead", sampling, grammar=TICKET))
    engine.add("g", generate("alive", grammar=PERSON))
    output = run(engine)
    ends = {end.request_id: end for end in output.ends}
    dead = ends["dead"]
    assert isinstance(dead, Failure)
    assert dead.code is ErrorCode.INVALID_REQUEST
    assert "leave no token" in dead.message
    assert fits_person(text_of(output, "alive"))


def test_a_hopeless_grammar_is_a_failure_before_anything_is_generated() -> None:
    engine, runner = make_engine(always(0))
    engine.add("g", generate(grammar=Grammar(kind="regex", source="(a")))
    end = only_end(run(engine))
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.UNSUPPORTED_GRAMMAR
    assert "unclosed group" in end.message
    assert not runner.batches


def test_a_constrained_request_can_be_aborted() -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE))
    engine.add("g", generate(grammar=PERSON))
    engine.abort("g", Abort(request_id="r", attempt=1))
    assert reason(run(engine)) == "abort"


SPECIAL_TEXTS = [
    (Grammar(kind="json_schema", source='{"const": "<|im_end|>"}'), '"<|im_end|>"'),
    (Grammar(kind="json_schema", source='{"enum": ["a<tool_call>"]}'), '"a<tool_call>"'),
    (Grammar(kind="choice", source='["<tool_call>"]'), "<tool_call>"),
    (Grammar(kind="choice", source='["<|im_start|><|im_end|>"]'), "<|im_start|><|im_end|>"),
    (Grammar(kind="regex", source="x <\\|im_end\\|> y"), "x <|im_end|> y"),
    (Grammar(kind="lark", source='start: "</tool_call>" "!"'), "</tool_call>!"),
]


@pytest.mark.parametrize("logprobs", [None, 0], ids=["forced", "sampled"])
@pytest.mark.parametrize(("grammar", "text"), SPECIAL_TEXTS)
def test_a_text_that_spells_special_tokens_is_written_with_ordinary_ones(
    grammar: Grammar, text: str, logprobs: int | None
) -> None:
    engine, _ = make_engine(hashed_token(VOCAB_SIZE))
    engine.add(
        "g", generate(sampling=SamplingParams(temperature=0.0, logprobs=logprobs), grammar=grammar)
    )
    output = run(engine)
    assert text_of(output) == text
    assert reason(output) == "stop"
    assert not set(ids_of(output)) & (set(TOKENIZER.added_token_ids().values()) - {EOS})


def exhausted_after(num_states: int) -> Constraint:
    """A constraint whose lexer may have only so many states, which a text soon uses up."""
    vocabulary = GrammarVocabulary(TOKENIZER, VOCAB_SIZE)
    limits = LLParserLimits(max_lexer_states=num_states, verbose_errors=False)
    source = "start: /[a-z]*e[a-z]{30}/"
    matcher = LLMatcher(vocabulary.ll_tokenizer, source, log_level=0, limits=limits)
    return Constraint(matcher, vocabulary, jumps=True)


@pytest.mark.parametrize("num_states", range(60, 110, 10))
def test_a_constraint_that_meets_a_limit_ends_its_request_and_nothing_follows(
    num_states: int,
) -> None:
    engine, _ = make_engine(lambda ids: ord("e") if len(ids) % 3 else ord("a"))
    command = generate(grammar=Grammar(kind="regex", source="-"))
    constraint = exhausted_after(num_states)
    accepted = engine.acceptor.accept(
        "g", command, received_at=time.monotonic(), constraint=constraint
    )
    engine.add("g", command, accepted=accepted)
    output = run(engine)
    end = only_end(output)
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.UNSUPPORTED_GRAMMAR
    assert "states" in end.message
    assert re.fullmatch("[ae]*", text_of(output))


def test_an_output_that_ended_outside_its_grammar_elsewhere_is_no_good_end() -> None:
    engine, _ = make_engine(always(0))
    resumed = generate(grammar=TICKET, attempt=2, output_token_ids=(ord("A"), ord("B"), EOS))
    engine.add("g", resumed)
    end = only_end(run(engine))
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.UNSUPPORTED_GRAMMAR


def test_what_an_earlier_attempt_wrote_against_the_grammar_fails_at_once() -> None:
    engine, runner = make_engine(always(0))
    engine.add("g", generate(grammar=TICKET, attempt=2, output_token_ids=(ord("A"), ord("7"))))
    output = run(engine)
    assert isinstance(only_end(output), Failure)
    assert not runner.batches
    assert not text_of(output)


def test_an_output_that_says_it_ends_must_be_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make_engine(always(EOS))
    # A mask with a fault: it allows what the grammar doesn't.
    monkeypatch.setattr(
        Constraint, "mask", lambda self: np.full(-(-VOCAB_SIZE // 32), -1, "i4").view("u4")
    )
    engine.add("g", generate(grammar=TICKET))
    assert isinstance(only_end(run(engine)), Failure)


def test_an_output_with_a_grammar_is_freed_with_its_matcher_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at a full collection of garbage, before which thousands of outputs may end."""
    alive: weakref.WeakSet[Constraint] = weakref.WeakSet()
    start = GrammarCompiler.start

    def watched(compiler: GrammarCompiler, *args: Any) -> Constraint:
        constraint = start(compiler, *args)
        alive.add(constraint)
        return constraint

    monkeypatch.setattr(GrammarCompiler, "start", watched)
    engine, runner = make_engine(hashed_token(VOCAB_SIZE))
    gc.disable()
    try:
        for number in range(3):
            engine.add("g", generate(f"{number}", grammar=PERSON))
            assert len(alive) == 1
            run(engine)
            runner.batches.clear()  # it keeps what it was given
            assert not alive
        # One that was accepted elsewhere, and then refused.
        constraint = COMPILER.start(PERSON, GREEDY)
        command = generate("refused", grammar=PERSON)
        engine.acceptor.accept("g", command, received_at=0.0, constraint=constraint)
        del constraint
        assert not alive
    finally:
        gc.enable()
