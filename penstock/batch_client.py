"""A server's files and batches as `penstock run-batch` uses them, patient with one that is away."""

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar

import httpx

from penstock.api_client import ApiClient, all_pages
from penstock.errors import ServerError

PATIENCE_S: Final = 600.0
"""A server that doesn't answer for so long is given up; its batches go on."""
_INPUT_AGE_S: Final = 86_400
"""An upload that no batch was made of is gone then."""
_MAY_PASS: Final = (0, 408, 409, 429, 500, 502, 503, 504)
"""409 is the answer to a request that the server still works on, since it came before."""
_TELL_INTERVAL_S: Final = 60.0
_NOT_REACHED: Final = (httpx.ConnectError, httpx.ConnectTimeout)
_PART: Final = "penstock_part"

ResultT = TypeVar("ResultT")


class BatchClient:
    """Uploads parts, makes batches of them, watches them and fetches what they leave.

    Args:
        client: Of the server.
        pause: Waits a moment; what it raises ends whatever waits.
        clock: Monotonic seconds.
        say: Told in a line why it waits.
        was_reached: The server has answered before. Of one that was never reached the address is
            wrong, as far as anybody knows, and it is not waited for.
    """

    def __init__(
        self,
        client: ApiClient,
        pause: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        say: Callable[[str], None] = lambda line: None,
        was_reached: bool = False,
    ) -> None:
        self._client = client
        self._pause = pause
        self._clock = clock
        self._say = say
        self._was_reached = was_reached
        self._told_at: float | None = None

    def create(self, url: str, file: BinaryIO, labels: dict[str, str]) -> str:
        """The id of a new batch of the lines of a file.

        Args:
            url: Of all its lines.
            file: At its beginning.
            labels: To know the batch by later.

        Raises:
            ServerError: The server refused, or was away for too long.
        """
        fields = {
            "purpose": "batch",
            "expires_after[anchor]": "created_at",
            "expires_after[seconds]": str(_INPUT_AGE_S),
        }

        def upload() -> Any:
            file.seek(0)
            return self._client.upload("/v1/files", file, fields)

        uploaded = self._patiently(upload)
        with self._client.reading():
            file_id = str(uploaded["id"])
        part = secrets.token_hex(8)
        asked = {
            "input_file_id": file_id,
            "endpoint": url,
            "completion_window": "24h",
            "metadata": {**labels, _PART: part},
        }
        has_asked = False

        def make() -> Any:
            # What came before may have been carried out although its answer was lost: by its mark
            # the batch is found. A server that still works on it knows it by the key.
            nonlocal has_asked
            if has_asked:
                made = [one for one in self.all() if one.get("metadata") == asked["metadata"]]
                if made:
                    return made[0]
            has_asked = True
            return self._client.request("POST", "/v1/batches", asked, idempotency_key=part)

        try:
            made = self._patiently(make)
        finally:
            # A batch has the lines for itself.
            self.forget_file(file_id)
        with self._client.reading():
            return str(made["id"])

    def find(self, batch_id: str) -> dict[str, Any]:
        """A batch as it is now.

        Raises:
            ServerError: There is none, or the server was away for too long.
        """
        batch = self._patiently(lambda: self._client.request("GET", f"/v1/batches/{batch_id}"))
        with self._client.reading():
            return {**batch, "status": str(batch["status"])}

    def cancel(self, batch_id: str) -> None:
        """Ask for the end of a batch.

        Raises:
            ServerError: The server refused, or was away for too long.
        """
        self._patiently(lambda: self._client.request("POST", f"/v1/batches/{batch_id}/cancel", {}))

    def all(self) -> list[dict[str, Any]]:
        """Every batch that the server still knows, newest first.

        Raises:
            ServerError: The server refused, or did not answer.
        """
        return list(all_pages(self._client, "/v1/batches", {}))

    def known(self) -> list[dict[str, Any]]:
        """As `all`, patiently.

        Raises:
            ServerError: The server refused, or was away for too long.
        """
        return self._patiently(self.all)

    def take(
        self, batch: dict[str, Any], on_line: Callable[[bytes], None], keep: Callable[[], None]
    ) -> None:
        """Hand on the lines that a batch left, and have the server forget the files.

        Args:
            batch: One that has ended.
            on_line: Called for each line of output and errors; twice where a transfer broke off.
            keep: Called before the server forgets them; returns when no power cut can undo what
                was handed on.

        Raises:
            ServerError: The server refused, or was away for too long.
        """
        for name in ("output_file_id", "error_file_id"):
            file_id = batch.get(name)
            if isinstance(file_id, str):
                self._patiently(partial(self._hand_on, file_id, on_line))
        keep()
        for name in ("output_file_id", "error_file_id"):
            self.forget_file(batch.get(name))

    def _hand_on(self, file_id: str, on_line: Callable[[bytes], None]) -> None:
        try:
            for line in self._client.lines(f"/v1/files/{file_id}/content"):
                on_line(line)
        except ServerError as error:
            if error.status != 404:  # an earlier run took it
                raise

    def forget_file(self, file_id: object) -> None:
        """Have the server forget a file that nobody needs; what fails is left to its age."""
        if isinstance(file_id, str):
            try:
                self._client.request("DELETE", f"/v1/files/{file_id}")
            except ServerError:
                return

    def _patiently(self, ask: Callable[[], ResultT]) -> ResultT:
        """Ask again while a server is full, away or restarted."""
        began = self._clock()
        while True:
            try:
                result = ask()
            except ServerError as error:
                self._was_reached = self._was_reached or _is_from_server(error)
                is_over = self._clock() - began >= PATIENCE_S
                if error.status not in _MAY_PASS or not self._was_reached or is_over:
                    raise
                self._tell(error)
            else:
                self._was_reached = True
                return result
            self._pause()

    def _tell(self, error: ServerError) -> None:
        """Say why it waits, once a minute."""
        now = self._clock()
        if self._told_at is None or now - self._told_at >= _TELL_INTERVAL_S:
            self._told_at = now
            self._say(f"{error.message} It is asked again for {PATIENCE_S / 60:.0f} minutes.")


def _is_from_server(error: ServerError) -> bool:
    """Whether there is a server: it refused, or a connection to it broke."""
    cause = error.__cause__
    is_broken = isinstance(cause, httpx.RequestError) and not isinstance(cause, _NOT_REACHED)
    return error.status != 0 or is_broken
