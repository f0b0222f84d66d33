"""The bodies of the key administration routes, and what they set."""

from typing import Annotated

from pydantic import Field

from gateway.http.schemas.administration.settings import (
    LAST_SECOND,
    Amount,
    Globs,
    Id,
    Metadata,
    Name,
    SettingsModel,
    Tags,
)
from gateway.http.schemas.base.body import RequestModel
from gateway.http.schemas.base.core_schemas import NullIsDefault
from protocol.wire.messages import KeySettings, PrincipalRole, PriorityClass

MAX_OVERLAP_S = 30 * 24 * 3600

_Networks = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=100)
]
_Scopes = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=100)]


class KeyFields(SettingsModel):
    """Everything about a key that may be set; null is the same as its default."""

    description: Annotated[str, Field(max_length=1000)] | None = None
    owner: Annotated[str, Field(max_length=200)] | None = None
    role: Annotated[PrincipalRole, NullIsDefault()] = "user"
    scopes: _Scopes | None = None
    tenant: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.:@-]*$")] | None = None
    expires_at: Annotated[int, Field(ge=1, le=LAST_SECOND)] | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    max_parallel_requests: Amount | None = None
    max_tokens_per_request: Amount | None = None
    allowed_models: Globs | None = None
    allowed_endpoints: Globs | None = None
    allowed_ip_addresses: _Networks | None = None
    blocked_ip_addresses: _Networks | None = None
    enable_streaming: bool | None = None
    enable_function_calling: bool | None = None
    priority: PriorityClass | None = None
    user_id: Id | None = None
    team_id: Id | None = None
    may_name_end_users: bool | None = None

    def settings(self) -> tuple[tuple[str, ...], KeySettings]:
        """The names of the fields that were sent, and the settings with their values."""
        fields, values = self.given()
        return fields, KeySettings(**{"name": "", **values})


class CreateKeyRequest(KeyFields):
    """A key to be made."""

    name: Name


class ChangeKeyRequest(KeyFields):
    """What is to be different about a key; what isn't sent stays, and null clears."""

    name: Name = ""


class RotateKeyRequest(RequestModel):
    """A new secret for a key."""

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S), NullIsDefault()] = 0
