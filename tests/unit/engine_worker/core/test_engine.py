from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.core.choice.token_mask import is_allowed
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Delta,
    Extend,
    Failure,
    Finished,
    Generate,
    SamplingParams,
    Usage,
)
from tests.fakes.fake_runner import DeterministicFakeRunner, NextToken, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.encode("<|im_end|>", add_special_tokens=False)[0]
VOCAB_SIZE = TOKENIZER.num_tokens
PROMPT = (104, 105)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def spelling(text: str, prompt_length: int = len(PROMPT)) -> NextToken:
    """A model that answers with a text and then ends the sequence."""
    output = [*text.encode(), EOS]

    def next_token(token_ids: Sequence[int]) -> int:
        index = min(len(token_ids) - prompt_length, len(output) - 1)
        return int(output[index])

    return next_token


def make_engine(next_token: NextToken, **runner_options: Any) -> tuple[Engine, Clock]:
    clock = Clock()
    runner = DeterministicFakeRunner(next_token, **runner_options)
    return Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=200, clock=clock), clock


def generate(
    request_id: str = "r", *, sampling: SamplingParams | None = None, **changes: Any
) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "prompt_token_ids": PROMPT,
        "lease_tokens": 1000,
        "deadline_s": 60.0,
        **changes,
    }
    return Generate(
        request_id=request_id, sampling=sampling or SamplingParams(temperature=0.0), **options
    )


def run(engine: Engine, gateway_id: str = "g", max_steps: int = 500) -> GatewayOutput:
    """Steps until there is nothing left to do; what one gateway was told."""
    told = GatewayOutput()
    for _ in range(max_steps):
        if not engine.has_work():
            return told
        output = engine.step().get(gateway_id, GatewayOutput())
        told.deltas.extend(output.deltas)
        told.ends.extend(output.ends)
    raise AssertionError("the engine doesn't come to rest")


def text_of(output: GatewayOutput) -> str:
    return "".join(delta.text for delta in output.deltas)


def only_end(output: GatewayOutput) -> Finished | Failure:
    (end,) = output.ends
    return end


def test_an_answer_streams_and_ends_at_end_of_sequence() -> None:
    engine, _ = make_engine(spelling("héllo"))
    engine.add("g", generate())
    output = run(engine)
    assert [delta.text for delta in output.deltas] == ["h", "é", "l", "l", "o"]
    assert only_end(output) == Finished(
        request_id="r",
        choice=0,
        attempt=1,
        finish_reason="stop",
        usage=Usage(prompt_tokens=2, completion_tokens=7),
    )
    assert engine.num_unfinished == 0


def test_max_tokens_ends_with_length_and_flushes_a_half_character() -> None:
    engine, _ = make_engine(spelling("hé"))
    engine.add("g", generate(sampling=SamplingParams(temperature=0.0, max_tokens=2)))
    output = run(engine)
    assert text_of(output) == "h\ufffd"
    end = only_end(output)
    assert isinstance(end, Finished)
    assert end.finish_reason == "length"


def test_the_context_ends_an_answer_without_max_tokens() -> None:
    engine, _ = make_engine(lambda _: 65, num_blocks=4, block_size=4)
    assert engine.max_model_len == 16
    engine.add("g", generate())
    end = only_end(run(engine))
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("length", 14)


def test_a_stop_string_ends_the_text_before_it_and_is_named() -> None:
    engine, _ = make_engine(spelling("one END two"))
    engine.add("g", generate(sampling=SamplingParams(temperature=0.0, stop=("END",))))
    output = run(engine)
    end = only_end(output)
    assert isinstance(end, Finished)
    assert (text_of(output), end.finish_reason, end.stop_reason) == ("one ", "stop", "END")


def test_a_stop_id_is_named_and_its_text_left_out_unless_wanted() -> None:
    for include, text in ((False, "a"), (True, "ab")):
        engine, _ = make_engine(spelling("abc"))
        sampling = SamplingParams(
            temperature=0.0, stop_token_ids=(ord("b"),), include_stop_str_in_output=include
        )
        engine.add("g", generate(sampling=sampling))
        output = run(engine)
        end = only_end(output)
        assert isinstance(end, Finished)
        assert (text_of(output), end.stop_reason) == (text, ord("b"))


