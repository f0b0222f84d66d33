"""Bodies of the routes about workers."""

from typing import Annotated

from pydantic import Field

from gateway.http.schemas.base.body import RequestModel
from gateway.http.schemas.base.core_schemas import NullIsDefault

MAX_DRAIN_S = 86_400


class DrainRequest(RequestModel):
    """How long a worker may take to finish; at most its own `PENSTOCK_DRAIN_TIMEOUT_S`."""

    timeout_s: Annotated[float, Field(ge=0, le=MAX_DRAIN_S), NullIsDefault()] = MAX_DRAIN_S


class ClearCacheRequest(RequestModel):
    """What to forget: everything, or what concerns one model."""

    model: str | None = Field(default=None, max_length=512)
