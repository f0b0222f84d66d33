"""What waits for a peer: bounded, ordered, sent in batches, merging while the peer is slow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, PeerOverflowError
from protocol.wire import codec
from protocol.wire.messages import (
    Abort,
    Delta,
    Detokenize,
    Embed,
    Failure,
    Finished,
    Message,
    Prepare,
    StepOutput,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from protocol.wire.send_queue import SendQueue, merge_step_outputs


def output(*deltas: Delta, ends: tuple[Finished | Failure, ...] = (), counter: int = 0) -> Message:
    return StepOutput(deltas=deltas, ends=ends, progress_counter=counter)


def delta(request_id: str, text: str, attempt: int = 0) -> Delta:
    return Delta(
        request_id=request_id, choice=0, attempt=attempt, text=text, token_ids=(len(text),)
    )


def end(request_id: str) -> Finished:
    return Finished(request_id=request_id, choice=0, attempt=0, finish_reason="stop", usage=Usage())


def push(queue: SendQueue, message: Message) -> None:
    queue.push(message, codec.encode(message))


def drained(queue: SendQueue, max_batch_bytes: int = 10**6) -> list[bytes]:
    frames = []
    while queue:
        frames.append(queue.head(max_batch_bytes))
        queue.pop()
    return frames


def test_deltas_of_one_stream_merge_and_the_later_state_counts() -> None:
    merged = merge_step_outputs(
        output(delta("a", "one "), delta("b", "x"), counter=1),
        output(delta("a", "two"), counter=2, ends=(end("a"),)),
    )
    assert merged == StepOutput(
        deltas=(
            Delta(request_id="a", choice=0, attempt=0, text="one two", token_ids=(4, 3)),
            delta("b", "x"),
        ),
        ends=(end("a"),),
        progress_counter=2,
    )


SCORE = TokenLogprob(token_id=1, text="a", data=b"a", logprob=0.0, rank=1)
SCORES = (TokenLogprobs(chosen=SCORE),)
WHOLE = Delta(
    request_id="a",
    choice=0,
    attempt=0,
    text="one",
    token_ids=(3,),
    token_ends=(3,),
    logprobs=SCORES,
    prompt_logprobs=SCORES,
    unenforced=("/maxItems",),
    cached_tokens=48,
)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_delta_that_merges_loses_no_field(*, is_first: bool) -> None:
    empty = Delta(request_id="a", choice=0, attempt=0)
    fields = set(Delta.__struct_fields__) - {"request_id", "choice", "attempt"}
    assert all(getattr(WHOLE, name) != getattr(empty, name) for name in fields)
    pair = (WHOLE, empty) if is_first else (empty, WHOLE)
    merged = merge_step_outputs(output(pair[0]), output(pair[1]))
    assert isinstance(merged, StepOutput)
    assert merged.deltas == (WHOLE,)


def test_another_attempt_is_another_stream() -> None:
    merged = merge_step_outputs(output(delta("a", "x")), output(delta("a", "y", attempt=1)))
    assert isinstance(merged, StepOutput)
    assert [entry.text for entry in merged.deltas] == ["x", "y"]


def test_nothing_merges_across_the_end_of_its_stream() -> None:
    assert merge_step_outputs(output(ends=(end("a"),)), output(delta("a", "again"))) is None
    whole = Failure(request_id="a", code=ErrorCode.INTERNAL_ERROR, message="")
    assert merge_step_outputs(output(ends=(whole,)), output(delta("a", "again"))) is None


def test_other_messages_stay_apart() -> None:
    abort = Abort(request_id="a", attempt=0)
    assert merge_step_outputs(abort, output()) is None
    assert merge_step_outputs(output(), abort) is None


def test_a_large_message_is_not_merged_into_one_that_no_peer_takes() -> None:
    queue = SendQueue(10**6, 1000, merge_step_outputs)
    queue.is_blocked = True
    small, large = output(delta("a", "x")), output(delta("a", "y" * 1000))
    push(queue, small)
    push(queue, large)
    assert drained(queue) == [codec.encode(small), codec.encode(large)]


def test_beyond_the_bound_a_message_is_refused_and_the_rest_is_kept() -> None:
    queue = SendQueue(max_bytes=100, max_merged_bytes=0, merge=None)
    queue.is_blocked = True
    push(queue, Abort(request_id="x" * 40, attempt=0))
    with pytest.raises(PeerOverflowError):
        push(queue, Abort(request_id="y" * 80, attempt=0))
    assert len(drained(queue)) == 1
    assert queue.num_bytes == 0


def test_one_message_alone_is_taken_whatever_its_size() -> None:
    queue = SendQueue(max_bytes=10, max_merged_bytes=0, merge=None)
    queue.is_blocked = True
    push(queue, Abort(request_id="x" * 1000, attempt=0))
    assert len(queue) == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=5), st.booleans()), max_size=40),
    st.integers(0, 200),
)
def test_a_reader_gets_the_same_streams_however_much_was_merged(
    steps: list[tuple[str, str, bool]], max_merged_bytes: int
) -> None:
    queue = SendQueue(10**6, max_merged_bytes, merge_step_outputs)
    queue.is_blocked = True
    expected: dict[str, list[str]] = {}
    for request_id, text, is_end in steps:
        ends = (end(request_id),) if is_end else ()
        push(queue, output(delta(request_id, text), ends=ends))
        expected.setdefault(request_id, []).extend([*text, *(["END"] if is_end else [])])
    received: dict[str, list[str]] = {}
    decoder = codec.engine_event_decoder()
    for frame in drained(queue):
        message = decoder.decode(frame)
        assert isinstance(message, StepOutput)
        for entry in message.deltas:
            received.setdefault(entry.request_id, []).extend(entry.text)
        for ended in message.ends:
            received.setdefault(ended.request_id, []).append("END")
    assert received == expected


def abort(request_id: str) -> Abort:
    return Abort(request_id=request_id, attempt=0)


def detokenize(request_id: str) -> Detokenize:
    return Detokenize(request_id=request_id, token_ids=(1,), deadline_s=1.0)


def received_ids(frames: list[bytes]) -> list[str]:
    decoder = codec.engine_command_decoder()
    messages = [message for frame in frames for message in decoder.decode_all(frame)]
    assert all(isinstance(message, Abort | Detokenize | Prepare | Embed) for message in messages)
    return [message.request_id for message in messages]  # type: ignore[union-attr]


def test_a_peer_that_takes_batches_gets_what_has_queued_up_in_one_frame_in_order() -> None:
    queue = SendQueue(10**6, 0, None)
    queue.takes_batches = True
    for number in range(40):
        push(queue, abort(str(number)))
    (frame,) = drained(queue)
    assert received_ids([frame]) == [str(number) for number in range(40)]
    assert queue.num_bytes == 0


def test_a_batch_ends_before_its_bounds_in_bytes_and_in_messages() -> None:
    queue = SendQueue(10**6, 0, None)
    queue.takes_batches = True
    size = len(codec.encode(abort("00")))
    for number in range(10, 20):
        push(queue, abort(str(number)))
    push(queue, abort("x" * 500))
    frames = drained(queue, max_batch_bytes=4 * size)
    assert [len(received_ids([frame])) for frame in frames] == [4, 4, 2, 1]
    for number in range(codec.MAX_BATCH_MESSAGES + 1):
        push(queue, abort(str(number)))
    assert [len(received_ids([frame])) for frame in drained(queue)] == [
        codec.MAX_BATCH_MESSAGES,
        1,
    ]


def test_an_older_peer_gets_a_frame_for_each_message() -> None:
    queue = SendQueue(10**6, 0, None)
    for request_id in "ab":
        push(queue, abort(request_id))
    assert drained(queue) == [codec.encode(abort("a")), codec.encode(abort("b"))]


def test_nothing_is_refused_or_merged_while_the_peer_takes_what_comes() -> None:
    queue = SendQueue(max_bytes=10, max_merged_bytes=10**6, merge=merge_step_outputs)
    push(queue, output(delta("a", "x" * 20)))
    push(queue, output(delta("a", "y")))
    assert len(queue) == 2


@pytest.mark.parametrize(
    "question",
    [
        Prepare(request_id="gone", deadline_s=1.0, kind="completion", prompt="hello"),
        detokenize("gone"),
        Embed(request_id="gone", deadline_s=1.0, texts=("hello",)),
    ],
)
def test_a_cancelled_question_that_has_not_left_is_dropped(question: Message) -> None:
    queue = SendQueue(10**6, 0, None)
    queue.takes_batches = True
    push(queue, abort("first"))
    push(queue, question)
    queue.head(10**6)  # tried in vain
    push(queue, abort("last"))
    assert queue.cancel("gone")
    assert not queue.cancel("gone")
    assert received_ids(drained(queue)) == ["first", "last"]
    assert queue.num_bytes == 0


def test_only_questions_are_cancelled_and_only_those_of_the_request() -> None:
    queue = SendQueue(10**6, 0, None)
    queue.takes_batches = True
    for message in (abort("a"), detokenize("a"), detokenize("b"), detokenize("a")):
        push(queue, message)
    assert not queue.cancel("c")
    assert queue.cancel("a")
    assert received_ids(drained(queue)) == ["a", "b"]


def test_a_question_that_has_left_is_not_cancelled() -> None:
    queue = SendQueue(10**6, 0, None)
    push(queue, detokenize("a"))
    drained(queue)
    assert not queue.cancel("a")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from("abc")),
            st.tuples(st.just("abort"), st.sampled_from("abc")),
            st.tuples(st.just("cancel"), st.sampled_from("abc")),
            st.tuples(st.just("try"), st.just("")),
            st.tuples(st.just("send"), st.just("")),
        ),
        max_size=40,
    ),
    st.integers(1, 200),
    st.booleans(),
)
def test_whatever_is_asked_and_cancelled_the_rest_arrives_once_and_in_order(
    steps: list[tuple[str, str]], max_batch_bytes: int, takes_batches: bool
) -> None:
    queue = SendQueue(10**6, 0, None)
    queue.takes_batches = takes_batches
    waiting: list[tuple[str, str]] = []
    sent: list[bytes] = []
    gone: list[str] = []
    for step, request_id in steps:
        if step == "ask":
            push(queue, detokenize(request_id))
            waiting.append((step, request_id))
        elif step == "abort":
            push(queue, abort(request_id))
            waiting.append((step, request_id))
        elif step == "cancel":
            assert queue.cancel(request_id) == (("ask", request_id) in waiting)
            waiting = [entry for entry in waiting if entry != ("ask", request_id)]
        elif queue:
            frame = queue.head(max_batch_bytes)
            if step == "send":
                queue.pop()
                sent.append(frame)
                num_left = len(received_ids([frame]))
                gone += [entry[1] for entry in waiting[:num_left]]
                waiting = waiting[num_left:]
        assert len(queue) == len(waiting)
    sent += drained(queue, max_batch_bytes)
    assert received_ids(sent) == gone + [entry[1] for entry in waiting]
    assert queue.num_bytes == 0
