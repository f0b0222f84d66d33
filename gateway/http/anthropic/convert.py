"""From a checked Messages body to a chat's job, and to the question that counts its tokens."""

import re
from typing import Any, Final

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.anthropic.conversation import (
    chat_messages,
    chat_tool_choice,
    chat_tools,
    continues_answer,
)
from gateway.http.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.http.bodies.convert import chat_job
from gateway.http.schemas.base.body import validate
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.tools.tool_places import with_places
from gateway.request.jobs.job import MESSAGES_ENDPOINT, GenerationJob
from protocol.wire.messages import Prepare, SamplingDefaults

_SCHEMA_NAME: Final = "answer"
_THEIR_WORDS: Final = (
    (re.compile(r"\btools\[(\d+)\]\.function\.parameters\b"), r"tools[\1].input_schema"),
    (re.compile(r"\btools\[(\d+)\]\.function\b"), r"tools[\1]"),
    (re.compile(r"\bresponse_format(?:\.json_schema)?\b"), "output_config.format"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_tokens"),
    (re.compile(r"\bstop\b(?=[`\[])"), "stop_sequences"),
    # Blocks become parts of messages in ways of their own, neighbours one message.
    (re.compile(r"\bmessages\[\d+\][\w.\[\]]*"), "messages"),
)
"""What a chat's checks call by its own names."""


def messages_job(
    request: MessagesRequest, defaults: SamplingDefaults
) -> tuple[GenerationJob, list[str]]:
    """The job of a Messages request, and what of it has no effect here.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    chat, left_out = _chat(request)
    reads_only = request.max_tokens == 0
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": request.stop_sequences or None,
        "user": request.end_user,
    }
    chat |= {name: value for name, value in sampling.items() if value is not None}
    chat["max_completion_tokens"] = request.max_tokens or 1
    if request.stream:
        chat |= {
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    schema = request.wanted_schema
    if schema is not None:
        wanted = {"name": _SCHEMA_NAME, "schema": schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": wanted}
    tool_params = [f"{path}.input_schema" for path in _tool_paths(request, left_out)]
    try:
        job = chat_job(validate(ChatRequest, chat), chat, defaults, tool_params=tool_params)
    except InvalidRequestError as error:
        raise _in_their_words(error, request, left_out) from None
    options = job.options.changed(shows_reasoning=request.shows_thinking)
    budget = None if request.thinking is None else request.thinking.budget_tokens
    job = job.changed(
        endpoint=MESSAGES_ENDPOINT,
        options=options,
        thinking_budget=budget,
        is_cut_by_context=True,
    )
    if reads_only:
        job = job.changed(discards_output=True, parse_reasoning=False, tool_choice="none")
    return job, left_out


def count_question(request: CountTokensRequest) -> tuple[Prepare, list[str]]:
    """The question that counts a conversation's tokens, and what of it has no effect here.

    Raises:
        InvalidRequestError: Naming the field that is wrong.
    """
    chat, left_out = _chat(request)
    try:
        return bridge.counted(chat_job(validate(ChatRequest, chat), chat).prepares[0]), left_out
    except InvalidRequestError as error:
        raise _in_their_words(error, request, left_out) from None


def _chat(request: CountTokensRequest) -> tuple[dict[str, Any], list[str]]:
    """What both have in common, as the body of a chat."""
    messages = chat_messages(request.system, request.messages)
    tools, left_out = chat_tools(request.tools)
    kwargs: dict[str, Any] = {"enable_thinking": request.thinks, "thinking": request.thinks}
    if request.output_config is not None and request.output_config.effort is not None:
        kwargs["reasoning_effort"] = request.output_config.effort
    chat: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "chat_template_kwargs": kwargs,
    }
    if continues_answer(messages):
        chat["continue_final_message"] = True
    choice = chat_tool_choice(request.tool_choice)
    if tools:
        chat |= {"tools": tools, **choice}
    elif choice.get("tool_choice") not in (None, "auto", "none"):
        raise InvalidRequestError(
            "Invalid `tool_choice`: it needs `tools` that this server can call.",
            param="tool_choice",
        )
    return chat, left_out


def _tool_paths(request: CountTokensRequest, left_out: list[str]) -> list[str]:
    """Where in the request the tools are that its chat has."""
    all_tools = [f"tools[{index}]" for index in range(len(request.tools or ()))]
    return [path for path in all_tools if path not in left_out]


def _in_their_words(
    error: InvalidRequestError, request: CountTokensRequest, left_out: list[str]
) -> InvalidRequestError:
    """An error about a chat, as one about the request that it was made of.

    Args:
        error: Of the chat's own checks.
        request: Of the client.
        left_out: Its tools that the chat hasn't.
    """
    tools = _tool_paths(request, left_out)

    def told(text: str) -> str:
        text += "`"
        for pattern, words in _THEIR_WORDS:
            text = pattern.sub(words, text)
        if request.output_format is not None:
            text = text.replace("output_config.format", "output_format")
        return with_places(text, tools)[:-1]

    return type(error)(told(error.message), param=told(error.param or "") or None)
