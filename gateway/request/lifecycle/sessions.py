"""The requests that are under way: reported to the auth worker, ended when the gateway closes."""

import logging
from collections.abc import Iterable
from typing import Protocol

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


class SessionTable:
    """Every request between its authorisation and its settlement."""

    def __init__(self) -> None:
        self._sessions: set[OpenSession] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: OpenSession) -> None:
        """A request begins."""
        self._sessions.add(session)

    def discard(self, session: OpenSession) -> None:
        """A request is settled; idempotent."""
        self._sessions.discard(session)

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

    def fail_all(self, error: GatewayError) -> None:
        """End every request with an error."""
        sessions: Iterable[OpenSession] = list(self._sessions)
        for session in sessions:
            try:
                session.fail(error)
            except Exception:
                _logger.exception("request %s could not be ended", session.request_id)
