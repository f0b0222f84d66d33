"""Verifies tokens one after another in a thread of its own, so that no decision waits for it."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from auth_worker.clock import Clock
from auth_worker.errors import AuthError, TokenRefusedError, UnknownSigningKeyError
from auth_worker.principals.keys import StoredKey
from auth_worker.tokens.key_set import KeySet
from auth_worker.tokens.key_source import KeySource
from auth_worker.tokens.verifier import TokenVerifier
from protocol.errors import ErrorCode

MAX_WAITING = 256
"""Tokens that wait for the thread; verifying one takes about a tenth of a millisecond."""
MAX_PARKED = 64
"""Tokens that wait for the issuer's newer keys."""

Outcome = StoredKey | AuthError
OnChecked = Callable[[Outcome], None]
"""Called in the checking thread."""

_logger = logging.getLogger("penstock.auth")


@dataclass(frozen=True, slots=True)
class _Check:
    token: str
    on_checked: OnChecked
    is_second: bool = False


class TokenChecker:
    """The verifier behind a bounded queue; a token of an unknown key waits for one newer key set.

    Args:
        verifier: Verifies.
        source: The issuer's keys; None when tokens are signed with a shared secret.
        clock: Of the wall, for the times in tokens.

    Attributes:
        on_withdrawn: Called in the fetching thread when a key is not published any more.
    """

    def __init__(self, verifier: TokenVerifier, source: KeySource | None, clock: Clock) -> None:
        self._verifier = verifier
        self._source = source
        self._clock = clock
        self._checks: queue.Queue[_Check | None] = queue.Queue(MAX_WAITING)
        self._parked: list[_Check] = []
        self._lock = threading.Lock()
        self._names = self.key_names
        self.on_withdrawn: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)
        if source is not None:
            source.on_fetched = self._on_fetched

    @property
    def num_keys(self) -> int:
        """Keys that tokens can be verified with."""
        return 1 if self._source is None else len(self._source.keys.keys)

    @property
    def key_names(self) -> frozenset[str]:
        """Of the keys that tokens can be verified with; what a secret signs names none."""
        return frozenset({""}) if self._source is None else self._source.keys.names

    @property
    def is_failing(self) -> bool:
        """Whether the issuer's keys could not be fetched the last time."""
        return self._source is not None and self._source.is_failing

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        if self._source is not None:
            self._source.start()

    def stop(self) -> None:
        """End the threads; what waits is not answered any more."""
        if self._source is not None:
            self._source.stop()
        with contextlib.suppress(queue.Full):  # a daemon thread ends with the process
            self._checks.put_nowait(None)

    def submit(self, token: str, on_checked: OnChecked) -> bool:
        """Verify a token soon; False when too many wait."""
        return self._put(_Check(token, on_checked))

    def check_all(self) -> None:
        """Verify what waits, in the calling thread; for tests."""
        while not self._checks.empty():
            check = self._checks.get()
            if check is not None:
                self._check(check)

    def _run(self) -> None:
        while (check := self._checks.get()) is not None:
            self._check(check)

    def _check(self, check: _Check) -> None:
        keys = KeySet() if self._source is None else self._source.keys
        outcome: Outcome
        try:
            outcome = self._verifier.verify(check.token, keys, self._clock.wall_s())
        except UnknownSigningKeyError as error:
            if not check.is_second and self._park(check, keys):
                return
            outcome = self._unknown(error)
        except TokenRefusedError as error:
            outcome = error
        except Exception:  # the thread must live on, and what can't be judged opens nothing
            _logger.exception("a token could not be judged")
            outcome = TokenRefusedError("This token is not accepted: it can't be read.")
        check.on_checked(outcome)

    def _park(self, check: _Check, seen: KeySet) -> bool:
        with self._lock:
            if len(self._parked) >= MAX_PARKED:
                return False
            self._parked.append(check)
        # Parked first: the fetch might end in between, and would not see it.
        if self._source is not None and self._source.ask(seen):
            if self._source.keys is not seen:
                self._on_fetched()
            return True
        with self._lock:
            if check not in self._parked:
                return True  # a fetch ended just now
            self._parked.remove(check)
        return False

    def _on_fetched(self) -> None:
        before, self._names = self._names, self.key_names
        if not before <= self._names:
            self.on_withdrawn()
        with self._lock:
            parked, self._parked = self._parked, []
        for check in parked:
            again = _Check(check.token, check.on_checked, is_second=True)
            if not self._put(again):
                check.on_checked(busy())

    def _unknown(self, error: UnknownSigningKeyError) -> AuthError:
        if not self.is_failing:
            return error
        return AuthError(
            "The token issuer's keys can't be fetched at the moment; please try again.",
            code=ErrorCode.WORKER_UNAVAILABLE,
        )

    def _put(self, check: _Check) -> bool:
        try:
            self._checks.put_nowait(check)
        except queue.Full:
            return False
        return True


def busy() -> AuthError:
    """Too many tokens wait to be verified."""
    return AuthError(
        "Too many new tokens are waiting to be verified; please try again.",
        code=ErrorCode.WORKER_UNAVAILABLE,
    )
