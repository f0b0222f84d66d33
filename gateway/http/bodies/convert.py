"""From a checked HTTP body to what is asked of the wire: the only place that knows both."""

import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from msgspec import structs

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.schemas.base.body import dump_json
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.inference.completion import CompletionRequest
from gateway.http.schemas.inference.messages import (
    clean_messages,
    clean_tools,
    custom_names,
    tool_name,
)
from gateway.http.schemas.inference.sampling import GenerationRequest
from gateway.http.schemas.inference.tokenize import TokenizeRequest
from gateway.http.schemas.tools.functions import names_functions
from gateway.http.schemas.tools.tool_choice import choice_mode
from gateway.request.callers.caller import named_end_user
from gateway.request.jobs.answer_options import PLAIN_ANSWER, AnswerOptions
from gateway.request.jobs.job import CHAT_ENDPOINT, COMPLETION_ENDPOINT, GenerationJob
from protocol.wire.messages import Prepare, SamplingDefaults, SamplingParams

SEED_BITS = 63
_SEED_MASK = (1 << SEED_BITS) - 1

_MAX_ANSWER_CHARACTERS = 65_536
"""Of an answer that goes on, for the parser, which looks for markers of reasoning there."""

MAX_MIDDLE_MARKERS = 3
"""Tokens that tell a model what stands before and behind the text that it fills in."""
NEUTRAL_DEFAULTS = SamplingDefaults()
"""For a model that recommends nothing, or that nobody serves."""


_seeds = random.Random(secrets.randbits(256))  # noqa: S311  # seeds are no secrets


def random_seed() -> int:
    """A seed for a request that brought none."""
    return _seeds.getrandbits(SEED_BITS)


def chat_job(
    request: ChatRequest,
    raw: dict[str, Any],
    defaults: SamplingDefaults = NEUTRAL_DEFAULTS,
    make_seed: Callable[[], int] = random_seed,
    *,
    tool_params: Sequence[str] | None = None,
) -> GenerationJob:
    """A chat request for the wire.

    Args:
        request: The checked request.
        raw: The JSON object it came from; messages travel as the client wrote them.
        defaults: The model's own, for parameters that the client left out.
        make_seed: Gives the seed when the client gave none.
        tool_params: The fields that the schemas of its tools came from; None for those of a chat.

    Raises:
        InvalidRequestError: A part is nested too deep to be written again.
    """
    messages_json = dump_json(clean_messages(raw["messages"]), "messages")
    may_call = bool(request.tools) and request.tool_choice != "none"
    callable_tools = _callable_tools(request, raw["tools"]) if may_call else {}
    if tool_params is None:
        tool_params = _tool_params(raw) if may_call else ()
    tools = list(callable_tools.values())
    tools_json = dump_json(clean_tools(tools), "tools") if may_call else None
    enforced = clean_tools(tools, with_strict=True) if may_call else None
    kwargs = _template_kwargs(request)
    continues = bool(request.continue_final_message)
    adds_prompt = request.add_generation_prompt
    wanted, limit = request.wanted_content, request.output_limit
    budget = request.thinking_token_budget
    options = _options(
        request,
        shows_reasoning=request.include_reasoning is not False,
        names_functions=names_functions(raw),
        custom_tools=custom_names(request.tools),
    )
    kwargs_json = _kwargs_json(request, kwargs) if kwargs else None
    prepare = bridge.prompt(
        "chat",
        messages_json=messages_json,
        tools_json=tools_json,
        template_kwargs_json=kwargs_json,
        add_generation_prompt=not continues if adds_prompt is None else adds_prompt,
        continue_final_message=continues,
        max_tokens=limit,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        chat_template=request.chat_template,
        cache_salt=request.cache_salt or "",
    )
    return GenerationJob(
        endpoint=CHAT_ENDPOINT,
        model=request.model,
        prepares=(prepare,),
        sampling=_sampling(request, options, limit, defaults, make_seed),
        max_tokens=limit,
        prompt_bytes=_bound(
            sum(map(len, map(str.encode, filter(None, (messages_json, tools_json, kwargs_json))))),
            request,
        ),
        tools_json=tools_json,
        enforced_tools_json=dump_json(enforced, "tools") if enforced is not None else None,
        tool_params=tuple(tool_params[index] for index in callable_tools),
        tool_choice=choice_mode(request.tool_choice) if may_call else "none",
        tool_name=(request.named_tool or "") if may_call else "",
        response_grammar=None if wanted is None else wanted.grammar,
        grammar_param="tools" if wanted is None else wanted.param,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        parse_reasoning=True,
        wants_reasoning=request.reasoning_effort not in (None, "none"),
        answer_so_far=_answer_so_far(raw["messages"][-1]) if continues else "",
        thinking=_thinking(kwargs),
        reasoning_effort=_effort(kwargs),
        thinking_budget=budget,
        demands_budget=budget is not None and budget >= 0,
        options=options,
        end_user=named_end_user(request.safety_identifier, request.user),
        is_background=(request.priority or 0) > 0,
        verbosity_param="" if request.verbosity is None else "verbosity",
    )


