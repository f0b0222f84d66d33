"""What the OpenAPI document says of answers: all of it, and what the official clients read."""

import importlib
import json
import re
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import BaseModel

from gateway.http import routes
from gateway.http.access.guard import GuardedRoute
from gateway.http.openapi import answers, document, errors
from gateway.http.openapi.shapes import TEXT, WHOLE, absent_or, record

SCHEMAS = answers.SCHEMAS | errors.SCHEMAS
UNTYPED = {
    "GET /v1/files/{file_id}/content": "bytes",
    "GET /v1/responses": "a WebSocket",
    "GET /v1/hooks/{name}/{path}": "a hook's own",
    "POST /v1/hooks/{name}/{path}": "a hook's own",
}
OPEN = {
    "InputItem": "a client's own item",
    "TokenizerInfo": "special tokens have names of their own",
    "AuditEvent": "a field has the name of its type",
    "McpResult": "of a method of MCP",
}
_OPENAI, _ANTHROPIC = "openai.types", "anthropic.types"
OF_THE_SDKS = {
    "ChatCompletion": f"{_OPENAI}.chat.chat_completion.ChatCompletion",
    "AssistantMessage": f"{_OPENAI}.chat.chat_completion_message.ChatCompletionMessage",
    "TokenLogprob": f"{_OPENAI}.chat.chat_completion_token_logprob.ChatCompletionTokenLogprob",
    "ChatCompletionChunk": f"{_OPENAI}.chat.chat_completion_chunk.ChatCompletionChunk",
    "Usage": f"{_OPENAI}.completion_usage.CompletionUsage",
    "Completion": f"{_OPENAI}.completion.Completion",
    "Embeddings": f"{_OPENAI}.create_embedding_response.CreateEmbeddingResponse",
    "Response": f"{_OPENAI}.responses.response.Response",
    "ResponseUsage": f"{_OPENAI}.responses.response_usage.ResponseUsage",
    "ResponseMessage": f"{_OPENAI}.responses.response_output_message.ResponseOutputMessage",
    "CompactedResponse": f"{_OPENAI}.responses.compacted_response.CompactedResponse",
    "Conversation": f"{_OPENAI}.conversations.conversation.Conversation",
    "File": f"{_OPENAI}.file_object.FileObject",
    "Batch": f"{_OPENAI}.batch.Batch",
    "ModelCard": f"{_OPENAI}.model.Model",
    "Decision": f"{_OPENAI}.decision.Decision",
    "Message": f"{_ANTHROPIC}.message.Message",
    "ModelInfo": f"{_ANTHROPIC}.model_info.ModelInfo",
}


def operations() -> set[str]:
    return {
        f"{method} {route.path.replace(':path}', '}')}"
        for router in routes.ROUTERS
        for route in router.routes
        if isinstance(route, GuardedRoute) and route.include_in_schema
        for method in route.methods or ()
    }


def records_in(schema: Any) -> list[dict[str, Any]]:
    """Every object with fields of its own, however deep."""
    if isinstance(schema, list):
        return [one for value in schema for one in records_in(value)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if "required" in schema else []
    return own + [one for value in schema.values() for one in records_in(value)]


def test_every_route_says_what_it_answers() -> None:
    assert answers.ROUTES.keys() | UNTYPED.keys() == operations()
    assert not answers.ROUTES.keys() & UNTYPED.keys()


def test_every_schema_is_one_of_json_schema() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_every_name_stands_for_a_schema_and_every_schema_is_used() -> None:
    said = json.dumps([SCHEMAS, [one for one in answers.ROUTES.values() if one is not None]])
    named = set(re.findall(r"#/components/schemas/(\w+)", said))
    assert named <= SCHEMAS.keys()
    assert SCHEMAS.keys() - named <= errors.SCHEMAS.keys()


def test_a_record_has_no_field_that_it_does_not_name() -> None:
    for name in SCHEMAS.keys() - OPEN.keys():
        assert all(one["additionalProperties"] is False for one in records_in(SCHEMAS[name])), name


def kind_of(path: str) -> type[BaseModel]:
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind if isinstance(kind, type) else get_args(kind)[0]


@pytest.mark.parametrize(("name", "path"), OF_THE_SDKS.items())
def test_a_client_gets_every_field_that_its_type_needs(name: str, path: str) -> None:
    """The type, as its package has it, is the oracle."""
    needed = {
        field.alias or key
        for key, field in kind_of(path).model_fields.items()
        if field.is_required()
    }
    assert needed
    assert needed <= set(SCHEMAS[name]["required"])


def test_a_record_says_which_of_its_fields_may_be_absent() -> None:
    assert record(a=TEXT, b=absent_or(WHOLE)) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }


def test_the_data_of_an_event_is_json_or_the_word_of_the_end() -> None:
    data = document._event({"type": "object"})["properties"]["data"]
    end, event = data["anyOf"]
    assert end == {"const": "[DONE]"}
    assert event == {"contentMediaType": "application/json", "contentSchema": {"type": "object"}}
    assert not data.keys() & event.keys()
