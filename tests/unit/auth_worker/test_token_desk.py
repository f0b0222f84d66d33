"""What stands before the authority when a request brings a bearer token."""

import hashlib
from typing import Any

from auth_worker.decisions.authority import Rules
from auth_worker.errors import AuthError, TokenRefusedError
from auth_worker.principals.keys import KeyDirectory, StoredKey
from auth_worker.principals.limit_rules import Limit, Window
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.tokens import TokenTable
from auth_worker.records.operations import AppendAudit, Operation
from auth_worker.serving.token_desk import TokenDesk
from auth_worker.tokens.checker import MAX_WAITING, TokenChecker
from auth_worker.tokens.token_rules import TokenRules
from auth_worker.tokens.verifier import TokenVerifier
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Denied, Granted, Message, TokenWanted
from tests.fakes.auth_parts import (
    START_S,
    FakeClock,
    authority_bench,
    authorize,
    stored_key,
)
from tests.fakes.http_target import HttpTarget
from tests.fakes.token_issuer import AUDIENCE, TokenIssuer

SECRET = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
ISSUER = TokenIssuer(HttpTarget(url="https://issuer.example"))


class Desk:
    """A desk whose threads are the test's own."""

    def __init__(self) -> None:
        rules = TokenRules(issuer=ISSUER.issuer, audience=(AUDIENCE,), secret=SECRET)
        self.clock = FakeClock()
        self.keys = KeyDirectory()
        self.checker = TokenChecker(TokenVerifier(rules), None, self.clock)
        self.sent: list[Message] = []
        self.decided: list[tuple[Authorize, AuthError | None]] = []
        self.emitted: list[Operation] = []
        self.desk = TokenDesk(
            self.checker,
            self.keys,
            clock=self.clock,
            call_soon=lambda function, *args: function(*args),
            send=lambda gateway_id, message: self.sent.append(message),
            decide=lambda gateway_id, command, error: self.decided.append((command, error)),
            emit=self.emitted.append,
        )

    def take(self, token: str, *, sends_it: bool = True, **fields: Any) -> bool:
        command = Authorize(
            request_id="r",
            endpoint="/v1/models",
            key_digest=hashlib.sha256(token.encode()).digest(),
            is_token=True,
            token=token if sends_it else "",
            **fields,
        )
        return self.desk.take("gateway", command)


def token(**claims: Any) -> str:
    return ISSUER.token(now_s=START_S, key=SECRET, algorithm="HS256", **claims)


def test_an_unknown_token_is_asked_for_verified_once_and_then_known() -> None:
    desk = Desk()
    good = token()
    assert desk.take(good, sends_it=False)
    assert desk.sent == [TokenWanted(request_id="r")]
    assert desk.take(good)
    assert desk.take(good)
    assert desk.decided == []
    desk.checker.check_all()
    assert [error for _, error in desk.decided] == [None, None]
    assert not desk.take(good, sends_it=False)
    (entry,) = [one.entry for one in desk.emitted if isinstance(one, AppendAudit)]
    assert (entry.action, entry.actor_key_id) == ("token_accepted", entry.subject)
    assert all(command.token == "" for command, _ in desk.decided)


def test_a_bad_token_is_decided_with_the_reason_and_never_known() -> None:
    desk = Desk()
    assert desk.take(token(aud="other"))
    desk.checker.check_all()
    ((_, error),) = desk.decided
    assert isinstance(error, TokenRefusedError)
    assert desk.take(token(aud="other"), sends_it=False)
    assert desk.emitted == []


def test_another_token_than_its_digest_says_is_not_even_verified() -> None:
    desk = Desk()
    command = Authorize(
        request_id="r", endpoint="/", key_digest=b"d" * 32, is_token=True, token=token()
    )
    assert not desk.desk.take("gateway", command)
    desk.checker.check_all()
    assert desk.decided == []


def test_who_left_while_the_token_was_verified_is_granted_nothing() -> None:
    desk = Desk()
    assert desk.take(token(), wait_s=2.0)
    assert desk.take(token(), wait_s=9.0)
    desk.clock.advance(3.0)
    desk.checker.check_all()
    assert [command.wait_s for command, _ in desk.decided] == [9.0]


def test_over_the_bound_of_waiting_tokens_the_answer_is_to_try_again() -> None:
    desk = Desk()
    for number in range(MAX_WAITING + 1):
        assert desk.take(token(sub=f"user-{number}"))
    ((_, error),) = desk.decided
    assert error is not None
    assert error.code is ErrorCode.WORKER_UNAVAILABLE


def test_keys_and_callers_of_old_gateways_pass_by() -> None:
    desk = Desk()
    for fields in ({"key_digest": None, "is_token": True}, {"key_digest": b"k" * 32}):
        command = Authorize(request_id="r", endpoint="/", **fields)
        assert not desk.desk.take("gateway", command)
    assert desk.sent == []


