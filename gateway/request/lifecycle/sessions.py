"""The requests under way: reported to the auth worker, ended when their time or all is over."""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.errors import GatewayError
from protocol.wire.messages import LeaseReport

_logger = logging.getLogger("penstock.gateway.sessions")


class OpenSession(Protocol):
    """A request that may have a lease."""

    request_id: str

    def lease_report(self) -> LeaseReport | None:
        """What its lease has used so far; None before it has one."""
        ...

    def fail(self, error: GatewayError) -> None:
        """End it with an error."""
        ...

    def give_up(self) -> None:
        """It has ended: wait no longer for what workers may still report of it."""
        ...


class _Time(NamedTuple):
    """When a request's time is over, on the loop's clock, and who is told."""

    due: float
    on_late: Callable[[], None]


_NO_TIME = _Time(math.inf, lambda: None)


class SessionTable:
    """Every request between its authorisation and its settlement.

    Their times need one timer, for whichever ends next: to set one for each request and to take it
    back costs more than all else that is done here.
    """

    def __init__(self) -> None:
        self._sessions: dict[OpenSession, _Time] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: OpenSession) -> None:
        """A request begins."""
        self._sessions[session] = _NO_TIME

    def add_for(self, session: OpenSession, seconds: float, on_late: Callable[[], None]) -> None:
        """A request begins; `on_late` is called unless it is settled within so many seconds."""
        due = asyncio.get_running_loop().time() + seconds
        self._sessions[session] = _Time(due, on_late)
        if due < self._timer_due:
            self._set_timer(due)

    def discard(self, session: OpenSession) -> None:
        """A request is settled; idempotent."""
        self._sessions.pop(session, None)

    def lease_reports(self) -> tuple[LeaseReport, ...]:
        """What open leases have used so far; one request's trouble is its own."""
        reports: list[LeaseReport] = []
        for session in list(self._sessions):
            try:
                report = session.lease_report()
            except Exception:
                _logger.exception("request %s could not report its lease", session.request_id)
                continue
            if report is not None:
                reports.append(report)
        return tuple(reports)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if due == math.inf else loop.call_at(due, self._look)
        self._timer_due = due

    def _look(self) -> None:
        """Tell those whose time is over; mostly the one that was next has long been settled."""
        now = asyncio.get_running_loop().time()
        late = [(one, time) for one, time in self._sessions.items() if time.due <= now]
        for session, time in late:
            if self._sessions.get(session) is not time:
                continue  # the end of another one settled it
            self._sessions[session] = _NO_TIME
            try:
                time.on_late()
            except Exception:
                _logger.exception("request %s could not be ended", session.request_id)
        self._set_timer(min((time.due for time in self._sessions.values()), default=math.inf))

    def fail_all(self, error: GatewayError) -> None:
        """End every request with an error."""
        self._with_all(lambda session: session.fail(error))

    def give_up_all(self) -> None:
        """Settle every request that has ended by what is known of it now."""
        self._with_all(lambda session: session.give_up())

    def _with_all(self, end: Callable[[OpenSession], None]) -> None:
        for session in list(self._sessions):
            try:
                end(session)
            except Exception:
                _logger.exception("request %s could not be ended", session.request_id)
