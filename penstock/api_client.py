"""The command line's own HTTP client: one place that turns server errors into clear lines."""

import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

import httpx

from penstock.config import URL, expanded
from penstock.errors import ServerError, UsageError

_KEY = re.compile(r"[\x21-\x7e]+")
"""What may stand in an Authorization header."""

_UNTRUSTED = re.compile(r"certificate verify failed: (.+?) \(_ssl")
"""OpenSSL's words on a certificate, within those of Python."""


def read_admin_key(key_file: Path | None, data_dir: Path) -> str:
    """The admin key: a named file, the environment or the file it names, or `serve`'s own file.

    Raises:
        UsageError: There is none, the file can't be read, or what it holds is no key.
    """
    from_environment = os.environ.get("PENSTOCK_ADMIN_KEY")
    if from_environment and key_file is None:
        return from_environment
    from_file = os.environ.get("PENSTOCK_ADMIN_KEY_FILE")
    named = expanded(from_file, "PENSTOCK_ADMIN_KEY_FILE") if from_file else data_dir / "admin.key"
    path = key_file or named
    try:
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UsageError(
            f"No admin key in {path}: set PENSTOCK_ADMIN_KEY or --key-file. Where it is lost, "
            "docs/runbook.md says how to get another."
        ) from None
    except OSError as error:
        raise UsageError(
            f"The admin key in {path} can't be read: {error.strerror}. Run this as the user of "
            "`penstock serve`, or set PENSTOCK_ADMIN_KEY or --key-file."
        ) from None
    except UnicodeDecodeError:
        key = ""
    if not _KEY.fullmatch(key):
        raise UsageError(f"{path} holds no key; set PENSTOCK_ADMIN_KEY or another --key-file.")
    return key


def all_pages(
    client: "ApiClient", path: str, query: Mapping[str, Any], *, cursor: str = "id"
) -> Iterator[dict[str, Any]]:
    """Every entry of a list of the server, page by page.

    Args:
        client: Asks.
        path: Of the list.
        query: What else is asked for; what is None or empty is left out.
        cursor: The field of an entry after which the next page begins.

    Raises:
        ServerError: The server refused, or did not answer.
    """
    asked = {name: value for name, value in query.items() if value not in (None, "")}
    after = ""
    while True:
        wanted = {"limit": 100, **asked} | ({"after": after} if after else {})
        page = client.request("GET", f"{path}?{urlencode(wanted)}")
        with client.reading():
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            last, after = after, str(page["data"][-1][cursor])
            if after == last:
                raise ValueError("the same page again")


def error_of(response: httpx.Response, key_names: str) -> ServerError:
    """The server's own words about what went wrong, and a way out where the key is the matter."""
    param = None
    try:
        error = response.json()["error"]
        message = error["message"]
        param = error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message = response.text[:200] or response.reason_phrase
    hint = ""
    if response.status_code == httpx.codes.UNAUTHORIZED:
        hint = f" This command takes its key from {key_names}."
    status = response.status_code
    return ServerError(f"{status}: {message}{hint}", status=status, param=param)


def without_credentials(url: str) -> str:
    """A URL as it may be shown: without user name and password."""
    return re.sub(r"^([a-z+.-]+://)[^/?#]*@", r"\1", url, flags=re.IGNORECASE)


def server_root(url: str) -> str:
    """Where the paths start, whether or not `/v1` was given, as OpenAI's clients want it."""
    return url.rstrip("/").removesuffix("/v1")


