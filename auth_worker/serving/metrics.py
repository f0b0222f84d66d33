"""What an auth worker counts; gateways show it on /metrics."""

from collections.abc import Callable

from auth_worker.tokens.checker import TokenChecker
from protocol.runtime.metrics import MetricRegistry
from protocol.wire.messages import Denied, Granted, Message


class AuthMetrics:
    """The worker's metrics.

    Args:
        num_leases: Open leases.
        num_unanswered: Operations that wait for their commit.
        num_groups: Groups committed so far.
        checker: Verifies bearer tokens; None when none are accepted.

    Attributes:
        registry: Holds them for the worker's reports.
    """

    def __init__(
        self,
        *,
        num_leases: Callable[[], int],
        num_unanswered: Callable[[], int],
        num_groups: Callable[[], int],
        checker: TokenChecker | None = None,
    ) -> None:
        self.registry = MetricRegistry()
        gauge, counter = self.registry.gauge, self.registry.counter
        gauge("penstock_auth_open_leases", "Reservations that are not settled.", num_leases)
        gauge(
            "penstock_auth_waiting_commits",
            "Operations that wait for their commit.",
            num_unanswered,
        )
        gauge(
            "penstock_auth_active", "1 while this worker decides, 0 while it stands by.", lambda: 1
        )
        gauge("penstock_auth_commit_groups", "Groups committed since the start.", num_groups)
        if checker is not None:
            gauge(
                "penstock_auth_token_keys",
                "Keys that bearer tokens can be verified with.",
                lambda: checker.num_keys,
            )
            gauge(
                "penstock_auth_token_keys_unavailable",
                "1 while the token issuer's keys can't be fetched.",
                lambda: int(checker.is_failing),
            )
        self._is_audit_broken = False
        gauge(
            "penstock_auth_audit_log_broken",
            "1 when the audit log was found changed since it was written, at the start.",
            lambda: int(self._is_audit_broken),
        )
        self._decisions = counter(
            "penstock_auth_decisions", "Answers to requests: granted, or why not.", ("outcome",)
        )
        self._expired = counter(
            "penstock_auth_expired_leases", "Leases that nobody renewed or settled."
        )

    def on_decision(self, answer: Message) -> None:
        """A request was granted or denied."""
        if isinstance(answer, Granted):
            self._decisions.add(1, "granted")
        elif isinstance(answer, Denied):
            self._decisions.add(1, str(answer.code))

    def on_broken_audit_log(self) -> None:
        """The audit log doesn't hold."""
        self._is_audit_broken = True

    def on_expired(self, num_leases: int) -> None:
        """Leases were charged their last report."""
        self._expired.add(num_leases)
