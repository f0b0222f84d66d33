"""Messages that can't be sent: which parts they fall into, and who is told."""

from typing import Any

import pytest

from protocol.errors import EncodeError, ErrorCode, MessageTooLargeError
from protocol.wire import codec
from protocol.wire.messages import (
    Delta,
    Failure,
    Finished,
    Heartbeat,
    Message,
    ParsedBatch,
    ParsedDelta,
    ParseEvent,
    StepOutput,
    Usage,
)
from protocol.wire.messages.control import Load
from protocol.wire.unsendable import failure_instead, split, unsent


def delta(request_id: str, text: str = "x", **options: Any) -> Delta:
    return Delta(request_id=request_id, choice=0, attempt=1, text=text, **options)


END = Finished(
    request_id="a",
    choice=0,
    attempt=1,
    finish_reason="stop",
    usage=Usage(prompt_tokens=1, completion_tokens=1),
)


@pytest.mark.parametrize(
    "message",
    [
        Failure(request_id="r", code=ErrorCode.INTERNAL_ERROR, message="a\udfff"),
        ParsedBatch(
            deltas=(
                ParsedDelta(
                    request_id="r",
                    choice=0,
                    attempt=0,
                    events=(ParseEvent(kind="content", text="\ud83d"),),
                ),
            )
        ),
        StepOutput(deltas=(delta("r", token_ids=(2**64,)),)),
    ],
)
def test_what_cannot_be_written_is_one_kind_of_error(message: Message) -> None:
    with pytest.raises(EncodeError, match="can't be written as MessagePack"):
        codec.encode(message)
    with pytest.raises(EncodeError):
        codec.encode_value([message])


def test_a_step_falls_into_its_deltas_and_then_its_ends() -> None:
    output = StepOutput(
        deltas=(delta("a"), delta("b")), ends=(END,), progress_counter=7, load=Load(num_running=2)
    )
    assert split(output) == (
        StepOutput(deltas=(delta("a"),), progress_counter=7, load=Load(num_running=2)),
        StepOutput(deltas=(delta("b"),), progress_counter=7, load=Load(num_running=2)),
        StepOutput(ends=(END,), progress_counter=7, load=Load(num_running=2)),
    )
    assert split(StepOutput(deltas=(delta("a"),))) == ()
    assert split(StepOutput()) == ()
    assert split(END) == ()


def test_the_request_of_a_single_entry_is_told() -> None:
    told = failure_instead(
        StepOutput(deltas=(delta("a"),)), ErrorCode.INTERNAL_ERROR, "It can't be."
    )
    assert told == Failure(
        request_id="a",
        choice=0,
        attempt=1,
        code=ErrorCode.INTERNAL_ERROR,
        message="It can't be.",
    )
    heartbeat = Heartbeat(instance_id="w", phase="ready", detail="\ud800")
    assert failure_instead(heartbeat, ErrorCode.INTERNAL_ERROR, "") is None


def test_a_message_that_is_too_large_says_so() -> None:
    told = unsent(END, MessageTooLargeError("A message of 9 bytes is over the limit."), "worker")
    assert told is not None
    assert (told.code, told.message) == (
        ErrorCode.REQUEST_TOO_LARGE,
        "A message of 9 bytes is over the limit.",
    )
