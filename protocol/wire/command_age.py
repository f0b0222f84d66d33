"""How long what a worker reads may have waited while the process did not read, such as stopped."""

from collections.abc import Callable


class CommandAge:
    """Watches the reading of one socket; a few additions a round of reading.

    Whatever arrived since the socket was last found empty may have come right after that. A gap
    beyond `max_gap_s` is a stall: the socket may be found empty again although older messages are
    still in the kernel's buffers, so a Ping goes out, and all that comes before its Pong counts as
    sent when the stall began.

    Args:
        max_gap_s: Between two rounds of reading in normal operation.
        ping: Sends the gateway a Ping with a nonce.
        clock: Monotonic seconds.
    """

    def __init__(
        self, max_gap_s: float, ping: Callable[[int], None], clock: Callable[[], float]
    ) -> None:
        self._max_gap_s = max_gap_s
        self._ping = ping
        self._clock = clock
        self._drained_at = clock()
        self._stalled_since: float | None = None
        self._nonce = 0

    def begin(self) -> None:
        """A connection begins: nothing has been sent on it yet."""
        self._drained_at = self._clock()
        self._stalled_since = None

    def note_drained(self) -> None:
        """The socket was read until nothing was left."""
        now, before = self._clock(), self._drained_at
        self._drained_at = now
        if now - before > self._max_gap_s:
            if self._stalled_since is None:
                self._stalled_since = before
            self._nonce += 1
            self._ping(self._nonce)

    def note_pong(self, nonce: int) -> None:
        """The gateway answered; what comes from here on was sent after the latest stall."""
        if nonce == self._nonce:
            self._stalled_since = None

    def age_s(self) -> float:
        """Upper bound of how long the message being handled may have waited; 0.0 without a stall.

        At most `max_gap_s` more than it waited in truth.
        """
        since = self._drained_at if self._stalled_since is None else self._stalled_since
        age_s = self._clock() - since
        return age_s if age_s > self._max_gap_s else 0.0
