"""What an engine finds wrong with a prompt is named by the field that the prompt came from."""

import pytest

from gateway.errors import RemoteFailureError
from protocol.errors import ErrorCode
from protocol.wire.messages import Prepare
from tests.fakes.request_parts import Parts, generation_job


@pytest.mark.parametrize(
    ("told", "named"), [("messages", "input"), ("tools", "tools"), (None, None)]
)
async def test_messages_are_the_input_of_a_response(told: str | None, named: str | None) -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.prepared_generation(generation_job(prompt_param="input"))
    (asked,) = parts.engine_wire.of(Prepare)
    code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
    await parts.fail(one, asked.request_id, code, param=told)
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert (error.code, error.param) == (code, named)
