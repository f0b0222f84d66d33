"""Settlements on the wire: a bounded window of them, in order, sent again when they were lost."""

from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from protocol.wire.messages import Settle

WINDOW = 512
"""Settlements on the wire that are not acknowledged: about 100 KB, far below what a link holds."""
RESEND_AFTER_S = 5.0


class _Sent(Struct):
    """One on the wire; `sent_at` of the latest sending, in monotonic seconds."""

    settle: Settle
    sent_at: float


class Window:
    """Sends what it is given in order, at most `WINDOW` ahead of the acknowledgements.

    Args:
        send: Sends a Settle to the auth worker; False when none is there.
        clock: Monotonic seconds.
    """

    def __init__(self, send: Callable[[Settle], bool], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._unsent: OrderedDict[str, Settle] = OrderedDict()
        self._in_flight: OrderedDict[str, _Sent] = OrderedDict()
        self._acknowledged_at = clock()
        self._latest_acknowledged = 0.0

    def add(self, settle: Settle) -> None:
        """Send one, in its turn; it replaces another one of its lease."""
        self._in_flight.pop(settle.lease_id, None)
        self._unsent[settle.lease_id] = settle
        self._fill()

    def acknowledge(self, lease_id: str) -> None:
        """It need not be sent any more, and the next one may go; idempotent."""
        self._unsent.pop(lease_id, None)
        sent = self._in_flight.pop(lease_id, None)
        if sent is not None:
            self._acknowledged_at = self._clock()
            self._latest_acknowledged = max(self._latest_acknowledged, sent.sent_at)
        self._fill()

    def leases_of(self, request_id: str) -> list[str]:
        """The leases of a request whose settlements are on the wire."""
        return [
            lease_id
            for lease_id, sent in self._in_flight.items()
            if sent.settle.request_id == request_id
        ]

    def resend_all(self) -> None:
        """An auth worker came, or came back: the window goes again."""
        self._resend(list(self._in_flight.values()))

    def resend_lost(self) -> None:
        """Send again what is lost: sent long ago, and others have been acknowledged since.

        "Others" are any sent later; or none at all, when nothing was acknowledged for as long. So
        a slow auth worker is not given everything twice, and one gap doesn't stay open forever.
        """
        now = self._clock()
        is_stuck = now - self._acknowledged_at >= RESEND_AFTER_S
        self._resend(
            [
                sent
                for sent in self._in_flight.values()
                if now - sent.sent_at >= RESEND_AFTER_S
                and (is_stuck or sent.sent_at < self._latest_acknowledged)
            ]
        )

    def _resend(self, sent_before: list[_Sent]) -> None:
        for sent in sent_before:
            if not self._send(sent.settle):
                return
            sent.sent_at = self._clock()
        self._fill()

    def _fill(self) -> None:
        while self._unsent and len(self._in_flight) < WINDOW:
            lease_id, settle = next(iter(self._unsent.items()))
            if not self._send(settle):
                return
            del self._unsent[lease_id]
            self._in_flight[lease_id] = _Sent(settle, self._clock())
