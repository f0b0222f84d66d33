"""Fetches an issuer's keys in a thread of its own: at the start, from time to time, when asked."""

import json
import logging
import threading
import time
from collections.abc import Callable

from auth_worker.errors import OutboundError
from auth_worker.outbound.exchange import Exchanger
from auth_worker.tokens.key_set import KeySet, read_key_set
from auth_worker.tokens.token_rules import TokenRules

DISCOVERY_PATH = "/.well-known/openid-configuration"
FETCH_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 512 * 1024
MIN_INTERVAL_S = 10.0
"""Tokens with made-up key ids must not make us ask the issuer more often than this."""

_logger = logging.getLogger("penstock.auth")


def fetch_keys(rules: TokenRules, exchanger: Exchanger) -> KeySet:
    """The issuer's keys as they are published now (OpenID Connect Discovery 1.0 §4).

    Raises:
        OutboundError: They can't be fetched.
    """
    url = rules.jwks_url
    if not url:
        found = _get(exchanger, rules.issuer.rstrip("/") + DISCOVERY_PATH)
        try:
            document = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise OutboundError("the discovery document is no JSON") from error
        if not isinstance(document, dict) or document.get("issuer") != rules.issuer:
            raise OutboundError("the discovery document names another issuer")
        named = document.get("jwks_uri")
        if not isinstance(named, str):
            raise OutboundError("the discovery document has no `jwks_uri`")
        url = named
    return read_key_set(_get(exchanger, url))


def _get(exchanger: Exchanger, url: str) -> bytes:
    answer = exchanger.exchange(
        "GET",
        url,
        timeout_s=FETCH_TIMEOUT_S,
        max_bytes=MAX_BODY_BYTES,
        headers={"Accept": "application/json"},
    )
    if answer.status != 200:
        raise OutboundError(f"{url} answers {answer.status}")
    return answer.body


class KeySource:
    """The newest keys that could be fetched; while the issuer is away, those of before.

    An issuer that publishes no key has withdrawn all of them.

    Args:
        fetch: Gets them; may take seconds.
        refresh_s: Between two fetches that nobody asked for.
        clock: Monotonic seconds.

    Attributes:
        keys: The newest; replaced as a whole.
        is_failing: Whether the last fetch failed.
        on_fetched: Called in the fetching thread after each fetch, good or bad.
    """

    def __init__(
        self,
        fetch: Callable[[], KeySet],
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._refresh_s = refresh_s
        self._clock = clock
        self._wake = threading.Condition()
        self._is_asked = True
        self._is_fetching = False
        self._closing = False
        self._fetched_s: float | None = None
        self.keys = KeySet()
        self.is_failing = False
        self.on_fetched: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="token-keys", daemon=True)

    def start(self) -> None:
        """Start the thread, which fetches at once."""
        self._thread.start()

    def stop(self) -> None:
        """Fetch no more; one under way is left to itself."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def ask(self, seen: KeySet) -> bool:
        """Whether a newer set than the one that was seen is on its way, or there already.

        A fetch is begun unless the last one was moments ago.
        """
        with self._wake:
            if self._is_fetching or self._is_asked or self.keys is not seen:
                return True
            fetched_s = self._fetched_s
            if fetched_s is not None and self._clock() - fetched_s < MIN_INTERVAL_S:
                return False
            self._is_asked = True
            self._wake.notify()
            return True

    def _run(self) -> None:
        while self._wait():
            self.fetch_now()

    def fetch_now(self) -> None:
        """One fetch, in the calling thread."""
        with self._wake:
            self._is_fetching, self._is_asked = True, False
        keys, trouble = None, ""
        try:
            keys = self._fetch()
        except OutboundError as error:
            trouble = error.message
        except Exception as error:  # the thread must live on
            _logger.exception("the token issuer's keys can't be read")
            trouble = type(error).__name__
        if keys is not None and not keys.keys:
            trouble = (
                f"the key set holds no key that tokens may be signed with ({keys.num_unfit} others)"
            )
        with self._wake:
            self._is_fetching = False
            self._fetched_s = self._clock()
            if keys is not None:
                self.keys = keys
            if not trouble:
                if self.is_failing:
                    _logger.info("the token issuer's keys could be fetched again")
                self.is_failing = False
            else:
                if not self.is_failing:
                    _logger.error(
                        "the token issuer's keys can't be fetched: %s; tokens of the %d keys that "
                        "are known go on, others are refused",
                        trouble,
                        len(self.keys.keys),
                    )
                self.is_failing = True
        self.on_fetched()

    def _wait(self) -> bool:
        """Wait until a fetch is due; False at the end."""
        with self._wake:
            while not self._closing:
                if self._is_asked or self._fetched_s is None:
                    return True
                pause_s = MIN_INTERVAL_S if self.is_failing else self._refresh_s
                left_s = self._fetched_s + pause_s - self._clock()
                if left_s <= 0:
                    return True
                self._wake.wait(left_s)
            return False