def test_ignore_eos_goes_on_past_the_end_of_sequence() -> None:
    engine, _ = make_engine(spelling("a"))
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=5)
    engine.add("g", generate(sampling=sampling))
    output = run(engine)
    end = only_end(output)
    assert isinstance(end, Finished)
    assert (text_of(output), end.usage.completion_tokens) == ("a", 5)


def test_stop_ids_are_masked_until_min_tokens() -> None:
    runner = DeterministicFakeRunner(lambda _: 65)
    engine = Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=200)
    sampling = SamplingParams(temperature=0.0, min_tokens=2, max_tokens=3, stop_token_ids=(9,))
    engine.add("g", generate(sampling=sampling))
    run(engine)
    masks = [batch.rows[0].allowed_mask for batch in runner.batches]
    assert masks[2] is None
    for mask in masks[:2]:
        assert mask is not None
        forbidden = {token_id for token_id in range(VOCAB_SIZE) if not is_allowed(mask, token_id)}
        assert forbidden == {9, EOS}


def test_token_ids_and_their_ends_come_when_wanted() -> None:
    engine, _ = make_engine(spelling("hé!"))
    engine.add("g", generate(want_token_ids=True))
    output = run(engine)
    assert [(d.token_ids, d.token_ends, d.text) for d in output.deltas] == [
        ((104,), (1,), "h"),
        ((0xC3,), (1,), ""),
        ((0xA9,), (2,), "é"),
        ((33,), (3,), "!"),
        ((EOS,), (3,), ""),
    ]


def test_many_requests_share_steps_and_get_what_each_gets_alone() -> None:
    next_token = hashed_token(256)
    alone = []
    for index in range(6):
        engine, _ = make_engine(next_token)
        engine.add("g", generate(prompt_token_ids=(index,) * 9, sampling=long_sampling()))
        alone.append(text_of(run(engine)))
    engine, _ = make_engine(next_token, num_blocks=20)
    for index in range(6):
        command = generate(str(index), prompt_token_ids=(index,) * 9, sampling=long_sampling())
        engine.add("g", command)
    output = run(engine)
    together = [
        "".join(delta.text for delta in output.deltas if delta.request_id == str(index))
        for index in range(6)
    ]
    assert together == alone
    assert engine.num_preemptions > 0


def long_sampling() -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def test_a_resumed_answer_continues_where_the_client_stopped_reading() -> None:
    full = "a€b€c€d"
    output_so_far = tuple(full.encode()[:6])  # ends inside the second €
    for num_sent, expected in ((0, full), (2, "b€c€d"), (3, "€c€d")):
        engine, _ = make_engine(spelling(full))
        command = generate(attempt=2, output_token_ids=output_so_far, num_sent_characters=num_sent)
        engine.add("g", command)
        output = run(engine)
        end = only_end(output)
        assert isinstance(end, Finished)
        assert text_of(output) == expected
        assert end.usage.completion_tokens == len(full.encode()) + 1


def test_a_resumed_answer_that_was_complete_ends_at_once() -> None:
    runner = DeterministicFakeRunner(spelling("ab"))
    engine = Engine(runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=200)
    engine.add("g", generate(output_token_ids=(*b"ab", EOS), num_sent_characters=1))
    output = run(engine)
    end = only_end(output)
    assert isinstance(end, Finished)
    assert (text_of(output), end.finish_reason) == ("b", "stop")
    assert runner.batches == []


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_resume_after_any_token_gives_the_same_text_as_no_break(data: st.DataObject) -> None:
    next_token = hashed_token(256)
    sampling = SamplingParams(temperature=0.0, max_tokens=24, stop=("0", "ab"), min_tokens=3)
    engine, _ = make_engine(next_token)
    engine.add("g", generate(sampling=sampling, want_token_ids=True))
    whole = run(engine)
    num_deltas = data.draw(st.integers(0, len(whole.deltas)))
    before = whole.deltas[:num_deltas]
    resumed, _ = make_engine(next_token)
    resumed.add(
        "g",
        generate(
            attempt=2,
            sampling=sampling,
            output_token_ids=tuple(t for delta in before for t in delta.token_ids),
            num_sent_characters=sum(len(delta.text) for delta in before),
        ),
    )
    after = run(resumed)
    assert "".join(d.text for d in before) + text_of(after) == text_of(whole)
    first, second = only_end(whole), only_end(after)
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (first.finish_reason, first.stop_reason, first.usage) == (
        second.finish_reason,
        second.stop_reason,
        second.usage,
    )


