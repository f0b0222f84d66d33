"""What `penstock keys list` says about a key."""

from typing import Any

import pytest

from penstock.cli import _key_state

NOW_S = 1000.0


@pytest.mark.parametrize(
    ("key", "state"),
    [
        ({}, "active"),
        ({"revoked_at": None, "expires_at": 1001}, "active"),
        ({"expires_at": 1000}, "expired"),
        ({"revoked_at": 5, "expires_at": 6}, "revoked"),
    ],
)
def test_a_key_is_active_until_it_expires_or_is_revoked(key: dict[str, Any], state: str) -> None:
    assert _key_state(key, NOW_S) == state