def test_a_principal_has_limits_scopes_and_an_end_as_a_key_has() -> None:
    bench = authority_bench()
    text = token()
    verifier = TokenVerifier(TokenRules(issuer=ISSUER.issuer, audience=(AUDIENCE,), secret=SECRET))
    from auth_worker.tokens.key_set import KeySet

    principal = verifier.verify(text, KeySet(), START_S)
    bench.authority.keys.put_token(principal)
    ask = Authorize(
        request_id="r",
        key_digest=principal.digest,
        endpoint="/v1/chat/completions",
        scope="chat.completions",
        completion_tokens=5,
    )
    granted = bench.authority.authorize(ask)
    assert isinstance(granted, Granted)
    assert (granted.key_id, granted.tenant) == (principal.key_id, principal.key_id)
    bench.clock.advance(600)
    denied = bench.authority.authorize(ask)
    assert isinstance(denied, Denied)
    assert (denied.code, denied.key_id) == (ErrorCode.INVALID_API_KEY, principal.key_id)


def test_who_shows_tokens_no_more_is_forgotten_with_his_last_token() -> None:
    """An issuer may have millions of people; those who are gone must cost nothing."""
    house = Limit("lim_1", "house", "house", "", "requests", 10**6, Window("minute"))
    bench = authority_bench(limits=[house])
    authority = bench.authority
    authority.keys._tokens = TokenTable(max_tokens=4)
    authority.keys.tell_gone_principals(authority.forget)
    for number in range(50):
        principal = stored_key(f"token_{number}", f"token {number}", expires_at=2**40)
        assert authority.keys.put_token(principal) is None
        for asked in ({}, {"prompt_tokens": 0, "completion_tokens": 0}):
            command = authorize(f"token {number}", **asked)
            assert isinstance(authority.authorize(command), Granted)
    assert len(authority._used_s) <= 4
    assert len(authority._meters._callers) <= 4
    assert authority.num_leases == 50, "what they run goes on"


def test_a_token_of_a_user_and_a_team_ends_with_them() -> None:
    user, team = (
        StoredUser("user_1", "Ada"),
        StoredTeam("team_1", "ops", members={"user_1": "member"}),
    )
    keys = KeyDirectory((), (user,), (team,))
    principal = stored_key("token_1", "text", user_id="user_1", team_id="team_1", expires_at=2**40)
    assert keys.put_token(principal) is None

    def is_active() -> bool:
        found, by_id = keys.find(principal.digest), keys.principal("token_1")
        assert found is not None
        assert by_id is not None
        assert found.is_active(START_S) == by_id.is_active(START_S)
        return found.is_active(START_S)

    assert is_active()
    user.suspended_at = 1
    assert not is_active()
    user.suspended_at = None
    team.members = {}
    assert not is_active()
    del keys.teams["team_1"]
    assert not is_active()
    for unknown in ({"user_id": "user_9"}, {"team_id": "team_1"}):
        error = keys.put_token(stored_key("token_2", "other", **unknown))
        assert isinstance(error, TokenRefusedError)
    assert keys.principal("token_2") is None


def test_no_token_passes_where_anonymous_callers_do_not_and_administration_is_asked_for() -> None:
    bench = authority_bench(rules=Rules(allow_anonymous=True))
    ask = Authorize(
        request_id="r",
        key_digest=b"d" * 32,
        endpoint="/v1/admin/keys",
        required_role="admin",
        is_token=True,
    )
    assert isinstance(bench.authority.authorize(ask), Denied)


def test_a_token_that_is_shown_again_and_again_stays_however_many_come() -> None:
    """Where it went, what runs by it would get no further tokens."""
    table = TokenTable(max_tokens=2)
    used = stored_key("used", "used", expires_at=2**40)
    table.put(used)
    for number in range(5):
        assert table.find(used.digest) is used
        table.put(stored_key(f"once {number}", f"once {number}", expires_at=2**40))
    assert table.get("used") is used
    assert len(table) == 2


def test_the_table_of_tokens_is_bounded_and_the_oldest_go_first() -> None:
    table = TokenTable(max_tokens=3)

    def principal(number: int, of: str) -> StoredKey:
        return stored_key(of, f"token-{number}", expires_at=int(START_S) + number)

    one, two, three, four = (principal(n, of) for n, of in enumerate("aabc"))
    for each in (two, one, three, four):
        table.put(each)
    assert len(table) == 3
    assert table.find(two.digest) is None
    assert table.find(one.digest) is one
    # The token that was good for longest is forgotten, and the other one of its principal is left.
    assert table.get("a") is one
    assert (table.get("b"), table.get("c")) == (three, four)


def test_tokens_that_have_expired_go_before_the_oldest() -> None:
    table = TokenTable(max_tokens=3)
    good, *ended = (
        stored_key(f"token_{n}", f"token-{n}", expires_at=end) for n, end in enumerate((900, 10, 5))
    )
    for each in (good, *ended):
        table.put(each, 1.0)
    for number in range(3, 5):
        table.put(stored_key(f"token_{number}", f"token-{number}", expires_at=800), 20.0)
        assert table.get("token_0") is good
        assert len(table) == 3
    assert [table.find(each.digest) for each in ended] == [None, None]
    table.put(stored_key("token_5", "token-5", expires_at=800), 20.0)
    assert table.get("token_0") is None  # none has expired: the oldest goes


def test_a_token_is_in_no_repr() -> None:
    text = token()
    assert text not in repr(Authorize(request_id="r", key_digest=b"", endpoint="/", token=text))