class ApiClient:
    """Requests to one server; a context manager that closes its connections.

    Args:
        url: The server's root, with or without `/v1`.
        api_key: Sent as a bearer token when given.
        transport: For tests.
        read_timeout_s: A server that sends nothing for so long does not answer.

    Attributes:
        url: As it may be shown.
        key_names: Where its key comes from, for whoever is told that it is unknown.

    Raises:
        UsageError: The URL or the key is malformed.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        *,
        read_timeout_s: float = 600.0,
    ) -> None:
        if api_key and not _KEY.fullmatch(api_key):
            raise UsageError(
                "The API key is malformed: it holds spaces, line breaks or characters outside "
                "ASCII. Look at PENSTOCK_API_KEY or PENSTOCK_ADMIN_KEY."
            )
        self.url = without_credentials(server_root(url))
        self.key_names = "PENSTOCK_API_KEY"
        if not re.match(r"https?://[^/]", url, re.IGNORECASE):
            raise UsageError(f"--url is malformed: {self.url!r}; try {URL.default}.")
        try:
            self._client = httpx.Client(
                base_url=server_root(url),
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(10.0, read=read_timeout_s),
                transport=transport,
                trust_env=False,
                verify=_authorities(url),
            )
        except httpx.InvalidURL:
            raise UsageError(f"--url is malformed: {self.url!r}; try {URL.default}.") from None

    def __enter__(self) -> "ApiClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def request(
        self, method: str, path: str, body: Any = None, *, idempotency_key: str = ""
    ) -> Any:
        """The JSON answer to one request.

        Args:
            method: Of HTTP.
            path: With its query.
            body: For JSON; None for none.
            idempotency_key: The server carries it out once, however often it is sent with this.

        Raises:
            ServerError: The server refused, or did not answer.
        """
        sent = _json(body)
        if idempotency_key:
            sent["headers"] = {**sent.get("headers", {}), "Idempotency-Key": idempotency_key}
        with self._reaching():
            response = self._client.request(method, path, **sent)
        if response.is_error:
            raise error_of(response, self.key_names)
        if not response.content:
            return None
        with self.reading():
            return response.json()

    def upload(self, path: str, file: BinaryIO, fields: Mapping[str, str]) -> Any:
        """The JSON answer to a form with a file, which is sent as it is read.

        Raises:
            ServerError: The server refused, or did not answer.
        """
        with self._reaching():
            response = self._client.post(path, data=dict(fields), files={"file": file})
        if response.is_error:
            raise error_of(response, self.key_names)
        with self.reading():
            return response.json()

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of a text, each with its line feed; one is in memory at a time.

        Raises:
            ServerError: The server refused, or did not answer to the end.
        """
        with self._reaching(), self._client.stream("GET", path) as response:
            if response.is_error:
                response.read()
                raise error_of(response, self.key_names)
            rest = bytearray()
            for piece in response.iter_bytes():
                *whole, last = piece.split(b"\n")
                for line in whole:
                    yield bytes(rest) + line + b"\n"
                    rest.clear()
                rest += last
            if rest:
                yield bytes(rest) + b"\n"

    def stream_chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat completion.

        Raises:
            ServerError: The server refused, or the stream ended with an error.
        """
        with (
            self._reaching(),
            self._client.stream("POST", "/v1/chat/completions", **_json(body)) as response,
        ):
            if response.is_error:
                response.read()
                raise error_of(response, self.key_names)
            yield from _chunks(response.iter_lines())

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns what goes wrong with an answer of another shape into one clear line.

        Raises:
            ServerError: The answer is not Penstock's.
        """
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise ServerError(
                f"{self.url} answers, but not as Penstock does; is --url right?"
            ) from None

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.RequestError as error:
            if untrusted := _UNTRUSTED.search(str(error)):
                raise ServerError(
                    f"{self.url} shows a certificate that is not trusted: {untrusted[1]}. "
                    "SSL_CERT_FILE names a file of the authorities to trust."
                ) from error
            raise ServerError(
                f"{self.url} does not answer ({type(error).__name__}); is `penstock serve` running?"
            ) from error


def _authorities(url: str) -> ssl.SSLContext | bool:
    """Whom a server's certificate may be from: `SSL_CERT_FILE`'s authorities and the system's.

    Without TLS nothing is verified, and none need to be read.

    Raises:
        UsageError: The named file can't be read, or holds no certificate.
    """
    if not url.lower().startswith("https:"):
        return False
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        raise UsageError(f"SSL_CERT_FILE can't be read: {error.strerror}.") from None
    context.load_default_certs()
    return context


def _json(body: Any) -> dict[str, Any]:
    """A body as httpx takes it; escaped, since an argument's odd bytes have no UTF-8."""
    if body is None:
        return {}
    return {"content": json.dumps(body), "headers": {"content-type": "application/json"}}


def _chunks(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise ServerError("The stream has an event that is not JSON.") from None
        if not isinstance(chunk, dict):
            raise ServerError("The stream has an event that is not a completion chunk.")
        if "error" in chunk:
            error = chunk["error"]
            message = error.get("message") if isinstance(error, dict) else error
            raise ServerError(str(message or "the stream failed"))
        yield chunk
    raise ServerError("The stream ended early.")
