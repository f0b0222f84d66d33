"""The bodies of the key administration routes, and what they set."""

from typing import Annotated, Any

from pydantic import Field

from gateway.http.schemas.body import RequestModel
from protocol.wire.messages import KeySettings, PrincipalRole, PriorityClass

MAX_LIMIT = 2**53 - 1
MAX_OVERLAP_S = 30 * 24 * 3600

_Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
_Globs = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=100)]
_Networks = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=100)
]
_Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=32)]
_Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]
_Scopes = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=100)]
_Id = Annotated[str, Field(max_length=64)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class KeyFields(RequestModel):
    """Everything about a key that may be set; null is the same as its default."""

    description: Annotated[str, Field(max_length=1000)] | None = None
    owner: Annotated[str, Field(max_length=200)] | None = None
    role: PrincipalRole = "user"
    scopes: _Scopes | None = None
    tenant: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.:@-]*$")] | None = None
    expires_at: Annotated[int, Field(ge=1, le=MAX_LIMIT)] | None = None
    tags: _Tags | None = None
    metadata: _Metadata | None = None
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_parallel_requests: _Limit | None = None
    max_tokens_per_request: _Limit | None = None
    allowed_models: _Globs | None = None
    allowed_endpoints: _Globs | None = None
    allowed_ip_addresses: _Networks | None = None
    blocked_ip_addresses: _Networks | None = None
    enable_streaming: bool | None = None
    enable_function_calling: bool | None = None
    priority: PriorityClass | None = None
    user_id: _Id | None = None
    team_id: _Id | None = None
    may_name_end_users: bool | None = None

    def settings(self) -> tuple[tuple[str, ...], KeySettings]:
        """The names of the fields that were sent, and the settings with their values."""
        values: dict[str, Any] = {"name": ""}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                values[name] = tuple(value) if isinstance(value, list) else value
        return tuple(sorted(self.model_fields_set)), KeySettings(**values)


class CreateKeyRequest(KeyFields):
    """A key to be made."""

    name: _Name


class ChangeKeyRequest(KeyFields):
    """What is to be different about a key; what isn't sent stays, and null clears."""

    name: _Name = ""


class RotateKeyRequest(RequestModel):
    """A new secret for a key."""

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)] = 0
