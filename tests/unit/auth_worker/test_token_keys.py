"""An issuer's keys: fetched off the deciding thread, kept while it is away, renewed when they
rotate."""

import hashlib
from typing import Any

import pytest

from auth_worker.errors import AuthError, OutboundError, TokenRefusedError
from auth_worker.outbound.exchange import Exchanger
from auth_worker.outbound.targets import TargetGuard
from auth_worker.principals.key_rules import networks_of
from auth_worker.principals.keys import KeyDirectory, StoredKey
from auth_worker.serving.token_desk import TokenDesk
from auth_worker.tokens.checker import MAX_PARKED, MAX_WAITING, Outcome, TokenChecker
from auth_worker.tokens.key_set import KeySet, read_key_set
from auth_worker.tokens.key_source import MIN_INTERVAL_S, KeySource, fetch_keys
from auth_worker.tokens.token_rules import TokenRules
from auth_worker.tokens.verifier import TokenVerifier
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize
from tests.fakes.auth_parts import START_S, FakeClock
from tests.fakes.token_issuer import AUDIENCE, TokenIssuer, public_jwk, rsa_key, token_issuer

EXCHANGER = Exchanger(TargetGuard(networks_of(("127.0.0.0/8",))))


class Bench:
    """A checker whose threads are the test's own."""

    def __init__(self, issuer: TokenIssuer, **fields: Any) -> None:
        self.clock = FakeClock()
        self.rules = TokenRules(issuer=issuer.issuer, audience=(AUDIENCE,), **fields)
        self.source = KeySource(
            lambda: fetch_keys(self.rules, EXCHANGER),
            self.rules.refresh_s,
            self.clock.monotonic_s,
        )
        self.checker = TokenChecker(TokenVerifier(self.rules), self.source, self.clock)
        self.issuer = issuer

    def check(self, **fields: Any) -> list[Outcome]:
        """What is known of a token after one look, without a fetch."""
        outcomes: list[Outcome] = []
        assert self.checker.submit(self.issuer.token(now_s=START_S, **fields), outcomes.append)
        self.checker.check_all()
        return outcomes


def test_a_token_waits_for_the_first_fetch_and_is_good_then() -> None:
    with token_issuer() as issuer:
        bench = Bench(issuer)
        outcomes = bench.check()
        assert outcomes == []
        bench.source.fetch_now()
        bench.checker.check_all()
        assert isinstance(outcomes[0], StoredKey)
        assert isinstance(bench.check()[0], StoredKey)
        assert issuer.num_fetches() == 1


def test_a_rotated_key_is_fetched_when_its_first_token_comes() -> None:
    with token_issuer() as issuer:
        bench = Bench(issuer)
        bench.source.fetch_now()
        issuer.keys = [public_jwk(rsa_key("two"), "two")]
        bench.clock.advance(MIN_INTERVAL_S)
        outcomes = bench.check(kid="two", key=rsa_key("two"))
        assert outcomes == []
        bench.source.fetch_now()
        bench.checker.check_all()
        assert isinstance(outcomes[0], StoredKey)
        # What is no longer published opens nothing any more.
        bench.clock.advance(MIN_INTERVAL_S - 1)
        assert isinstance(bench.check()[0], TokenRefusedError)


def test_made_up_key_ids_do_not_make_us_ask_again_and_again() -> None:
    with token_issuer() as issuer:
        bench = Bench(issuer)
        bench.source.fetch_now()
        for number in range(20):
            (outcome,) = bench.check(kid=f"made-up-{number}")
            assert isinstance(outcome, TokenRefusedError)
            assert outcome.code is ErrorCode.INVALID_API_KEY
        assert issuer.num_fetches() == 1


def test_while_the_issuer_is_away_known_keys_go_on_and_new_ones_are_a_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with token_issuer() as issuer:
        bench = Bench(issuer)
        bench.source.fetch_now()
        issuer.is_gone = True
        bench.source.fetch_now()
        bench.source.fetch_now()
        assert isinstance(bench.check()[0], StoredKey)
        (outcome,) = bench.check(kid="two", key=rsa_key("two"))
        assert isinstance(outcome, AuthError)
        assert outcome.code is ErrorCode.WORKER_UNAVAILABLE
        said = [record.message for record in caplog.records if "can't be fetched" in record.message]
        assert len(said) == 1
        assert "answers 503" in said[0]
        assert "1 keys" in said[0]
        issuer.is_gone = False
        bench.source.fetch_now()
        assert not bench.source.is_failing


