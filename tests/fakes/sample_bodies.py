"""Valid bodies of every kind, each with all that its kind may hold; and what stands where in
them."""

from collections.abc import Iterator
from typing import Any, Final

import orjson

from gateway.http.bodies.parsers import KINDS, ParseContext
from gateway.http.openresponses.sealing import sealed
from gateway.http.openresponses.stored_items import framed
from protocol.wire.messages import Credits, EngineOffer
from tests.fakes.fuzz_effort import EFFORT

Body = dict[str, Any]
Path = tuple[str | int, ...]
SCHEMA: Final[Body] = {"type": "object", "properties": {"a": {"type": "string"}}}

_CUSTOM: Final[Body] = {
    "type": "grammar",
    "grammar": {"syntax": "regex", "definition": "[a-z]+"},
}
_CHAT_TOOLS: Final[list[Body]] = [
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
    },
    {"type": "custom", "custom": {"name": "c", "description": "d", "format": _CUSTOM}},
]
_CHAT_MESSAGES: Final[list[Body]] = [
    {"role": "system", "content": "s", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "a"}]},
    {
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "no"}],
        "reasoning_content": "r",
        "refusal": "no",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "2", "type": "custom", "custom": {"name": "c", "input": "x"}},
        ],
    },
    {"role": "tool", "content": "r", "tool_call_id": "1"},
]
_SAMPLING: Final[Body] = {
    "model": "m",
    "n": 1,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": 7,
    "max_tokens": 9,
    "min_tokens": 1,
    "stop": ["."],
    "stop_token_ids": [1],
    "logit_bias": {"5": 1.5},
    "allowed_token_ids": [1, 2],
    "logprob_token_ids": [3],
    "bad_words": ["bad"],
    "truncate_prompt_tokens": 5,
    "ignore_eos": False,
    "cache_salt": "s",
    "priority": 1,
    "metadata": {"a": "b"},
    "user": "u",
    "safety_identifier": "i",
}
_CHAT: Final[list[Body]] = [
    {
        **_SAMPLING,
        "messages": _CHAT_MESSAGES,
        "tools": _CHAT_TOOLS,
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "auto",
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
        },
        "parallel_tool_calls": True,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_effort": "low",
        "verbosity": "low",
        "documents": [{"title": "t", "text": "x"}],
        "chat_template_kwargs": {"a": 1},
        "prediction": {"type": "content", "content": "x"},
    },
    {
        "model": "m",
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ],
        "functions": [{"name": "f", "description": "d", "parameters": SCHEMA}],
        "function_call": {"name": "f"},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
        },
    },
    {"model": "m", "messages": [{"role": "user", "content": "x"}], "guided_choice": ["a", "b"]},
    {"model": "m", "messages": [{"role": "user", "content": "x"}], "guided_json": SCHEMA},
    {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "structured_outputs": {"choice": ["a"]},
    },
]
_COMPLETION: Final[list[Body]] = [
    {**_SAMPLING, "prompt": ["a", "b"], "echo": True, "logprobs": 2, "best_of": 1},
    {"model": "m", "prompt": [[1, 2], [3]], "guided_regex": "a+"},
]
_RESPONSE_TOOLS: Final[list[Body]] = [
    {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
    {
        "type": "custom",
        "name": "c",
        "description": "d",
        "format": {"type": "grammar", "syntax": "regex", "definition": "[a-z]+"},
    },
    {
        "type": "namespace",
        "name": "n",
        "description": "d",
        "tools": [{"type": "function", "name": "g", "parameters": SCHEMA}],
    },
    {
        "type": "mcp",
        "server_label": "weather",
        "server_description": "d",
        "headers": {"x-a": "b"},
        "authorization": "t",
        "allowed_tools": {"tool_names": ["now"], "read_only": False},
        "require_approval": {"never": {"tool_names": ["now"]}, "always": {"read_only": False}},
        "allowed_callers": ["direct"],
    },
]
ITEMS: Final[list[Body]] = [
    {
        "type": "message",
        "id": "msg_1",
        "role": "user",
        "content": [{"type": "input_text", "text": "x"}],
        "status": "completed",
    },
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "t"}],
        "content": [{"type": "reasoning_text", "text": "t"}],
        "encrypted_content": sealed("t"),
        "status": "completed",
    },
    {
        "role": "assistant",
        "content": [
            {"type": "output_text", "text": "x", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "no"},
        ],
        "phase": "commentary",
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "f",
        "namespace": "n",
        "arguments": "{}",
        "status": "completed",
    },
    {"type": "function_call_output", "call_id": "call_1", "output": "1", "status": "completed"},
    {"type": "custom_tool_call", "call_id": "call_2", "name": "c", "input": "x"},
    {
        "type": "custom_tool_call_output",
        "call_id": "call_2",
        "output": [{"type": "input_text", "text": "x"}],
    },
    {
        "type": "mcp_list_tools",
        "id": "mcpl_a_0123456789abcdef",
        "server_label": "weather",
        "tools": [
            {"name": "now", "description": "d", "input_schema": SCHEMA, "annotations": None},
        ],
        "error": None,
    },
    {
        "type": "mcp_call",
        "id": "mcp_1",
        "server_label": "weather",
        "name": "now",
        "arguments": "{}",
        "approval_request_id": "mcpr_0",
        "output": None,
        "error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "x"}]},
        "status": "failed",
    },
    {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "server_label": "weather",
        "name": "now",
        "arguments": "{}",
    },
    {
        "type": "mcp_approval_response",
        "id": "mcpa_1",
        "approval_request_id": "mcpr_1",
        "approve": True,
        "reason": "r",
    },
    {"type": "compaction", "id": "cmp_1", "encrypted_content": sealed("so far")},
    {"role": "user", "content": "y"},
]
_RESPONSES: Final[list[Body]] = [
    {
        "model": "m",
        "input": ITEMS,
        "instructions": "i",
        "tools": _RESPONSE_TOOLS,
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}],
        },
        "parallel_tool_calls": True,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
            "verbosity": "low",
        },
        "truncation": "auto",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 1,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "max_tool_calls": 3,
        "user": "u",
        "safety_identifier": "i",
    },
    {
        "model": "m",
        "input": "x",
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "name": "f"},
    },
    {"model": "m", "input": "x", "conversation": {"id": "conv_1"}},
    {
        "model": "m",
        "input": [{"type": "item_reference", "id": "msg_9"}],
        "previous_response_id": "resp_1",
    },
]
_COUNTED: Final = frozenset(
    (
        *("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls"),
        *("reasoning", "text", "truncation", "conversation", "previous_response_id"),
    )
)
_COMPACTED: Final = frozenset(("model", "input", "instructions", "previous_response_id"))
_BLOCKS: Final[list[Body]] = [
    {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "citations": None}
]
_MESSAGES: Final[Body] = {
    "model": "m",
    "system": _BLOCKS,
    "messages": [
        {
            "role": "user",
            "content": [
                *_BLOCKS,
                {
                    "type": "search_result",
                    "title": "t",
                    "source": "s",
                    "content": [{"type": "text", "text": "x"}],
                    "citations": {"enabled": False},
                },
                {
                    "type": "document",
                    "title": "t",
                    "context": "c",
                    "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                    "citations": {"enabled": False},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "redacted_thinking", "data": "d"},
                {"type": "text", "text": "x"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "tool_reference", "tool_name": "f"},
                    ],
                    "is_error": True,
                }
            ],
        },
        {"role": "system", "content": "s"},
        {"role": "user", "content": "y"},
    ],
    "tools": [
        {
            "type": "custom",
            "name": "f",
            "description": "d",
            "input_schema": SCHEMA,
            "strict": True,
            "cache_control": {"type": "ephemeral", "ttl": "5m"},
        },
    ],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
}
_ONLY_GENERATED: Final[Body] = {
    "max_tokens": 9,
    "stop_sequences": ["."],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "stream": True,
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
}
_DECISION: Final[Body] = {
    "model": "m",
    "input": [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "x"},
                {"type": "input_json", "data": {"a": [1]}},
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
    ],
    "questions": [
        {
            "type": "predicate",
            "name": "p",
            "instructions": [{"type": "input_text", "text": "x"}],
        },
        {
            "type": "choice",
            "name": "c",
            "instructions": "x",
            "choices": [{"value": "a", "description": "d"}, {"value": True}],
        },
        {
            "type": "score",
            "instructions": "x",
            "levels": [{"label": "a", "description": "d"}, {"label": "b"}],
        },
    ],
    "safety_identifier": "i",
}
_SYSTEMONE: Final[Body] = {
    "model": "m",
    "state": {"a": ["x"]},
    "questions": {
        "n": {"type": "noul", "instructions": "x", "criteria": {"true": "y", "false": None}},
        "c": {"type": "choice", "instructions": "x", "criteria": {"a": "y", "b": None}},
        "s": {"type": "score", "instructions": "x", "criteria": ["a", "b"]},
    },
}
_RERANK: Final[Body] = {
    "model": "m",
    "query": "q",
    "documents": ["a", {"text": "b"}],
    "top_n": 1,
    "return_documents": True,
    "max_tokens_per_doc": 9,
    "truncation": True,
    "instruction": "i",
    "use_activation": True,
    "user": "u",
    "priority": 0,
}
_PAIRS: Final[Body] = {"model": "m", "text_1": "a", "text_2": ["b", "c"], "user": "u"}


