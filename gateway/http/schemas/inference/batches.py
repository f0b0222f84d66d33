"""The body of POST /v1/batches."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gateway.http.schemas.base.body import RequestModel, field_error

MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512


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

    @field_validator("metadata")
    @classmethod
    def _a_few_labels(cls, value: Any) -> Any:
        if value is not None and (
            len(value) > MAX_METADATA
            or any(
                len(key) > MAX_METADATA_KEY or len(text) > MAX_METADATA_VALUE
                for key, text in value.items()
            )
        ):
            raise field_error(
                f"at most {MAX_METADATA} pairs are accepted, of {MAX_METADATA_KEY} and"
                f" {MAX_METADATA_VALUE} characters."
            )
        return value
