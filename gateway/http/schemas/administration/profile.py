"""The body of POST /v1/admin/profile."""

from typing import Annotated

from pydantic import Field

from gateway.http.schemas.base.body import RequestModel
from gateway.http.schemas.base.ranges import ranged


class ProfileRequest(RequestModel):
    """An engine to be watched at its work."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    seconds: Annotated[float | None, ranged("seconds")] = None
