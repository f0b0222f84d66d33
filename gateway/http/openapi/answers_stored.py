"""What files and batches answer."""

from typing import Any, Final, get_args

from gateway.batches.files import PURPOSES
from gateway.batches.records import Status
from gateway.http.openapi.shapes import (
    NULL,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    is_exactly,
    list_of,
    map_of,
    one_of,
    or_null,
    page_of,
    record,
    ref,
)

_MOMENTS: Final[dict[str, Any]] = {
    f"{name}_at": or_null(WHOLE)
    for name in (
        *("in_progress", "finalizing", "completed", "failed", "expired"),
        *("cancelling", "cancelled"),
    )
}
SCHEMAS: Final[dict[str, Schema]] = {
    "File": record(
        id=TEXT,
        object=is_exactly("file"),
        bytes=WHOLE,
        created_at=WHOLE,
        expires_at=WHOLE,
        filename=TEXT,
        purpose=one_of(*PURPOSES, "batch_output"),
        status=is_exactly("processed"),
        status_details=NULL,
    ),
    "Batch": record(
        id=TEXT,
        object=is_exactly("batch"),
        endpoint=TEXT,
        errors=or_null(
            record(
                object=is_exactly("list"),
                data=list_of(
                    record(code=TEXT, message=TEXT, line=or_null(WHOLE), param=or_null(TEXT))
                ),
            )
        ),
        input_file_id=TEXT,
        completion_window=is_exactly("24h"),
        status=one_of(*get_args(Status)),
        output_file_id=or_null(TEXT),
        error_file_id=or_null(TEXT),
        created_at=WHOLE,
        expires_at=WHOLE,
        **_MOMENTS,
        request_counts=record(total=WHOLE, completed=WHOLE, failed=WHOLE),
        usage=record(
            input_tokens=WHOLE,
            input_tokens_details=record(cached_tokens=WHOLE),
            output_tokens=WHOLE,
            output_tokens_details=record(reasoning_tokens=WHOLE),
            total_tokens=WHOLE,
        ),
        metadata=or_null(map_of(TEXT)),
    ),
}
_BATCH: Final = Answers(ref("Batch"))
ROUTES: Final[dict[str, Answers]] = {
    "POST /v1/files": Answers(ref("File")),
    "GET /v1/files": Answers(page_of(ref("File"))),
    "GET /v1/files/{file_id}": Answers(ref("File")),
    "DELETE /v1/files/{file_id}": Answers(
        record(id=TEXT, object=is_exactly("file"), deleted={"const": True})
    ),
    "POST /v1/batches": _BATCH,
    "GET /v1/batches": Answers(page_of(ref("Batch"))),
    "GET /v1/batches/{batch_id}": _BATCH,
    "POST /v1/batches/{batch_id}/cancel": _BATCH,
}
