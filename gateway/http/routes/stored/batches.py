"""/v1/batches: files of requests that are run in idle capacity."""

from functools import partial
from typing import Final

from fastapi import APIRouter, Request, Response

from gateway.batches.store import BatchStore
from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.access.guard import GuardedRoute, caller_of, read_body
from gateway.http.access.replaying import made_id, replay_of
from gateway.http.answers.answer_headers import ignored_headers
from gateway.http.parts import parts_of
from gateway.http.query import query_number, query_text
from gateway.http.routes.stored.files import as_json, files_of, on_disk, page, tenant_of
from gateway.http.schemas.base.body import load_json_object, unknown_fields, validate
from gateway.http.schemas.inference.batches import BatchRequest

router = APIRouter(route_class=GuardedRoute, tags=["batches"])

_MAX_PAGE: Final = 100
_DEFAULT_PAGE: Final = 20
_SCHEMA: Final = {"$ref": f"#/components/schemas/{BatchRequest.__name__}"}


@router.post(
    "/v1/batches",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
    },
)
async def create(request: Request) -> Response:
    """Run the lines of a file, each as a request of the caller's."""
    batches, parts = batches_of(request), parts_of(request)
    value = load_json_object(await read_body(request))
    wanted = validate(BatchRequest, value)
    ignored = unknown_fields(wanted, value)
    headers = ignored_headers(ignored, strict=parts.settings.strict_fields)
    caller = caller_of(request)
    if caller.token:
        raise UnsupportedFieldError(
            "A batch is run with a key; a bearer token may have ended by then. Create it with a"
            " key of yours."
        )
    create_batch = partial(
        batches.create,
        tenant_of(request),
        key_digest="" if caller.key_digest is None else caller.key_digest.hex(),
        key_id=request.state.granted.key_id,
        address=caller.address,
        end_user=caller.end_user,
        made_id="" if replay_of(request) is None else made_id(request),
        endpoint=wanted.endpoint,
        input_file_id=wanted.input_file_id,
        metadata=wanted.metadata,
        output_lifetime_s=(
            None if wanted.output_expires_after is None else wanted.output_expires_after.seconds
        ),
    )
    batch = await on_disk(create_batch)
    if parts.batch_runner is not None:
        parts.batch_runner.look()
    answer = as_json(batch.as_object())
    answer.headers.update(headers)
    return answer


@router.get("/v1/batches")
async def list_batches(request: Request) -> Response:
    """A page of batches, newest first."""
    batches, tenant = batches_of(request), tenant_of(request)
    limit = query_number(request, "limit")
    if limit is not None and not 1 <= limit <= _MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {_MAX_PAGE}.", param="limit")
    after = query_text(request, "after")
    found, has_more = await on_disk(batches.page, tenant, after, limit or _DEFAULT_PAGE)
    return as_json(page([batch.as_object() for batch in found], has_more=has_more))


@router.get("/v1/batches/{batch_id}")
async def retrieve(request: Request, batch_id: str) -> Response:
    """How far a batch is."""
    batch = await on_disk(batches_of(request).find, tenant_of(request), batch_id)
    return as_json(batch.as_object())


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel(request: Request, batch_id: str) -> Response:
    """Begin no more lines of a batch."""
    batch = await on_disk(batches_of(request).cancel, tenant_of(request), batch_id)
    return as_json(batch.as_object())


def batches_of(request: Request) -> BatchStore:
    """The batches of this server.

    Raises:
        UnsupportedFieldError: They are switched off.
    """
    batches = parts_of(request).batches
    if batches is None:
        files_of(request)
        raise AssertionError("files and batches are there together")
    return batches
