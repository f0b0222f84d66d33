"""Administrators by an old secret, and those that only read: neither makes what outgrows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from auth_worker.principals.keys import digest_of
from protocol.errors import ErrorCode
from protocol.wire.messages import Actor, FindKeys, KeySettings, RotateKey, UserSettings
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import ADMIN_SECRET, START_S
from tests.unit.auth_worker.test_key_life import (
    answers,
    change,
    keys,
    make,
    opens,
    refusal,
    rotate,
    update,
)
from tests.unit.auth_worker.test_resources import found, refused
from tests.unit.auth_worker.test_resources import make as make_resource
from tests.unit.auth_worker.test_resources import update as update_resource

NEW_SECRET = "psk-the-new-one"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def admin(bench: AuthHandlerBench, secret: str, **settings: object) -> Actor:
    """A new key of role admin, and who acts by it."""
    fields = {"name": "n", "role": "admin", **settings}
    (*_, made) = answers(bench, make(KeySettings(**fields), secret))  # type: ignore[arg-type]
    return Actor(key_id=keys(made)[0].key_id, key_digest=digest_of(secret))


def test_whoever_has_the_old_secret_of_an_admin_stays_no_longer_than_that(
    bench: AuthHandlerBench,
) -> None:
    answers(bench, rotate(NEW_SECRET, overlap_s=100, key_id="key_admin"))
    old = Actor(key_id="key_admin", key_digest=digest_of(ADMIN_SECRET))
    new = Actor(key_id="key_admin", key_digest=digest_of(NEW_SECRET))
    ends = int(START_S) + 100
    takes_over = RotateKey(
        request_id="r", actor=old, key_id="key_admin", key_digest=digest_of("psk-t"), hint="h"
    )
    for command in (
        takes_over,
        update("key_admin", old, name="mine"),
        update("key_user", old, role="admin"),
        make(KeySettings(name="n", role="admin"), "psk-1", old),
        make(KeySettings(name="n", role="admin", expires_at=ends + 1), "psk-2", old),
    ):
        assert refusal(bench, command).code is ErrorCode.PERMISSION_DENIED, command
    within = KeySettings(name="n", role="admin", expires_at=ends)
    assert bench.ask(make(within, "psk-3", old)) is None
    assert bench.ask(make(KeySettings(name="n"), "psk-4", old)) is None
    assert bench.ask(change("key_user", "suspend", old)) is None
    assert bench.ask(make(KeySettings(name="n", role="admin"), "psk-5", new)) is None
    bench.write()
    bench.clock.advance(100)
    assert not opens(bench, ADMIN_SECRET)
    for actor, is_refused in ((old, True), (new, False)):
        answer = bench.ask(FindKeys(request_id="r", actor=actor, key_id="key_user"))
        assert (answer is not None) == is_refused
    bench.write()


def test_an_admin_s_key_that_only_reads_about_everybody_is_one_of_an_administrator(
    bench: AuthHandlerBench,
) -> None:
    """Whoever may not, or not for so long, or not from there, gets it by no other key."""
    reading = KeySettings(name="n", role="admin", scopes=("usage.read",))
    narrowed = admin(bench, "psk-narrow", scopes=("admin.keys",))
    expiring = admin(bench, "psk-expiring", expires_at=int(START_S) + 1000)
    bounded = admin(bench, "psk-bounded", allowed_ip_addresses=("192.0.2.0/24",))
    for number, actor in enumerate((narrowed, expiring, bounded)):
        assert refusal(bench, make(reading, f"psk-{number}", actor)).code is (
            ErrorCode.PERMISSION_DENIED
        )
        own = KeySettings(name="n", scopes=("usage.read", "budget.read"))  # about itself
        assert bench.ask(make(own, f"psk-own-{number}", actor)) is None
    reads = admin(bench, "psk-reads", scopes=("admin.keys", "usage.read"))
    assert bench.ask(make(reading, "psk-by-reader", reads)) is None
    bench.write()


def test_who_would_read_about_everybody_by_a_role_is_given_it_by_nobody_who_may_not(
    bench: AuthHandlerBench,
) -> None:
    user = found(make_resource(bench, "user", UserSettings(name="Ada"))).resource_id
    reading = KeySettings(name="n", role="admin", scopes=("usage.read",), user_id=user)
    answers(bench, make(reading, "psk-waits"))
    expiring = admin(bench, "psk-expiring", expires_at=int(START_S) + 1000)
    answer = update_resource(bench, "user", user, expiring, role="admin")
    assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
    assert bench.authority.keys.users[user].role == "user"
