"""The bodies of the key administration routes."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.http.schemas.body import RequestModel

MAX_LIMIT = 2**53 - 1


class CreateKeyRequest(RequestModel):
    """A key to be made."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    role: Literal["user", "admin"] = "user"
    tenant: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.:@-]*$")] = ""
    requests_per_minute: Annotated[int | None, Field(ge=1, le=MAX_LIMIT)] = None
    tokens_per_minute: Annotated[int | None, Field(ge=1, le=MAX_LIMIT)] = None
    expires_at: Annotated[int | None, Field(ge=1, le=MAX_LIMIT)] = None