@pytest.mark.parametrize("left", [0, 1])
def test_tokens_of_a_withdrawn_key_are_known_no_more(left: int) -> None:
    with token_issuer() as issuer:
        bench = Bench(issuer)
        bench.source.fetch_now()
        keys = KeyDirectory()
        desk = TokenDesk(
            bench.checker,
            keys,
            clock=bench.clock,
            call_soon=lambda function, *args: function(*args),
            send=lambda gateway_id, message: None,
            decide=lambda gateway_id, command, error: decided.append(error),
            emit=lambda operation: None,
        )
        decided: list[AuthError | None] = []
        text = issuer.token(now_s=START_S)
        digest = hashlib.sha256(text.encode()).digest()
        command = Authorize("r", key_digest=digest, endpoint="/", is_token=True, token=text)
        assert desk.take("gateway", command)
        bench.checker.check_all()
        assert decided == [None]
        principal = keys.find(digest)
        assert principal is not None
        bench.source.fetch_now()
        assert keys.find(digest) is principal
        # Another key of the same name is another key.
        issuer.keys = [public_jwk(rsa_key("two"), "one")] * left
        bench.source.fetch_now()
        assert keys.find(digest) is None
        assert keys.principal(principal.key_id) is None
        assert desk.take("gateway", command)
        bench.checker.check_all()
        if not left:
            bench.source.fetch_now()
            bench.checker.check_all()
        assert isinstance(decided[1], AuthError)
        assert decided[1].code is (
            ErrorCode.INVALID_API_KEY if left else ErrorCode.WORKER_UNAVAILABLE
        )


def test_a_fetch_that_fails_for_a_reason_of_its_own_leaves_the_thread_alive() -> None:
    source = KeySource(lambda: 1 // 0, 300.0, FakeClock().monotonic_s)  # type: ignore[arg-type,return-value]
    source.fetch_now()
    assert source.is_failing


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no list"),
        (b'{"keys":{}}', "no list"),
    ],
)
def test_what_is_no_key_set_is_said_so(body: bytes, why: str) -> None:
    with pytest.raises(OutboundError, match=why):
        read_key_set(body)


@pytest.mark.parametrize(
    "entry",
    [
        1,
        None,
        {},
        {"kty": "RSA"},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "RSA", "n": 1, "e": 2},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": ["RSA"]},
        {"kty": "RSA", "kid": 5, "n": "AQAB", "e": "AQAB"},
    ],
)
def test_a_damaged_key_is_left_aside_and_the_others_are_used(entry: Any) -> None:
    import json

    good = public_jwk(rsa_key("one"), "one")
    keys = read_key_set(json.dumps({"keys": [entry, good]}).encode())
    assert ([key.key_id for key in keys.keys], keys.num_unfit) == (["one"], 1)


def test_a_discovery_document_of_another_issuer_is_refused() -> None:
    with token_issuer() as issuer:
        issuer.issuer = "https://somebody.example"
        rules = TokenRules(issuer=issuer.target.url, audience=(AUDIENCE,))
        with pytest.raises(OutboundError, match="another issuer"):
            fetch_keys(rules, EXCHANGER)


def test_a_key_set_inside_the_network_is_not_fetched_unless_it_is_listed() -> None:
    with token_issuer() as issuer:
        rules = TokenRules(issuer=issuer.issuer, audience=(AUDIENCE,))
        with pytest.raises(OutboundError, match="PENSTOCK_INTERNAL_TARGETS"):
            fetch_keys(rules, Exchanger(TargetGuard()))
        assert issuer.target.received == []
        by_url = TokenRules(
            issuer="https://issuer.example",
            audience=(AUDIENCE,),
            jwks_url=f"{issuer.target.url}/keys",
        )
        assert len(fetch_keys(by_url, EXCHANGER).keys) == 1


def test_tokens_that_wait_are_bounded() -> None:
    with token_issuer() as issuer:
        bench = Bench(issuer)
        token = issuer.token(now_s=START_S)
        outcomes: list[Outcome] = []
        for _ in range(MAX_WAITING):
            assert bench.checker.submit(token, outcomes.append)
        assert not bench.checker.submit(token, outcomes.append)
        bench.checker.check_all()
        assert len(outcomes) == MAX_WAITING - MAX_PARKED
        bench.source.fetch_now()
        bench.checker.check_all()
        assert len(outcomes) == MAX_WAITING
        assert sum(isinstance(one, StoredKey) for one in outcomes) == MAX_PARKED


def test_threads_fetch_verify_and_end() -> None:
    import queue

    with token_issuer() as issuer:
        bench = Bench(issuer)
        outcomes: queue.Queue[Outcome] = queue.Queue()
        bench.checker.start()
        assert bench.checker.submit(issuer.token(now_s=START_S), outcomes.put)
        assert isinstance(outcomes.get(timeout=60), StoredKey)
        bench.checker.stop()
        bench.checker._thread.join(60)
        assert not bench.checker._thread.is_alive()
        assert bench.source.keys != KeySet()
