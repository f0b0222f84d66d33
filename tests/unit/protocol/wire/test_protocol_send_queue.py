"""The queue to a slow peer: bounded, ordered, and merging."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, PeerOverflowError
from protocol.wire import codec
from protocol.wire.messages import Abort, Delta, Failure, Finished, Message, StepOutput, Usage
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


def drained(queue: SendQueue) -> list[bytes]:
    frames = []
    while queue:
        frames.append(queue.first())
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


def test_beyond_the_bound_a_message_is_refused_and_the_rest_is_kept() -> None:
    queue = SendQueue(max_bytes=100, max_merged_bytes=0, merge=None)
    push(queue, Abort(request_id="x" * 40, attempt=0))
    with pytest.raises(PeerOverflowError):
        push(queue, Abort(request_id="y" * 80, attempt=0))
    assert len(drained(queue)) == 1
    assert queue.num_bytes == 0


def test_one_message_alone_is_taken_whatever_its_size() -> None:
    queue = SendQueue(max_bytes=10, max_merged_bytes=0, merge=None)
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
