"""An authority with limits, and what tests of limits ask it."""

from typing import Any

from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.records.operations import BookUsage, Snapshot
from protocol.wire.messages import Denied, Granted, LimitRefusal, Settle
from tests.fakes.auth_parts import AuthorityBench, authority_bench, authorize, stored_key
from tests.fakes.limit_parts import HOUSE_PRICE

USER = StoredUser("user_1", "Ada", "user")
TEAM = StoredTeam("team_1", "search", members={"user_1": "member"})
KEY = stored_key(user_id="user_1", team_id="team_1", may_name_end_users=True)
OTHER = stored_key("key_other", "psk-other-0123456789abcdefghijklmnopqrstuvwxyz")
OTHER_SECRET = "psk-other-0123456789abcdefghijklmnopqrstuvwxyz"


def bench_of(
    *limits: Limit, prices: Any = (HOUSE_PRICE,), counters: Any = (), **fields: Any
) -> AuthorityBench:
    snapshot = Snapshot(
        keys=(KEY, OTHER),
        leases=(),
        recent=(),
        users=(USER,),
        teams=(TEAM,),
        limits=limits,
        prices=prices,
        counters=counters,
    )
    return authority_bench(snapshot=snapshot, **fields)


def ask(bench: AuthorityBench, secret: str | None = None, **fields: Any) -> Granted | Denied:
    command = authorize(**fields) if secret is None else authorize(secret, **fields)
    answer = bench.authority.authorize(command)
    assert isinstance(answer, Granted | Denied), answer
    return answer


def granted(bench: AuthorityBench, **fields: Any) -> Granted:
    answer = ask(bench, **fields)
    assert isinstance(answer, Granted), answer
    return answer


def denied(bench: AuthorityBench, **fields: Any) -> Denied:
    answer = ask(bench, **fields)
    assert isinstance(answer, Denied), answer
    return answer


def refusing(answer: Denied) -> LimitRefusal:
    assert answer.limit is not None
    return answer.limit


def settle(bench: AuthorityBench, lease: Granted, **fields: Any) -> BookUsage:
    used = {"prompt_tokens": 10, "completion_tokens": 90, **fields}
    command = Settle(lease_id=lease.lease_id, request_id="req-1", **used)
    booking = bench.authority.settle(command)
    assert isinstance(booking, BookUsage)
    bench.authority.booked(booking, None)
    return booking
