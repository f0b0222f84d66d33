"""What engines of an older release would leave aside is refused."""

import json
from typing import Any

import pytest

from gateway.errors import UnsupportedFieldError
from gateway.http.convert import completion_job
from gateway.http.schemas.completion import parse_completion_body
from gateway.request.model_limits import check_served, check_version
from protocol.version import OLDEST_VERSION, PROTOCOL_VERSION
from protocol.wire.messages import Credits, EngineOffer

OFFER = EngineOffer(
    model="m",
    fingerprint="f",
    resume_version=1,
    max_model_len=64,
    created=0,
    credits=Credits(1, 64),
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"5": 1}),
        ("allowed_token_ids", [1]),
        ("bad_words", ["a"]),
        ("truncate_prompt_tokens", 3),
        ("echo", True),
    ],
)
def test_an_older_engine_is_not_given_what_it_would_leave_aside(name: str, value: Any) -> None:
    body: dict[str, Any] = {"model": "m", "prompt": "x", name: value}
    job = completion_job(parse_completion_body(json.dumps(body).encode())[0])
    check_served(job, OFFER, PROTOCOL_VERSION)
    with pytest.raises(UnsupportedFieldError) as caught:
        check_served(job, OFFER, OLDEST_VERSION)
    assert caught.value.param == name


def test_an_older_engine_still_serves_what_it_knows() -> None:
    body = {"model": "m", "prompt": "x", "top_k": 3, "echo": False, "bad_words": []}
    job = completion_job(parse_completion_body(json.dumps(body).encode())[0])
    check_served(job, OFFER, OLDEST_VERSION)
    check_version(OLDEST_VERSION)
