"""Keys: strong ones pass, weak ones don't, and none ever shows itself."""

import secrets
from typing import Any

import pytest

from auth_worker.administration.old_commands import make_key as as_now
from auth_worker.errors import InvalidCommandError
from auth_worker.principals.given_keys import weakness_of
from auth_worker.principals.key_definition import check_digest, checked, stored
from auth_worker.principals.keys import (
    KeyDirectory,
    StoredKey,
    digest_of,
    hint_of,
    make_key,
)
from protocol.wire.messages import CreateKey
from tests.fakes.auth_parts import START_S, USER_SECRET, stored_key


def create_key(**fields: Any) -> CreateKey:
    defaults: dict[str, Any] = {
        "request_id": "req-1",
        "key_digest": digest_of("psk-new"),
        "hint": "psk-ne…xyz1",
        "name": "laptop",
    }
    return CreateKey(**{**defaults, **fields})


def made(command: CreateKey) -> StoredKey:
    now = as_now(command)
    check_digest(now.key_digest, now.hint)
    return stored(
        checked(now.settings, wall_s=START_S),
        key_id="key_1",
        digest=now.key_digest,
        hint=now.hint,
        created_at=int(START_S),
    )


def test_a_made_key_has_the_prefix_and_43_characters() -> None:
    key = make_key(secrets.token_urlsafe)
    assert key.startswith("psk-")
    assert len(key) == 47


def test_made_keys_pass_the_rules_for_given_ones() -> None:
    assert [weakness_of(make_key(secrets.token_urlsafe)) for _ in range(500)] == [None] * 500


@pytest.mark.parametrize(
    "weak",
    [
        "",
        "sk-1234",
        "psk-short-but-random-9XQ",
        "changeme-changeme-changeme-changeme",
        "my-super-secret-admin-password-1234",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abababababababababababababababab",
        "0123456789012345678901234567890123456789",
        "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
        "correcthorsebatterystaple",
        "kJ8#kJ8#kJ8#kJ8#kJ8#kJ8#kJ8#",
        "has a space Zk3vPq8Rw1Xy6Tn4Lm9Bd2",
        "ключ-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7",
        "x9" * 300,
    ],
)
def test_a_weak_key_is_refused_without_being_repeated(weak: str) -> None:
    weakness = weakness_of(weak)
    assert weakness is not None
    assert not weak or weak not in weakness


@pytest.mark.parametrize(
    "strong",
    ["Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c"],
)
def test_a_strong_given_key_is_taken(strong: str) -> None:
    assert weakness_of(strong) is None


def test_a_hint_shows_ten_characters_of_a_key() -> None:
    assert hint_of("psk-abcdefghijklmnopqrstuvwxyz") == "psk-ab…wxyz"


def test_a_stored_key_does_not_show_its_digest() -> None:
    key = stored_key()
    assert repr(key.digest) not in repr(key)
    assert "digest" not in repr(key)


def test_a_replaced_key_opens_nothing_any_more() -> None:
    directory = KeyDirectory([stored_key()])
    directory.put(stored_key(secret="psk-other"))
    assert directory.find(digest_of(USER_SECRET)) is None
    assert directory.find(digest_of("psk-other")) is not None


def test_lasting_admins_are_neither_users_nor_revoked_nor_going_to_expire() -> None:
    directory = KeyDirectory(
        [
            stored_key("user", "a"),
            stored_key("ended", "b", role="admin", revoked_at=1),
            stored_key("old", "c", role="admin", expires_at=int(START_S)),
            stored_key("temporary", "d", role="admin", expires_at=int(START_S) + 1),
            stored_key("good", "e", role="admin"),
        ]
    )
    assert directory.num_lasting_admins(5) == 1


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("key_digest", b"short"),
        ("name", "  "),
        ("name", "x" * 201),
        ("name", "two\nlines"),
        ("tenant", "t" * 201),
        ("hint", "psk-abcdefghijklmnopqrstuvwxyz0123456789"),
        ("requests_per_minute", -1),
        ("tokens_per_minute", -5),
        ("tokens_per_minute", 2**63),
        ("expires_at", int(START_S)),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_named(param: str, value: object) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        made(create_key(**{param: value}))
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("named", "tenant_id"), [("", "key_1"), ("default", "key_1"), ("team", "team")]
)
def test_a_key_without_a_named_tenant_is_one_by_itself(named: str, tenant_id: str) -> None:
    command = create_key(name=" laptop ", tenant=named)
    key = made(command)
    assert (key.name, key.tenant_id, key.role) == ("laptop", tenant_id, "user")
