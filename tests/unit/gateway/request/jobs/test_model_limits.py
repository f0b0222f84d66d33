"""What a model can't do is refused by name: of its engines' release, its tokens, and its kind."""

import json
from typing import Any

import pytest
from msgspec import structs

from gateway.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedFieldError,
    WorkerUnavailableError,
)
from gateway.http.bodies.convert import completion_job
from gateway.http.schemas.inference.completion import parse_completion_body
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import CHAT_ENDPOINT
from gateway.request.jobs.model_limits import (
    check_served,
    check_template,
    check_version,
    find_offer,
    unread_fields,
)
from protocol.version import (
    EXTRAS_VERSION,
    OLDEST_VERSION,
    PROTOCOL_VERSION,
    SURFACE_VERSION,
)
from protocol.wire.messages import Credits, EngineOffer, SamplingParams
from tests.fakes.request_parts import Parts, engine_offer, generation_job

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


def test_the_message_names_the_field_and_the_reason() -> None:
    with pytest.raises(UnsupportedFieldError) as raised:
        check_version(OLDEST_VERSION, "a", "b")
    assert str(raised.value) == (
        "`a` is not supported: an engine of this model runs an older release."
    )
    assert raised.value.param == "a"


async def test_a_model_is_found_said_to_start_or_named_among_those_there_are() -> None:
    parts = Parts()
    one = parts.engine(model="b")
    assert find_offer(parts.directory, "b", ("c",)) is one.engine
    with pytest.raises(WorkerUnavailableError, match="The model `c` is still starting."):
        find_offer(parts.directory, "c", ("c",))
    with pytest.raises(ModelNotFoundError) as raised:
        find_offer(parts.directory, "a", ("c", "a2"))
    assert str(raised.value) == (
        "The model `a` does not exist here. Available models: `a2`, `b`, `c`."
    )


@pytest.mark.parametrize("capabilities", [(), ("completions",), ("chat", "completions")])
def test_a_model_that_completes_or_does_not_say_is_asked(capabilities: tuple[str, ...]) -> None:
    check_served(generation_job(), engine_offer(capabilities=capabilities), PROTOCOL_VERSION)


def test_a_model_for_embeddings_completes_nothing() -> None:
    with pytest.raises(UnsupportedFieldError) as raised:
        check_served(generation_job(), engine_offer(capabilities=("embeddings",)), PROTOCOL_VERSION)
    assert str(raised.value) == ("The model `m` only makes embeddings; use /v1/embeddings.")
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("logit_bias", SamplingParams(logit_bias=((5, 1.0), (10, 1.0)))),
        ("allowed_token_ids", SamplingParams(allowed_token_ids=(5, 10))),
        ("stop_token_ids", SamplingParams(stop_token_ids=(5, 10))),
    ],
)
def test_a_token_that_the_model_does_not_have_is_refused(
    name: str, sampling: SamplingParams
) -> None:
    job = generation_job(sampling=sampling)
    with pytest.raises(InvalidRequestError) as raised:
        check_served(job, engine_offer(vocab_size=10), PROTOCOL_VERSION)
    assert str(raised.value) == (
        f"Invalid `{name}`: the model has no token 10; its ids are 0 to 9."
    )
    assert raised.value.param == name
    check_served(job, engine_offer(vocab_size=11), PROTOCOL_VERSION)
    # An engine that doesn't tell checks by itself.
    check_served(job, engine_offer(vocab_size=0), PROTOCOL_VERSION)


@pytest.mark.parametrize(
    ("name", "options", "endpoint"),
    [
        ("logprobs", {"num_top_logprobs": 3}, "/v1/completions"),
        ("top_logprobs", {"num_top_logprobs": 3}, CHAT_ENDPOINT),
        ("prompt_logprobs", {"num_prompt_logprobs": 3}, "/v1/completions"),
    ],
)
def test_more_log_probabilities_than_engines_report_are_refused(
    name: str, options: dict[str, Any], endpoint: str
) -> None:
    job = generation_job(options=AnswerOptions(**options), endpoint=endpoint)
    check_served(job, engine_offer(max_logprobs=3), PROTOCOL_VERSION)
    with pytest.raises(InvalidRequestError) as raised:
        check_served(job, engine_offer(max_logprobs=2), PROTOCOL_VERSION)
    assert str(raised.value) == (f"Invalid `{name}`: 3 is out of this model's range, 0 ≤ x ≤ 2.")
    assert raised.value.param == name


