"""`penstock run-batch`: a file of requests in, a file of answers out, in OpenAI's batch format.

Each line of the input is `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}`;
each line of the output `{"id", "custom_id", "response": {"status_code", "request_id", "body"},
"error"}` (https://platform.openai.com/docs/guides/batch). Answers are appended as they come, so
that a run that was cut off continues where it ended, and put into the order of the input at the
end.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TextIO

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from penstock.api_client import server_root
from penstock.batch_output import BatchOutput
from penstock.config import ServeSettings
from penstock.errors import CommandError, UsageError
from penstock.private_server import private_settings
from penstock.serve import running_server
from penstock.supervisor import Supervisor

PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MAX_LINE_CHARACTERS: Final = 64 * 2**20
_MAX_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 30.0
_REQUEST_TIMEOUT_S: Final = 3600.0
_POLL_S: Final = 0.1
_COLUMNS: Final = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class BatchLine:
    """One request of the input."""

    custom_id: str
    path: str
    body: dict[str, Any]


@dataclass
class BatchCounts:
    """How a run went: requests in all, answered before this run, answered well, with an error."""

    total: int = 0
    skipped: int = 0
    succeeded: int = 0
    failed: int = 0


def read_batch(path: Path) -> list[BatchLine]:
    """Read and check the whole input before anything is started.

    Raises:
        UsageError: With the number of the line that is wrong.
    """
    lines: list[BatchLine] = []
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in _numbered(file):
                line = _parse(text, f"{path}:{number}")
                if line.custom_id in seen:
                    first = seen[line.custom_id]
                    raise UsageError(
                        f"{path}:{number}: custom_id {line.custom_id!r} repeats line {first}."
                    )
                seen[line.custom_id] = number
                lines.append(line)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}.") from None
    if not lines:
        raise UsageError(f"{path} holds no request.")
    return lines


def _numbered(file: TextIO) -> Iterator[tuple[int, str]]:
    for number, text in enumerate(file, start=1):
        if text.strip():
            yield number, text


def _parse(text: str, where: str) -> BatchLine:
    if len(text) > MAX_LINE_CHARACTERS:
        raise UsageError(f"{where}: longer than {MAX_LINE_CHARACTERS} characters.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON: {error}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
        raise UsageError(f"{where}: must be an object with a `custom_id`.")
    if value.get("method") != "POST" or value.get("url") not in PATHS:
        raise UsageError(f"{where}: `method` must be POST and `url` one of {', '.join(PATHS)}.")
    body = value.get("body")
    if not isinstance(body, dict):
        raise UsageError(f"{where}: `body` must be an object.")
    if body.get("stream"):
        raise UsageError(f"{where}: a batch can't stream; leave `stream` out of `body`.")
    return BatchLine(value["custom_id"], value["url"], body)


def run(
    input_path: Path,
    output_path: Path,
    *,
    url: str | None,
    settings: ServeSettings,
    api_key: str | None,
    concurrency: int,
    console: Console,
) -> int:
    """Run a whole file, at a running server or at one that is started for it.

    Args:
        input_path: Requests.
        output_path: Answers; what an earlier run answered well is kept and not asked again.
        url: A running server; None starts one of this machine with `settings`.
        settings: Of that server.
        api_key: Of the running server.
        concurrency: Requests under way at a time.
        console: For progress.

    Returns:
        The exit code: 0 when every request has a good answer, 1 otherwise.

    Raises:
        CommandError: The files are wrong, or the server can't be started.
    """
    lines = read_batch(input_path)
    with BatchOutput(output_path) as output:
        # Whatever is wrong with the output is said before a model is loaded for nothing.
        missing = {line.custom_id for line in lines} - output.answered
        if not missing:
            counts = BatchCounts(total=len(lines), skipped=len(lines))
        elif url is not None:
            counts = _run_with_bar(lines, output, url, api_key, None, concurrency, console, None)
        else:
            found = _run_at_own_server(lines, output, settings, concurrency, console)
            if found is None:
                return 1
            counts = found
        output.put_in_order(line.custom_id for line in lines)
    console.print(
        f"{counts.succeeded} answered, {counts.failed} failed, "
        f"{counts.skipped} were answered before",
        highlight=False,
    )
    return 0 if counts.succeeded + counts.skipped == counts.total else 1


def _run_at_own_server(
    lines: list[BatchLine],
    output: BatchOutput,
    settings: ServeSettings,
    concurrency: int,
    console: Console,
) -> BatchCounts | None:
    """Start a server for the batch; None when it was told to stop before it served."""
    with TemporaryDirectory(prefix="penstock-batch-") as data_dir:
        private = private_settings(settings, Path(data_dir))
        with running_server(private, console, is_private=True) as (url, supervisor):
            if url is None:
                return None
            model = settings.models[0].name if len(settings.models) == 1 else None
            return _run_with_bar(lines, output, url, None, model, concurrency, console, supervisor)


def _run_with_bar(
    lines: list[BatchLine],
    output: BatchOutput,
    url: str,
    api_key: str | None,
    default_model: str | None,
    concurrency: int,
    console: Console,
    supervisor: Supervisor | None,
) -> BatchCounts:
    with Progress(*_COLUMNS, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("requests", total=len(lines))

        def show(counts: BatchCounts) -> None:
            bar.update(task, completed=counts.skipped + counts.succeeded + counts.failed)

        async def work() -> BatchCounts:
            batch = asyncio.create_task(
                run_batch(
                    lines,
                    output,
                    url=url,
                    api_key=api_key,
                    default_model=default_model,
                    concurrency=concurrency,
                    on_progress=show,
                )
            )
            while not batch.done() and supervisor is not None and not supervisor.stop_requested:
                supervisor.poll()
                await asyncio.wait([batch], timeout=_POLL_S)
            if supervisor is not None and supervisor.stop_requested:
                batch.cancel()
                raise CommandError("Stopped; run the same command to continue.")
            return await batch

        return asyncio.run(work())


async def run_batch(
    lines: list[BatchLine],
    output: BatchOutput,
    *,
    url: str,
    api_key: str | None,
    default_model: str | None,
    concurrency: int,
    on_progress: Callable[[BatchCounts], None],
    transport: httpx.AsyncBaseTransport | None = None,
) -> BatchCounts:
    """Send every request that has no answer yet, so many at a time.

    Args:
        lines: From `read_batch`.
        output: Answers are appended as they come.
        url: The server's root, with or without `/v1`.
        api_key: Of the server.
        default_model: For bodies that name none.
        concurrency: Requests under way at a time.
        on_progress: Called after each answer.
        transport: For tests.

    Returns:
        How it went.

    Raises:
        CommandError: An answer can't be written, or the address or the key is malformed.
    """
    done = output.answered
    counts = BatchCounts(total=len(lines), skipped=sum(line.custom_id in done for line in lines))
    waiting = iter([line for line in lines if line.custom_id not in done])
    async with _client(url, api_key, concurrency, transport) as client:

        async def work() -> None:
            for line in waiting:
                body = line.body
                if default_model is not None:
                    body = {"model": default_model, **body}
                answer = await _ask(client, line, body)
                output.append(answer)
                response = answer["response"]
                if response is not None and response["status_code"] == 200:
                    counts.succeeded += 1
                else:
                    counts.failed += 1
                on_progress(counts)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        except ExceptionGroup as errors:
            # Several may tell of the same file; a person needs one line.
            for error in errors.exceptions:
                if isinstance(error, CommandError):
                    raise error from None
            raise
    return counts


def _client(
    url: str, api_key: str | None, concurrency: int, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            base_url=server_root(url),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(_REQUEST_TIMEOUT_S),
            limits=httpx.Limits(max_connections=concurrency),
            transport=transport,
            trust_env=False,
        )
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        what = "--url" if isinstance(error, httpx.InvalidURL) else "PENSTOCK_API_KEY"
        raise UsageError(f"{what} is malformed.") from None


async def _ask(client: httpx.AsyncClient, line: BatchLine, body: dict[str, Any]) -> dict[str, Any]:
    """One request, again and again while the server is full or away."""
    record: dict[str, Any] = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": line.custom_id,
        "response": None,
        "error": None,
    }
    pause_s = _FIRST_PAUSE_S
    for attempt in range(_MAX_TRIES):
        is_last = attempt == _MAX_TRIES - 1
        try:
            # Escaped, so that half of a surrogate pair is the server's to refuse, as NaN is.
            reply = await client.post(
                line.path,
                content=json.dumps(body),
                headers={"content-type": "application/json"},
            )
        except httpx.RequestError as error:
            if is_last:
                message = f"{type(error).__name__}: {error}"
                return {**record, "error": {"code": "connection_error", "message": message}}
        else:
            if is_last or not _is_worth_another_try(reply):
                response = {
                    "status_code": reply.status_code,
                    "request_id": reply.headers.get("x-request-id", ""),
                    "body": _body(reply),
                }
                return {**record, "response": response}
            pause_s = max(pause_s, _retry_after_s(reply))
        await asyncio.sleep(min(pause_s, _MAX_PAUSE_S))
        pause_s *= 2
    raise AssertionError("the last try returns")


def _is_worth_another_try(reply: httpx.Response) -> bool:
    return (
        reply.status_code in (429, 503) and reply.headers.get("x-should-retry", "true") != "false"
    )


def _retry_after_s(reply: httpx.Response) -> float:
    try:
        return float(reply.headers.get("retry-after", 0))
    except ValueError:
        return 0.0


def _body(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except (ValueError, RecursionError):
        return {"error": {"message": reply.text[:1000]}}