def completion_job(
    request: CompletionRequest,
    defaults: SamplingDefaults = NEUTRAL_DEFAULTS,
    make_seed: Callable[[], int] = random_seed,
) -> GenerationJob:
    """A completion request for the wire; the arguments are those of `chat_job`."""
    prompts = request.prompts
    adds_special_tokens = request.add_special_tokens is not False
    options = _options(request).changed(echoes=bool(request.echo))
    wanted = request.wanted_content
    max_tokens = request.output_limit or 1
    prepares = tuple(
        bridge.prompt(
            "completion",
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if isinstance(prompt, str) else tuple(prompt),
            add_special_tokens=adds_special_tokens,
            max_tokens=max_tokens,
            truncate_prompt_tokens=request.truncate_prompt_tokens,
            # The log probabilities of a prompt leave out its first token, its echo doesn't.
            return_tokens=options.echoes and options.num_top_logprobs is not None,
            suffix=request.suffix or None,
            cache_salt=request.cache_salt or "",
        )
        for prompt in prompts
    )
    return GenerationJob(
        endpoint=COMPLETION_ENDPOINT,
        model=request.model,
        prepares=prepares,
        sampling=_sampling(request, options, max_tokens, defaults, make_seed),
        has_own_seed=request.seed is not None,
        max_tokens=max_tokens,
        # A token of text has at least one byte; ids are tokens already.
        prompt_bytes=sum(
            _bound(len(prompt.encode()) if isinstance(prompt, str) else len(prompt), request)
            + (len(request.suffix.encode()) + MAX_MIDDLE_MARKERS if request.suffix else 0)
            for prompt in prompts
        ),
        response_grammar=None if wanted is None else wanted.grammar,
        grammar_param="prompt" if wanted is None else wanted.param,
        discards_output=request.output_limit == 0,
        options=options,
        end_user=named_end_user(request.safety_identifier, request.user),
        is_background=(request.priority or 0) > 0,
    )


