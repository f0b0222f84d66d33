"""What can't fit a model's context is refused before anybody tokenises it."""

import pytest

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.request.jobs.model_limits import check_inputs, check_prompts
from protocol.errors import ErrorCode
from protocol.wire.messages import Embed, EngineOffer, Prepare
from tests.fakes.request_parts import engine_offer


def offer(max_token_bytes: int = 4) -> EngineOffer:
    return engine_offer(max_model_len=10, max_token_bytes=max_token_bytes)


def refusal(prepare: Prepare, one: EngineOffer) -> InvalidRequestError | None:
    try:
        check_prompts([bridge.prompt("completion", text=""), prepare], one)
    except InvalidRequestError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (
            bridge.prompt("completion", token_ids=(1,) * 10),
            "at least 1 output token and your prompt contains 10 input tokens",
        ),
        (
            bridge.prompt("completion", token_ids=(1,) * 8, max_tokens=3),
            "3 output tokens and your prompt contains 8 input tokens",
        ),
        (
            bridge.prompt("completion", text="x" * 37),
            "at least 1 output token and your prompt contains at least 10 input tokens",
        ),
        (
            bridge.prompt("completion", text="é" * 19),
            "at least 1 output token and your prompt contains at least 10 input tokens",
        ),
        (
            bridge.prompt("completion", text="x" * 20, suffix="y" * 20),
            "at least 1 output token and your prompt contains at least 10 input tokens",
        ),
    ],
)
def test_a_prompt_that_can_not_fit_is_refused_with_its_length(prepare: Prepare, words: str) -> None:
    error = refusal(prepare, offer())
    assert error is not None
    assert str(error) == (
        f"This model's maximum context length is 10 tokens. However, you requested {words}. "
        "Shorten the prompt or ask for fewer output tokens."
    )
    assert (error.code, error.param) == (ErrorCode.CONTEXT_LENGTH_EXCEEDED, "prompt")


@pytest.mark.parametrize(
    ("prepare", "max_token_bytes"),
    [
        (bridge.prompt("completion", token_ids=(1,) * 9), 4),
        (bridge.prompt("completion", token_ids=(1,) * 8, max_tokens=2), 4),
        (bridge.prompt("completion", text="x" * 36), 4),
        (bridge.prompt("completion", text="x" * 1000), 0),  # the engine tells of no token's length
        (bridge.prompt("completion", token_ids=(1,) * 99, truncate_prompt_tokens=5), 4),
        (bridge.prompt("chat", text="x" * 1000), 4),
        (bridge.prompt("count", token_ids=(1,) * 99), 4),
    ],
)
def test_what_may_fit_is_the_engine_s_to_judge(prepare: Prepare, max_token_bytes: int) -> None:
    assert refusal(prepare, offer(max_token_bytes)) is None


def inputs(*texts: str, truncate: int | None = None) -> Embed:
    return bridge.embedding_inputs(texts, (), None, truncate)


def ids(*rows: int) -> Embed:
    return bridge.embedding_inputs((), tuple((1,) * row for row in rows), None, None)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (inputs("x", "x" * 41), "input 1 has at least 11"),
        (inputs("x" * 41, "x" * 81), "input 0 has at least 11"),
        (ids(10, 1, 12), "input 2 has 12"),
    ],
)
def test_the_first_input_that_can_not_fit_is_named(message: Embed, words: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check_inputs(message, offer())
    assert str(raised.value) == (
        f"This model's maximum context length is 10 tokens, but {words}. Shorten it, or set "
        "'truncate_prompt_tokens' to -1."
    )
    assert raised.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert raised.value.param == "input"


@pytest.mark.parametrize(
    "message", [inputs("x" * 40), ids(10), inputs("x" * 999, truncate=-1), inputs()]
)
def test_inputs_that_may_fit_or_are_cut_pass(message: Embed) -> None:
    check_inputs(message, offer())