@pytest.mark.parametrize(
    ("name", "options", "endpoint"),
    [
        ("logprobs", {"num_top_logprobs": 0}, "/v1/completions"),
        ("logprobs", {"num_top_logprobs": 0}, CHAT_ENDPOINT),
        ("prompt_logprobs", {"num_prompt_logprobs": 0}, "/v1/completions"),
        ("best_of", {"num_choices": 2, "num_answers": 1}, "/v1/completions"),
    ],
)
def test_engines_that_report_none_are_asked_for_none(
    name: str, options: dict[str, Any], endpoint: str
) -> None:
    job = generation_job(options=AnswerOptions(**options), endpoint=endpoint)
    check_served(job, engine_offer(max_logprobs=1), PROTOCOL_VERSION)
    with pytest.raises(UnsupportedFieldError) as raised:
        check_served(job, engine_offer(max_logprobs=0), PROTOCOL_VERSION)
    assert str(raised.value) == (
        f"The engines of `m` report no log probabilities, which `{name}` needs."
    )
    assert raised.value.param == name


def test_choices_that_are_all_shown_need_no_log_probabilities() -> None:
    options = AnswerOptions(num_choices=2, num_answers=2)
    check_served(generation_job(options=options), engine_offer(max_logprobs=0), PROTOCOL_VERSION)


def test_verbosity_is_unread_where_no_template_names_it() -> None:
    reads = structs.replace(OFFER, capabilities=("verbosity",))
    for param, own, offer, expected in (
        ("verbosity", None, OFFER, ("verbosity",)),
        ("text.verbosity", None, OFFER, ("text.verbosity",)),
        ("verbosity", None, reads, ()),
        # The client's own template decides, whatever the model's reads.
        ("verbosity", "{{ verbosity }}", OFFER, ()),
        ("verbosity", "{{ messages }}", reads, ("verbosity",)),
        ("", None, OFFER, ()),
    ):
        job = generation_job("x")
        prepare = structs.replace(job.prepares[0], chat_template=own)
        job = structs.replace(job, prepares=(prepare,), verbosity_param=param)
        assert unread_fields(job, offer) == expected, (param, own)


def test_engines_since_the_extras_take_a_suffix_where_their_tokens_allow_it() -> None:
    job = generation_job()
    job = structs.replace(job, prepares=(structs.replace(job.prepares[0], suffix="end"),))
    able = engine_offer(capabilities=("completions", "fill_in_middle"))
    check_served(job, able, PROTOCOL_VERSION)
    with pytest.raises(UnsupportedFieldError) as raised:
        check_served(job, engine_offer(capabilities=("completions",)), PROTOCOL_VERSION)
    assert str(raised.value) == "The model `m` has no tokens for filling in the middle."
    assert raised.value.param == "suffix"
    with pytest.raises(UnsupportedFieldError, match="an older release"):
        check_served(job, able, SURFACE_VERSION)


def test_engines_before_the_extras_score_no_named_tokens() -> None:
    job = generation_job(sampling=SamplingParams(logprob_token_ids=(1,)))
    check_served(job, engine_offer(), EXTRAS_VERSION)
    with pytest.raises(UnsupportedFieldError) as raised:
        check_served(job, engine_offer(), SURFACE_VERSION)
    assert raised.value.param == "logprob_token_ids"


def test_a_template_of_a_client_is_refused_by_its_field_unless_it_is_allowed() -> None:
    prepare = structs.replace(generation_job().prepares[0], chat_template="{{ messages }}")
    check_template(prepare, is_allowed=True)
    check_template(generation_job().prepares[0], is_allowed=False)
    with pytest.raises(UnsupportedFieldError) as raised:
        check_template(prepare, is_allowed=False)
    assert raised.value.param == "chat_template"
