"""The requests that are under way: reported to the auth worker, ended when the house closes."""

from collections.abc import Iterable
from typing import Protocol

from gateway.errors import GatewayError
from protocol.wire.messages import LeaseReport


class OpenSession(Protocol):
    """A request that has a lease."""

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
        """What open leases have used so far."""
        reports = (session.lease_report() for session in self._sessions)
        return tuple(report for report in reports if report is not None)

    def fail_all(self, error: GatewayError) -> None:
        """End every request with an error."""
        sessions: Iterable[OpenSession] = list(self._sessions)
        for session in sessions:
            session.fail(error)
