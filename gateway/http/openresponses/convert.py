"""From a checked Responses body to a chat's job, and to the question that counts its tokens."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.http.convert import chat_job, tokenize_question
from gateway.http.openresponses.conversation import Tools, chat_messages, chat_tool_choice
from gateway.http.openresponses.schemas import InputTokensRequest, ResponsesRequest
from gateway.http.schemas.body import dump_json, validate
from gateway.http.schemas.chat import ChatRequest
from gateway.http.schemas.tokenize import TokenizeRequest
from gateway.request.job import RESPONSES_ENDPOINT, GenerationJob
from protocol.wire.messages import Prepare, SamplingDefaults

_THEIR_WORDS: Final = (
    (re.compile(r"\btools\[(\d+)\]\.(?:function|custom)\b"), r"tools[\1]"),
    (re.compile(r"\btool_choice\.(?:function|custom|allowed_tools)\b"), "tool_choice"),
    (re.compile(r"\bresponse_format\.json_schema\b"), "text.format"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_output_tokens"),
)
"""What a chat's checks call by its own names."""


@dataclass(frozen=True, slots=True)
class ResponsesBody:
    """Of /v1/responses.

    Attributes:
        echo_json: What the answer repeats of the request, as a JSON object.
        ignored: Fields without a meaning here.
        spaces: By the name that the model sees: namespace and own name of a tool.
        seals_reasoning: Whether reasoning is also told as an opaque text.
    """

    job: GenerationJob
    echo_json: str
    ignored: list[str]
    spaces: dict[str, tuple[str, str]] = field(default_factory=dict)
    seals_reasoning: bool = False


def responses_body(
    request: ResponsesRequest, ignored: list[str], defaults: SamplingDefaults
) -> ResponsesBody:
    """The job of a request, and what its answer repeats.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    tools = Tools(request.tools)
    chat = _chat(request, tools)
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "max_completion_tokens": request.max_output_tokens,
        "response_format": _response_format(request),
        "safety_identifier": request.safety_identifier,
        "user": request.user,
    }
    chat |= {name: value for name, value in sampling.items() if value is not None}
    if request.stream:
        chat["stream"] = True
    if request.shows_logprobs:
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    try:
        job = chat_job(validate(ChatRequest, chat), chat, defaults)
    except InvalidRequestError as error:
        raise _in_their_words(error) from None
    return ResponsesBody(
        job=replace(job, endpoint=RESPONSES_ENDPOINT),
        echo_json=dump_json(_echo(request, job), "input"),
        ignored=ignored + tools.left_out,
        spaces=tools.spaces,
        seals_reasoning="reasoning.encrypted_content" in (request.include or ()),
    )


def count_question(request: InputTokensRequest) -> tuple[Prepare, list[str]]:
    """The question that counts an input's tokens, and the tools that are left out.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    tools = Tools(request.tools)
    chat = _chat(request, tools)
    names = ("model", "messages", "tools", "chat_template_kwargs")
    question = {name: chat[name] for name in names if name in chat}
    if chat.get("tool_choice") == "none":
        question.pop("tools", None)
    try:
        prepare = tokenize_question(validate(TokenizeRequest, question), question)
    except InvalidRequestError as error:
        raise _in_their_words(error) from None
    return prepare, tools.left_out


def _chat(request: InputTokensRequest, tools: Tools) -> dict[str, Any]:
    """What both have in common, as the body of a chat."""
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": chat_messages(request.instructions, request.input, tools),
    }
    if request.effort is not None:
        # Of models that can't reason nothing is demanded: clients send an effort unasked.
        thinks = request.effort not in ("none", "minimal")
        chat["chat_template_kwargs"] = {
            "reasoning_effort": request.effort,
            "enable_thinking": thinks,
        }
    choice = chat_tool_choice(request.tool_choice)
    if tools.chat:
        chat["tools"] = tools.chat
        if choice is not None:
            chat["tool_choice"] = choice
        if request.parallel_tool_calls is not None:
            chat["parallel_tool_calls"] = request.parallel_tool_calls
    elif choice not in (None, "auto", "none"):
        raise InvalidRequestError(
            "Invalid `tool_choice`: it needs `tools` that this server can call.",
            param="tool_choice",
        )
    return chat


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    wanted = None if request.text is None else request.text.format
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    named = {key: value for key, value in wanted.items() if key != "type" and value is not None}
    return {"type": "json_schema", "json_schema": named}


def _echo(request: ResponsesRequest, job: GenerationJob) -> dict[str, Any]:
    """The fields of a response that say what was asked; every one is always there."""
    sampling = job.sampling
    reasoning = request.reasoning
    text: dict[str, Any] = {"format": {"type": "text"}}
    if request.text is not None and request.text.format is not None:
        text["format"] = request.text.format
    if request.text is not None and request.text.verbosity is not None:
        text["verbosity"] = request.text.verbosity
    return {
        "instructions": request.instructions,
        "previous_response_id": None,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "safety_identifier": request.safety_identifier,
        "prompt_cache_key": request.prompt_cache_key,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": request.top_logprobs or 0,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "store": False,
        "background": False,
        "truncation": "disabled",
        "service_tier": "default",
        "metadata": request.metadata or {},
        "tool_choice": request.tool_choice or "auto",
        "tools": [_shown_tool(tool) for tool in request.tools or ()],
        "text": text,
        "reasoning": (
            None
            if reasoning is None
            else {"effort": reasoning.effort, "summary": reasoning.summary}
        ),
    }


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def _in_their_words(error: InvalidRequestError) -> InvalidRequestError:
    message, param = error.message, error.param or ""
    for pattern, words in _THEIR_WORDS:
        message, param = pattern.sub(words, message), pattern.sub(words, param)
    return type(error)(message, param=param or None)
