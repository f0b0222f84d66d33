"""The body of POST /v1/batches."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gateway.http.schemas.base.body import RequestModel, few_labels


class OutputExpiresAfter(RequestModel):
    """How long outputs live."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=30 * 86_400)]


class BatchRequest(RequestModel):
    """A file of requests to be run."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiresAfter | None = None

    _few_labels = field_validator("metadata")(few_labels)
