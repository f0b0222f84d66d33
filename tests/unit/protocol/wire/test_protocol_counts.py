"""Numbers of tokens that a foreign peer sends are never negative."""

import msgspec
import pytest

from protocol.wire import codec
from protocol.wire.messages import Finished, Message, Prepared, StepOutput, Usage


@pytest.mark.parametrize(
    "message",
    [
        StepOutput(
            ends=(
                Finished(
                    request_id="r",
                    choice=0,
                    attempt=1,
                    finish_reason="stop",
                    usage=Usage(prompt_tokens=1, completion_tokens=-1),
                ),
            )
        ),
        Prepared(request_id="r", prompt_token_ids=(1,), max_output_tokens=-5),
    ],
)
def test_a_negative_count_does_not_pass_the_border(message: Message) -> None:
    frame = msgspec.msgpack.encode(message)
    with pytest.raises(Exception, match="int"):
        codec.engine_event_decoder().decode(frame)
