"""Name service questions with a deadline, which the C library's own resolver has none of."""

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from auth_worker.errors import OutboundError

MAX_LOOKUPS: Final = 8
"""At a time; one that a name server never answers holds its place until resolv.conf(5) ends it."""

Found = Sequence[tuple[Any, ...]]
Resolve = Callable[..., Found]
"""As `socket.getaddrinfo`."""


class Lookup:
    """Asks the name service in threads of its own, few at a time; safe to use from several threads.

    `getaddrinfo` can't be interrupted, and with the usual resolv.conf takes up to half a minute for
    a name whose servers are silent. Whoever asks leaves at the deadline; the thread ends by itself.

    Args:
        resolve: Asks.
        max_lookups: At a time.
    """

    def __init__(
        self, resolve: Resolve = socket.getaddrinfo, max_lookups: int = MAX_LOOKUPS
    ) -> None:
        self._resolve = resolve
        self._places = threading.BoundedSemaphore(max_lookups)

    def __call__(self, host: str, port: int, timeout_s: float) -> Found:
        """What `getaddrinfo` says of a host and port.

        Raises:
            OutboundError: It says nothing in time, or all places are taken by such names.
            OSError: The name isn't known.
            UnicodeError: It is none.
        """
        if not self._places.acquire(timeout=max(0.0, timeout_s)):
            raise OutboundError("the name service leaves too many questions unanswered")
        answers: queue.SimpleQueue[Found | Exception] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put(self._resolve(host, port, type=socket.SOCK_STREAM))
            except Exception as error:  # noqa: BLE001 - it is raised where somebody asked
                answers.put(error)
            finally:
                self._places.release()

        try:
            threading.Thread(target=run, name="name-lookup", daemon=True).start()
        except BaseException:  # such as no thread being left
            self._places.release()
            raise
        try:
            found = answers.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise OutboundError(
                f"the name service did not say within {timeout_s:.1f} s where {host} is"
            ) from None
        if isinstance(found, Exception):
            raise found
        return found
