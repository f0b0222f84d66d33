"""What a response repeats of its request."""

from typing import Any

from gateway.http.openresponses.hosted import shown_server
from gateway.http.openresponses.schemas import ResponsesRequest
from gateway.request.jobs.job import GenerationJob


def echo(request: ResponsesRequest, job: GenerationJob, *, is_stored: bool) -> dict[str, Any]:
    """The fields of a response that say what was asked; every one is always there.

    Args:
        request: Checked.
        job: Of it, with the sampling that it comes to.
        is_stored: Whether the answer is kept.
    """
    sampling = job.sampling
    reasoning = request.reasoning
    text: dict[str, Any] = {"format": {"type": "text"}}
    if request.text is not None and request.text.format is not None:
        text["format"] = _shown_format(request.text.format)
    if request.text is not None and request.text.verbosity is not None:
        text["verbosity"] = request.text.verbosity
    return {
        "instructions": request.instructions,
        "previous_response_id": request.previous_response_id,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "safety_identifier": request.safety_identifier,
        "user": request.user,
        "prompt_cache_key": request.prompt_cache_key,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": request.top_logprobs or 0,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "store": is_stored,
        "background": bool(request.background),
        "truncation": request.truncation or "disabled",
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
        **(
            {}
            if request.conversation_id is None
            else {"conversation": {"id": request.conversation_id}}
        ),
    }


def _shown_format(wanted: dict[str, Any]) -> dict[str, Any]:
    """What the text must be, with all that Open Responses asks for."""
    if wanted.get("type") != "json_schema":
        return wanted
    return {"description": None, **wanted, "strict": wanted.get("strict") is True}


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "mcp":
        return shown_server(tool)
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}
