"""Whatever JSON comes in: a checked request that converts, or an error that is the client's."""

from contextlib import suppress

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError
from gateway.http.bodies.convert import chat_job, completion_job, tokenize_question
from gateway.http.schemas.base.fields import CHAT_REFUSED_FIELDS, EXTENSION_REFUSED_FIELDS
from gateway.http.schemas.inference.chat import ChatRequest, parse_chat_body
from gateway.http.schemas.inference.completion import CompletionRequest, parse_completion_body
from gateway.http.schemas.inference.tokenize import (
    TokenizeRequest,
    parse_detokenize_body,
    parse_tokenize_body,
)
from tests.fakes.fuzz_effort import EFFORT

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool", "text", "function", "auto", "none", "m"])
)
NAMES = [
    *sorted(
        ChatRequest.known_fields
        | CompletionRequest.known_fields
        | TokenizeRequest.known_fields
        | set(CHAT_REFUSED_FIELDS)
        | set(EXTENSION_REFUSED_FIELDS)
    ),
    *(
        "tokens",
        "role",
        "content",
        "type",
        "text",
        "function",
        "name",
        "arguments",
        "id",
        "tool_calls",
    ),
]
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), VALUES, max_size=8)


@settings(max_examples=60 * EFFORT, deadline=None)
@given(BODIES)
def test_any_json_is_a_request_or_a_clear_error(body: dict[str, object]) -> None:
    for fields in (body, {"model": "m", "prompt": "x", "messages": [body], **body}):
        data = orjson.dumps(fields)
        # Any other exception than the client's own error fails the test.
        with suppress(InvalidRequestError):
            request, raw, _ = parse_chat_body(data)
            chat_job(request, raw)
        with suppress(InvalidRequestError):
            completion, _ = parse_completion_body(data)
            completion_job(completion)
        with suppress(InvalidRequestError):
            question, raw, _ = parse_tokenize_body(data)
            tokenize_question(question, raw)
        with suppress(InvalidRequestError):
            parse_detokenize_body(data)


@settings(max_examples=60 * EFFORT, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_clear_error(data: bytes) -> None:
    with suppress(InvalidRequestError):
        parse_chat_body(data)