def test_the_engine_never_generates_beyond_the_lease() -> None:
    engine, _ = make_engine(spelling("hello"))
    engine.add("g", generate(lease_tokens=2))
    assert text_of(run(engine)) == "he"
    assert engine.num_unfinished == 1
    assert engine.load().num_running == 0
    engine.extend("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=3))
    assert text_of(run(engine)) == "l"
    engine.extend("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=1))
    engine.extend("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=100))
    assert text_of(run(engine)) == "lo"


def test_an_abort_ends_with_the_usage_so_far_and_is_idempotent() -> None:
    engine, _ = make_engine(lambda _: 65)
    engine.add("g", generate())
    for _ in range(3):
        engine.step()
    abort = Abort(request_id="r", attempt=1)
    engine.abort("g", abort)
    engine.abort("g", abort)
    end = only_end(run(engine))
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"
    assert end.usage == Usage(prompt_tokens=2, completion_tokens=3)


def test_an_abort_stops_every_choice_or_only_one() -> None:
    engine, _ = make_engine(lambda _: 65)
    for choice in range(3):
        engine.add("g", generate(choice=choice))
    engine.abort("g", Abort(request_id="r", attempt=1, choice=1))
    assert [end.choice for end in engine.step()["g"].ends] == [1]
    engine.abort("g", Abort(request_id="r", attempt=1))
    assert sorted(end.choice for end in engine.step()["g"].ends) == [0, 2]


def test_an_abort_ahead_of_its_request_ends_it_when_it_comes() -> None:
    engine, _ = make_engine(lambda _: 65)
    engine.abort("g", Abort(request_id="r", attempt=1))
    engine.add("g", generate())
    end = only_end(run(engine))
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"
    engine.add("g", generate())
    assert run(engine).ends == []
    engine.add("g", generate(attempt=2))
    assert engine.num_unfinished == 1


def test_a_newer_attempt_replaces_the_older_and_stale_ones_are_refused() -> None:
    engine, _ = make_engine(spelling("hello"))
    engine.add("g", generate(attempt=2))
    engine.add("g", generate(attempt=2))
    engine.add("g", generate(attempt=3))
    engine.add("g", generate(attempt=1))
    output = run(engine)
    ends = {end.attempt: end for end in output.ends}
    assert len(output.ends) == 3
    replaced, stale, newest = ends[2], ends[1], ends[3]
    assert isinstance(replaced, Finished)
    assert isinstance(stale, Failure)
    assert isinstance(newest, Finished)
    assert (replaced.finish_reason, newest.finish_reason) == ("abort", "stop")
    assert stale.code is ErrorCode.UNKNOWN_REQUEST
    assert {delta.attempt for delta in output.deltas} == {3}


def test_a_row_with_nan_fails_alone() -> None:
    engine, _ = make_engine(spelling("ok"), nan_prompts=frozenset({7}))
    engine.add("g", generate("good"))
    engine.add("g", generate("bad", prompt_token_ids=(7, 7)))
    ends = {end.request_id: end for end in run(engine).ends}
    assert isinstance(ends["good"], Finished)
    bad = ends["bad"]
    assert isinstance(bad, Failure)
    assert bad.code is ErrorCode.INTERNAL_ERROR


def test_a_step_that_raises_ends_its_requests_and_the_others_go_on() -> None:
    next_token = hashed_token(256)
    calm, _ = make_engine(next_token)
    calm.add("g", generate("paused", sampling=long_sampling()))
    expected = text_of(run(calm))

    engine, _ = make_engine(next_token, fail_steps=frozenset({3}))
    engine.add("g", generate("paused", lease_tokens=2, sampling=long_sampling()))
    first = run(engine)
    engine.add("g", generate("unlucky", prompt_token_ids=(5,), sampling=long_sampling()))
    failed = only_end(run(engine))
    assert isinstance(failed, Failure)
    # Not a verdict on the request: it may have been another row's fault.
    assert (failed.request_id, failed.code) == ("unlucky", ErrorCode.WORKER_LOST)
    assert failed.usage == Usage(prompt_tokens=1, completion_tokens=1)
    engine.extend("g", Extend(request_id="paused", choice=0, attempt=1, lease_tokens=1000))
    rest = run(engine)
    assert text_of(first) + text_of(rest) == expected


def test_a_result_that_cannot_be_read_costs_its_own_step_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    next_token = hashed_token(256)
    calm, _ = make_engine(next_token)
    calm.add("g", generate("paused", sampling=long_sampling()))
    expected = text_of(run(calm))

    engine, _ = make_engine(next_token)
    engine.add("g", generate("paused", lease_tokens=2, sampling=long_sampling()))
    first = run(engine)
    for name in ("ended", "unlucky"):
        engine.add("g", generate(name, sampling=long_sampling()))

    def take_result(rows: Sequence[Any], _result: object) -> int:
        engine.abort("g", Abort(request_id="ended", attempt=1))
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(engine._progress, "_take_result", take_result)
        ends = {end.request_id: end for end in engine.step()["g"].ends}
    assert isinstance(ends["ended"], Finished)
    assert isinstance(ends["unlucky"], Failure)
    assert ends["unlucky"].code is ErrorCode.WORKER_LOST
    engine.extend("g", Extend(request_id="paused", choice=0, attempt=1, lease_tokens=1000))
    assert text_of(first) + text_of(run(engine)) == expected


class Panic(BaseException):
    """As a native library's, which is no `Exception`."""


@pytest.mark.parametrize(
    "name",
    ["acceptor.accept", "_scheduler.add", "_choices.add", "_metrics.on_added", "_progress.go_on"],
)
@pytest.mark.parametrize("bug", [RuntimeError, Panic])
def test_a_bug_while_a_request_is_taken_costs_that_request_only(
    monkeypatch: pytest.MonkeyPatch, name: str, bug: type[BaseException]
) -> None:
    """It ended the process with everybody's requests."""

    def broken(*_: object, **__: object) -> None:
        raise bug("a bug")

    engine, _ = make_engine(hashed_token(256))
    engine.add("g", generate("good", sampling=long_sampling()))
    owner, _, attribute = name.partition(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(engine, owner), attribute, broken)
        engine.add("g", generate("bad", sampling=long_sampling()))
    ends = {end.request_id: end for end in run(engine).ends}
    assert isinstance(ends["good"], Finished)
    assert isinstance(ends["bad"], Failure)
    assert ends["bad"].code is ErrorCode.INTERNAL_ERROR
    assert engine.num_unfinished == 0


@pytest.mark.parametrize("bug", [RuntimeError, Panic])
def test_a_bug_while_a_lease_grows_costs_that_request_only(
    monkeypatch: pytest.MonkeyPatch, bug: type[BaseException]
) -> None:
    engine, _ = make_engine(hashed_token(256))
    for name in ("good", "bad"):
        engine.add("g", generate(name, lease_tokens=2, sampling=long_sampling()))
    run(engine)

    def broken(_output: object) -> bool:
        raise bug("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(ChoiceOutput, "append_forced", broken)
        engine.extend("g", Extend(request_id="bad", choice=0, attempt=1, lease_tokens=1000))
    engine.extend("g", Extend(request_id="good", choice=0, attempt=1, lease_tokens=1000))
    ends = {end.request_id: end for end in run(engine).ends}
    assert isinstance(ends["good"], Finished)
    assert isinstance(ends["bad"], Failure)
    assert ends["bad"].code is ErrorCode.INTERNAL_ERROR
    assert engine.num_unfinished == 0


def test_a_request_ends_at_its_deadline_even_while_it_waits_for_its_lease() -> None:
    engine, clock = make_engine(spelling("hello"))
    engine.add("g", generate(lease_tokens=1, deadline_s=5.0))
    run(engine)
    assert engine.next_deadline() == 105.0
    clock.now = 105.0
    end = engine.step()["g"].ends[0]
    assert isinstance(end, Failure)
    assert end.code is ErrorCode.DEADLINE_EXCEEDED
    assert end.usage == Usage(prompt_tokens=2, completion_tokens=1)


def test_a_gateway_that_is_gone_is_forgotten_without_a_word() -> None:
    engine, _ = make_engine(spelling("hello"))
    engine.add("gone", generate())
    engine.add("here", generate())
    engine.step()
    engine.forget_gateway("gone")
    assert set(engine.held()) == {"here"}
    assert run(engine, "gone").ends == []
    engine.add("here", generate("next"))
    assert text_of(run(engine, "here")) == "hello"


def sampling_with(name: str, value: Any) -> SamplingParams:
    changes: dict[str, Any] = {name: value}
    return SamplingParams(**changes)


BAD: list[tuple[dict[str, Any], str, ErrorCode]] = [
    ({"prompt_token_ids": ()}, "prompt", ErrorCode.INVALID_REQUEST),
    ({"prompt_token_ids": (VOCAB_SIZE,)}, "prompt", ErrorCode.INVALID_REQUEST),
    ({"prompt_token_ids": (-1,)}, "prompt", ErrorCode.INVALID_REQUEST),
    ({"prompt_token_ids": (1,) * 200}, "prompt", ErrorCode.CONTEXT_LENGTH_EXCEEDED),
    ({"deadline_s": float("nan")}, "deadline_s", ErrorCode.INVALID_REQUEST),
    *(
        ({"sampling": sampling_with(name, value)}, name, ErrorCode.INVALID_REQUEST)
        for name, value in (
            ("temperature", float("nan")),
            ("temperature", -0.1),
            ("temperature", float("inf")),
            ("top_p", -0.1),
            ("top_p", 1.1),
            ("top_k", -1),
            ("min_p", 1.5),
            ("presence_penalty", float("inf")),
            ("repetition_penalty", 0.0),
            ("max_tokens", 0),
            ("min_tokens", -1),
            ("stop", ("",)),
            ("stop", ("x" * 2000,)),
            ("stop_token_ids", (VOCAB_SIZE,)),
        )
    ),
]


@pytest.mark.parametrize(("changes", "param", "code"), BAD)
def test_a_bad_field_ends_the_request_and_is_named(
    changes: dict[str, Any], param: str, code: ErrorCode
) -> None:
    engine, _ = make_engine(spelling("x"))
    engine.add("g", generate(**changes))
    end = only_end(run(engine))
    assert isinstance(end, Failure)
    assert (end.code, end.param) == (code, param)
    engine.add("g", generate("next"))
    assert text_of(run(engine)) == "x"


COMMANDS = st.one_of(
    st.builds(
        generate,
        st.sampled_from("ab"),
        choice=st.integers(0, 1),
        attempt=st.integers(1, 3),
        lease_tokens=st.sampled_from([0, 2, 50]),
        prompt_token_ids=st.sampled_from([(1,), (1,) * 20, (7,), ()]),
        deadline_s=st.sampled_from([3.0, 60.0]),
        sampling=st.builds(SamplingParams, max_tokens=st.integers(1, 8)),
    ),
    st.builds(
        Abort,
        request_id=st.sampled_from("ab"),
        attempt=st.integers(1, 3),
        choice=st.integers(-1, 1),
    ),
    st.builds(
        Extend,
        request_id=st.sampled_from("ab"),
        attempt=st.integers(1, 3),
        choice=st.integers(0, 1),
        lease_tokens=st.just(50),
    ),
    st.just(None),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(COMMANDS, max_size=30), st.sets(st.integers(0, 20), max_size=2))
def test_every_accepted_attempt_ends_exactly_once(
    commands: list[Generate | Abort | Extend | None], failures: set[int]
) -> None:
    engine, clock = make_engine(
        hashed_token(256),
        num_blocks=8,
        fail_steps=frozenset(failures),
        nan_prompts=frozenset({7}),
    )
    deltas: list[Delta] = []
    ends: list[Finished | Failure] = []
    accepted: set[tuple[str, int, int]] = set()

    def collect() -> None:
        for output in engine.step().values():
            over = {(end.request_id, end.choice, end.attempt) for end in ends}
            assert not over & {(d.request_id, d.choice, d.attempt) for d in output.deltas}
            deltas.extend(output.deltas)
            ends.extend(output.ends)

    for command in commands:
        clock.now += 0.5
        if isinstance(command, Generate):
            accepted.add((command.request_id, command.choice, command.attempt))
            engine.add("g", command)
        elif isinstance(command, Abort):
            engine.abort("g", command)
        elif isinstance(command, Extend):
            engine.extend("g", command)
        else:
            collect()
    clock.now += 100.0
    while engine.has_work() or engine.num_unfinished:
        collect()
    ended = [(end.request_id, end.choice, end.attempt) for end in ends]
    assert len(ended) == len(set(ended))
    assert set(ended) == accepted