def _only(bodies: list[Body], names: frozenset[str]) -> list[Body]:
    return [{key: value for key, value in one.items() if key in names} for one in bodies]


_OWN: Final[dict[str, list[Body]]] = {
    "chat": _CHAT,
    "completion": _COMPLETION,
    "messages": [{**_MESSAGES, **_ONLY_GENERATED}],
    "count_tokens": [_MESSAGES],
    "responses": _RESPONSES,
    "socket": [{"type": "response.create", "generate": True, **one} for one in _RESPONSES],
    "input_tokens": _only(_RESPONSES, _COUNTED),
    "compact": _only([_RESPONSES[0], _RESPONSES[3]], _COMPACTED),
    "conversation": [{"items": ITEMS, "metadata": {"a": "b"}}],
    "conversation_update": [{"metadata": {"a": "b"}}],
    "conversation_items": [{"items": ITEMS}],
    "embedding": [
        {"model": "m", "input": ["a", "b"], "encoding_format": "float", "user": "u"},
        {"model": "m", "input": [[1, 2], [3]], "dimensions": 5, "input_type": "query"},
    ],
    "decision": [_DECISION],
    "systemone": [_SYSTEMONE],
    "rerank": [_RERANK],
    "score": [
        _PAIRS,
        {"model": "m", "queries": ["a"], "documents": "b"},
        {"model": "m", "queries": "a", "items": ["b"]},
        {"model": "m", "data_1": "a", "data_2": ["b"]},
    ],
    "classify": [
        {"model": "m", "input": [["a", "b"]], "use_activation": True, "priority": 0},
        {"model": "m", "input": [[1, 2]], "user": "u"},
    ],
    "tokenize": [
        {
            "model": "m",
            "messages": _CHAT_MESSAGES,
            "tools": _CHAT_TOOLS,
            "chat_template_kwargs": {"a": 1},
        },
        {"model": "m", "prompt": "x", "add_special_tokens": True, "return_token_strs": True},
    ],
    "detokenize": [{"model": "m", "tokens": [1, 2]}],
    "parse": [{"text": "x", "format": "hermes", "tools": _CHAT_TOOLS, "prompt_tail": "<"}],
    "execute": [{"name": "now", "arguments": {"a": 1}}],
    "mcp": [
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {
                "name": "now",
                "arguments": {"a": 1},
                "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"},
            },
        }
    ],
}
_CONTINUED: Final = "continued_"
SAMPLE_BODIES: Final[dict[str, list[Body]]] = {
    name: _OWN[name.removeprefix(_CONTINUED)] for name in KINDS
}
"""By the name of their kind; a kind without any is a `KeyError`."""

