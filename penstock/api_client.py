"""The command line's own HTTP client: one place that turns server errors into clear lines."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from penstock.errors import ServerError, UsageError


def read_admin_key(key_file: Path | None, data_dir: Path) -> str:
    """The admin key: a named file, the environment or the file it names, or `serve`'s own file.

    Raises:
        UsageError: There is none, or the file can't be read.
    """
    from_environment = os.environ.get("PENSTOCK_ADMIN_KEY")
    if from_environment and key_file is None:
        return from_environment
    from_file = os.environ.get("PENSTOCK_ADMIN_KEY_FILE")
    path = key_file or (Path(from_file) if from_file else data_dir / "admin.key")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        raise UsageError(
            f"No admin key: set PENSTOCK_ADMIN_KEY or --key-file (looked for {path})."
        ) from None


def all_keys(client: "ApiClient") -> Iterator[dict[str, Any]]:
    """Every key record of the server, page by page.

    Raises:
        ServerError: The server refused, or did not answer.
    """
    after = ""
    while True:
        page = client.request("GET", f"/v1/admin/keys?limit=100&after={after}")
        yield from page["data"]
        if not page.get("has_more") or not page["data"]:
            return
        after = page["data"][-1]["id"]


def error_of(response: httpx.Response) -> ServerError:
    """The server's own words about what went wrong."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200] or response.reason_phrase
    return ServerError(f"{response.status_code}: {message}")


class ApiClient:
    """Requests to one server; a context manager that closes its connections.

    Args:
        url: The server's root, without `/v1`.
        api_key: Sent as a bearer token when given.
        transport: For tests.
    """

    def __init__(
        self, url: str, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        try:
            self._client = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(10.0, read=600.0),
                transport=transport,
                trust_env=False,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            what = "--url" if isinstance(error, httpx.InvalidURL) else "The API key"
            raise UsageError(f"{what} is malformed.") from None

    def __enter__(self) -> "ApiClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer to one request.

        Raises:
            ServerError: The server refused, or did not answer.
        """
        with self._reaching():
            response = self._client.request(method, path, json=body)
        if response.is_error:
            raise error_of(response)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise ServerError(f"{self.url} answers, but not as Penstock does.") from None

    def stream_chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat completion.

        Raises:
            ServerError: The server refused, or the stream ended with an error.
        """
        with (
            self._reaching(),
            self._client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.is_error:
                response.read()
                raise error_of(response)
            yield from _chunks(response.iter_lines())

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise ServerError(
                f"{self.url} does not answer ({type(error).__name__}); is `penstock serve` running?"
            ) from error


def _chunks(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            raise ServerError("The stream holds what is no JSON.") from None
        if "error" in chunk:
            raise ServerError(str(chunk["error"].get("message", "the stream failed")))
        yield chunk
    raise ServerError("The stream broke off before its end.")
