"""Null is the same as leaving a field out, in every request model that says it."""

from typing import Any, Final

from pydantic import ValidationError

from gateway.http.mcp.messages import McpRequest
from gateway.http.schemas.administration import resources
from gateway.http.schemas.administration.keys import ChangeKeyRequest
from gateway.http.schemas.base.body import RequestModel
from gateway.http.schemas.inference.messages import ChatMessage, clean_messages
from tests.fakes.request_models import MODELS

NEVER_NULL: Final[dict[type[RequestModel], frozenset[str]]] = {
    # JSON-RPC's own rules.
    McpRequest: frozenset({"id", "params"}),
    # What a resource always has: null would clear it.
    ChangeKeyRequest: frozenset({"name"}),
    resources.ChangeUserRequest: frozenset({"name"}),
    resources.ChangeTeamRequest: frozenset({"name"}),
    resources.ChangeLimitRequest: frozenset({"name", "amount", "window"}),
    resources.ChangePriceRequest: frozenset({"models", "prompt", "completion"}),
    resources.ChangeWebhookRequest: frozenset({"name", "url", "events", "secret"}),
}


def refuses_null(model: type[RequestModel], name: str) -> bool:
    try:
        model.model_validate({name: None})
    except ValidationError as error:
        return any(one["loc"][:1] == (name,) for one in error.errors())
    return False


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    for model in MODELS:
        optional = {name for name, field in model.model_fields.items() if not field.is_required()}
        refused = {name for name in optional if refuses_null(model, name)}
        assert refused == NEVER_NULL.get(model, frozenset()), model.__name__


def test_a_call_whose_type_is_null_reaches_the_template_as_a_function() -> None:
    call: dict[str, Any] = {
        "id": "1",
        "type": None,
        "function": {"name": "f", "arguments": "{}"},
    }
    message = {"role": "assistant", "tool_calls": [call]}
    ChatMessage.model_validate(message)
    assert clean_messages([message])[0]["tool_calls"] == [{**call, "type": "function"}]