_BEFORE: Final = orjson.dumps([one for one in ITEMS if "approval" not in one.get("type", "")])
_REFERENCES: Final = {"msg_9": orjson.dumps(ITEMS[0])}
_OFFER: Final = EngineOffer(
    model="m",
    fingerprint="f",
    resume_version=1,
    max_model_len=100,
    created=0,
    credits=Credits(1, 100),
)
CONTEXT: Final = ParseContext({"m": _OFFER}, has_store=True)


def bytes_of(kind: str, body: Any) -> bytes:
    """What the parser of a kind gets: the body, for some with what it goes on from."""
    data = orjson.dumps(body)
    if not kind.startswith(_CONTINUED):
        return data
    return framed(data, _BEFORE, _REFERENCES, 100_000)


def positions(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where something stands in a value: every member and every element, at every depth."""
    members = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in members:
        yield (*path, key)
        yield from positions(inner, (*path, key))


def replaced(value: Any, path: Path, new: Any) -> Any:
    """A copy of a value with something else at a place."""
    if not path:
        return new
    first, *rest = path
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    changed[first] = replaced(value[first], tuple(rest), new)
    return changed


def found_at(value: Any, path: Path) -> Any:
    """What stands at a place."""
    for part in path:
        value = value[part]
    return value


LEVELS: Final = 1000
"""As deep as JSON is read, or nearly so: deeper than it is written, or shown by `str`."""
DEEP_LIST: Final = orjson.Fragment(b"[" * LEVELS + b"]" * LEVELS)
DEEP_OBJECT: Final = orjson.Fragment(b'{"type":' * LEVELS + b"1" + b"}" * LEVELS)
LONG_NUMBERS: Final = (orjson.Fragment(b"1" * 25), orjson.Fragment(b"0.1000000000000000055"))
"""That no float holds."""
ODD: Final[list[Any]] = [
    *(None, True, -1, 2**64 - 1, 1.5, "", "x", *LONG_NUMBERS),
    *([], [[]], [{}], [None], {}, {"": []}, {"type": {}}, DEEP_LIST),
]
_LIKE_RESPONSES: Final = ("input_tokens", "socket", "compact")


def odd_values(kind: str, place: int) -> list[Any]:
    """Values for the place of a number in a body of a kind.

    Each place gets half of the values, other ones than its neighbour, and a sixth of them in bodies
    that are read as those of Responses; all of them with more effort.
    """
    if EFFORT > 1:
        return ODD
    plain = kind.removeprefix("continued_")
    share = 6 if plain != kind or plain in _LIKE_RESPONSES else 2
    return ODD[place % share :: share]
