"""/v1/files: upload, list, read and delete files."""

import asyncio
import hashlib
import io
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.batches.files import PURPOSES, FileStore, disk_error
from gateway.errors import (
    DeniedError,
    InvalidRequestError,
    NotOfferedError,
    UnsupportedFieldError,
)
from gateway.http.access.guard import GuardedRoute, caller_of
from gateway.http.access.replaying import replay_of
from gateway.http.anthropic.models import VERSION_HEADER
from gateway.http.bodies.uploads import receive_form
from gateway.http.parts import parts_of
from gateway.http.query import query_number, query_text
from protocol.errors import ErrorCode

router = APIRouter(route_class=GuardedRoute, tags=["files"])
ResultT = TypeVar("ResultT")

MAX_PAGE: Final = 10_000
MIN_LIFETIME_S: Final = 3600
MAX_LIFETIME_S: Final = 30 * 86_400
_MAX_FILENAME_CHARACTERS: Final = 255
_PIECE_BYTES: Final = 256 * 1024
MAX_UPLOADS: Final = 4
"""Of one caller at a time."""
_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_LIFETIME_S,
            "maximum": MAX_LIFETIME_S,
        },
    },
}
_uploads: dict[bytes, int] = {}


@router.post(
    "/v1/files",
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
)
async def upload(request: Request) -> Response:
    """Keep a file: a form with `file` and `purpose`."""
    files, tenant = _files_of(request), tenant_of(request)
    caller = caller_of(request).name
    if _uploads.get(caller, 0) >= MAX_UPLOADS:
        raise DeniedError(
            f"{MAX_UPLOADS} uploads of yours are under way; please try again later.",
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            retry_after_s=1.0,
        )
    _uploads[caller] = _uploads.get(caller, 0) + 1
    try:
        return await _upload(request, files, tenant)
    finally:
        _uploads[caller] -= 1
        if not _uploads[caller]:
            del _uploads[caller]


async def _upload(request: Request, files: FileStore, tenant: str) -> Response:
    file_id, path = await on_disk(files.begin, tenant)
    replay = replay_of(request)
    digest = None if replay is None else hashlib.sha256()
    try:
        form = await receive_form(
            request, path, files.bounds.max_file_bytes, None if digest is None else digest.update
        )
        if replay is not None and digest is not None:
            await replay.on_form([form.fields, form.filename], digest.digest())
        purpose, lifetime_s = _checked(form.fields)
        filename = Path(form.filename or "upload").name[:_MAX_FILENAME_CHARACTERS]
        if replay is not None and replay.made_id:
            # A gateway that died at the end may have made it already.
            file_id, path = await on_disk(files.rename, tenant, file_id, replay.made_id)
        stored = await on_disk(
            files.finish, tenant, file_id, filename or "upload", purpose, lifetime_s
        )
    except BaseException:
        with suppress(OSError):
            if not path.with_suffix(".json").exists():  # then it was made before
                path.unlink(missing_ok=True)
        raise
    return as_json(stored.as_object())


def _checked(fields: dict[str, str]) -> tuple[str, float | None]:
    unknown = fields.keys() - _FORM["properties"].keys()
    if unknown:
        name = min(unknown)[:80]
        raise UnsupportedFieldError(f"Unknown field: `{name}`.", param=name)
    purpose = fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise InvalidRequestError(
            f"`purpose` must be one of {', '.join(PURPOSES)}.", param="purpose"
        )
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise InvalidRequestError(
            "`expires_after[anchor]` must be created_at.", param="expires_after[anchor]"
        )
    text = fields.get("expires_after[seconds]")
    if text is None and "expires_after[anchor]" in fields:
        param = "expires_after[seconds]"  # a file that is to go must not stay for want of it
        raise InvalidRequestError(f"Missing required field: `{param}`.", param=param)
    if text is None:
        return purpose, None
    is_number = text.isascii() and text.isdecimal() and len(text) < 9
    if not is_number or not MIN_LIFETIME_S <= int(text) <= MAX_LIFETIME_S:
        raise InvalidRequestError(
            f"`expires_after[seconds]` must be from {MIN_LIFETIME_S} to {MAX_LIFETIME_S}.",
            param="expires_after[seconds]",
        )
    return purpose, float(text)


@router.get("/v1/files")
async def list_files(request: Request) -> Response:
    """A page of files, newest first."""
    files, tenant = _files_of(request), tenant_of(request)
    limit = query_number(request, "limit")
    if limit is not None and not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {MAX_PAGE}.", param="limit")
    order = query_text(request, "order", one_of=("asc", "desc"))
    purpose, after = query_text(request, "purpose"), query_text(request, "after")
    read = partial(files.page, tenant, purpose, after, newest_first=order != "asc")
    found, has_more = await on_disk(read, limit or MAX_PAGE)
    return as_json(page([one.as_object() for one in found], has_more=has_more))


@router.get("/v1/files/{file_id}")
async def retrieve(request: Request, file_id: str) -> Response:
    """What is known of a file."""
    stored = await on_disk(_files_of(request).find, tenant_of(request), file_id)
    return as_json(stored.as_object())


@router.delete("/v1/files/{file_id}")
async def delete(request: Request, file_id: str) -> Response:
    """Forget a file."""
    await on_disk(_files_of(request).remove, tenant_of(request), file_id)
    return as_json({"id": file_id, "object": "file", "deleted": True})


@router.get("/v1/files/{file_id}/content")
async def content(request: Request, file_id: str) -> Response:
    """The bytes of a file."""
    path = await on_disk(_files_of(request).content_path, tenant_of(request), file_id)
    return FileResponse(await on_disk(lambda: path.open("rb", 0)))


class FileResponse(StreamingResponse):
    """The bytes of an open file, which is closed with it, also where nothing could be sent.

    Args:
        file: Unbuffered.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._reading = threading.Lock()  # a descriptor that is closed may soon be another file's
        super().__init__(
            self._pieces(),
            media_type="application/octet-stream",
            headers={"content-length": str(os.fstat(file.fileno()).st_size)},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with self._reading:
                self._file.close()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._read):
            yield piece

    def _read(self) -> bytes:
        with self._reading:
            return b"" if self._file.closed else self._file.read(_PIECE_BYTES) or b""


async def on_disk(work: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """What a piece of work that blocks returns, done beside the loop.

    Args:
        work: Called with the arguments.
        arguments: In order.

    Raises:
        GatewayError: The disk failed, or what the work itself raises.
    """
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise disk_error(error) from error


def _files_of(request: Request) -> FileStore:
    """The files of this server, for a client of the API that has them.

    Raises:
        GatewayError: It is Anthropic's, or files are switched off.
    """
    if VERSION_HEADER in request.headers:
        raise NotOfferedError(
            "Anthropic's Files API is not offered: no message could name a file. Send texts as"
            " blocks of the message; without the header `anthropic-version` /v1/files is OpenAI's."
        )
    return files_of(request)


def files_of(request: Request) -> FileStore:
    """The files of this server.

    Raises:
        UnsupportedFieldError: They are switched off.
    """
    files = parts_of(request).files
    if files is None:
        raise UnsupportedFieldError(
            "Files and batches are switched off on this server (PENSTOCK_MAX_FILE_BYTES)."
        )
    return files


def tenant_of(request: Request) -> str:
    """Whose things a caller sees."""
    tenant: str = request.state.granted.tenant
    return tenant


def as_json(value: Any) -> Response:
    """An answer."""
    return Response(orjson.dumps(value), media_type="application/json")


def page(shown: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """One page of a list in OpenAI's form."""
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": has_more,
    }