def _callable_tools(request: ChatRequest, tools: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The tools that may be called, by their places among all."""
    allowed = request.allowed_tools
    return {
        index: tool
        for index, tool in enumerate(tools)
        if allowed is None or tool_name(tool) in allowed
    }


def _tool_params(raw: dict[str, Any]) -> list[str]:
    """The fields of a chat that hold the schemas of its tools."""
    name = "functions[{}]" if names_functions(raw) else "tools[{}].function"
    return [f"{name.format(index)}.parameters" for index, _ in enumerate(raw.get("tools") or ())]


def tokenize_question(request: TokenizeRequest, raw: dict[str, Any]) -> Prepare:
    """A tokenisation for the wire.

    Args:
        request: The checked request.
        raw: The JSON object it came from; messages travel as the client wrote them.

    Raises:
        InvalidRequestError: A part is nested too deep to be written again.
    """
    messages, tools, kwargs = raw.get("messages"), raw.get("tools"), request.chat_template_kwargs
    continues = bool(request.continue_final_message)
    adds_prompt = request.add_generation_prompt
    return bridge.prompt(
        "count",
        messages_json=dump_json(clean_messages(messages), "messages") if messages else None,
        tools_json=dump_json(clean_tools(tools), "tools") if tools else None,
        template_kwargs_json=dump_json(kwargs, "chat_template_kwargs") if kwargs else None,
        text=request.prompt,
        add_generation_prompt=not continues if adds_prompt is None else adds_prompt,
        continue_final_message=continues,
        add_special_tokens=request.add_special_tokens is not False,
        return_tokens=bool(request.return_token_strs),
        chat_template=request.chat_template,
    )


def _options(
    request: GenerationRequest,
    *,
    shows_reasoning: bool = PLAIN_ANSWER.shows_reasoning,
    names_functions: bool = False,
    custom_tools: frozenset[str] = frozenset(),
) -> AnswerOptions:
    stream_options = request.stream_options
    return AnswerOptions(
        num_choices=request.num_generated,
        num_answers=request.n or 1,
        num_top_logprobs=request.num_top_logprobs,
        num_wanted_logprobs=len(request.logprob_token_ids or ()),
        num_prompt_logprobs=request.prompt_logprobs,
        is_streaming=bool(request.stream),
        shows_token_ids=bool(request.return_token_ids),
        shows_budget_warnings=bool(request.include_budget_warnings),
        shows_timings=bool(request.include_timings),
        names_token_ids=bool(request.return_tokens_as_token_ids),
        include_usage=stream_options is not None and bool(stream_options.include_usage),
        continuous_usage=(
            stream_options is not None and bool(stream_options.continuous_usage_stats)
        ),
        shows_reasoning=shows_reasoning,
        names_functions=names_functions,
        custom_tools=custom_tools,
    )


def _bound(num_bytes: int, request: GenerationRequest) -> int:
    """The most tokens that a prompt of so many bytes can have left."""
    kept = request.truncate_prompt_tokens
    return num_bytes if kept is None or kept < 0 else min(num_bytes, kept)


def _template_kwargs(request: ChatRequest) -> dict[str, Any]:
    kwargs = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        # Templates know one or the other; both say the same.
        kwargs.setdefault("reasoning_effort", request.reasoning_effort)
        kwargs.setdefault("enable_thinking", request.reasoning_effort not in ("none", "minimal"))
    if request.verbosity is not None:
        kwargs.setdefault("verbosity", request.verbosity)
    if request.documents:
        kwargs["documents"] = request.documents
    return kwargs


def _kwargs_json(request: ChatRequest, kwargs: dict[str, Any]) -> str:
    try:
        return dump_json(kwargs, "chat_template_kwargs")
    except InvalidRequestError:
        dump_json([request.documents], "documents")  # which are among them
        raise


def _thinking(kwargs: dict[str, Any]) -> bool | None:
    """What the arguments of the template say about reasoning, in the words that templates know."""
    for name in ("enable_thinking", "thinking"):
        if isinstance(kwargs.get(name), bool):
            return bool(kwargs[name])
    return None


def _answer_so_far(message: dict[str, Any]) -> str:
    """What a message that goes on says; of a very long one the beginning and the end."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or part.get("refusal") or "" for part in content)
    if len(content) <= _MAX_ANSWER_CHARACTERS:
        return content
    half = _MAX_ANSWER_CHARACTERS // 2
    return content[:half] + content[-half:]


def _effort(kwargs: dict[str, Any]) -> str:
    """The effort that a request asks for, for whichever template it says so."""
    effort = kwargs.get("reasoning_effort")
    return effort if isinstance(effort, str) else ""


def _sampling(
    request: GenerationRequest,
    options: AnswerOptions,
    max_tokens: int | None,
    defaults: SamplingDefaults,
    make_seed: Callable[[], int],
) -> SamplingParams:
    """What the client said, else what the model recommends; the rest is neutral."""
    said = {
        name: _SAMPLED[name](value)
        for name in request.model_fields_set & _SAMPLED_NAMES  # few of some twenty
        if (value := getattr(request, name)) is not None
    }
    return SamplingParams(
        **{**_recommended(defaults), **said},
        seed=make_seed() if request.seed is None else request.seed & _SEED_MASK,
        max_tokens=max_tokens,
        logprobs=options.engine_logprobs,
        prompt_logprobs=options.engine_prompt_logprobs,
    )


@lru_cache(maxsize=64)
def _recommended(defaults: SamplingDefaults) -> Mapping[str, float]:
    said = structs.asdict(defaults)
    return {name: _SAMPLED[name](value) for name, value in said.items() if value is not None}


def _top_k(value: float) -> int:
    return max(0, int(value))  # other servers write -1 for "all"


def _stop(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _biases(value: dict[str, float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token_id), float(bias)) for token_id, bias in value.items())


def _each_once(value: list[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(value))  # the same token twice would say the same twice


_SAMPLED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "temperature": float,
    "top_k": _top_k,
    "top_p": float,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "min_tokens": int,
    "stop": _stop,
    "stop_token_ids": tuple,
    "ignore_eos": bool,
    "skip_special_tokens": bool,
    "include_stop_str_in_output": bool,
    "logit_bias": _biases,
    "allowed_token_ids": tuple,
    "bad_words": tuple,
    "logprob_token_ids": _each_once,
}
"""The fields that say how tokens are chosen, each with what makes the wire's value of it."""
_SAMPLED_NAMES: Final = frozenset(_SAMPLED)
