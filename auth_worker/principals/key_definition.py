"""What an administrator says about a key, checked, and turned into what is stored of it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from msgspec import structs

from auth_worker.errors import InvalidCommandError
from auth_worker.principals.checks import (
    LAST_SECOND,
    MAX_NAME_CHARS,
    Check,
    check_globs,
    check_length,
    check_limit,
    check_metadata,
    check_tags,
    require,
    text_of,
)
from auth_worker.principals.key_rules import NO_RULES, networks_of, rules_of
from auth_worker.principals.keys import DEFAULT_TENANT, DIGEST_BYTES, StoredKey
from auth_worker.principals.roles import SCOPES
from protocol.wire.messages import KeySettings

MAX_TENANT_CHARS = 200
MAX_OWNER_CHARS = 200
MAX_DESCRIPTION_CHARS = 1000
MAX_HINT_CHARS = 24
MAX_OVERLAP_S = 30 * 24 * 3600

FIELDS: Final = frozenset(KeySettings.__struct_fields__)
PERSONAL_FIELDS: Final = frozenset({"name", "description", "owner", "tags", "metadata", "tenant"})
"""What may tell of people: the audit log, which can't forget, says only that they changed."""

_KEPT_AS_THEY_ARE: Final = (
    "name",
    "role",
    "tenant",
    "expires_at",
    "requests_per_minute",
    "tokens_per_minute",
    "user_id",
    "team_id",
    "may_name_end_users",
)
"""Settings that a `StoredKey` has under the same name."""

_RULE_OF: Final = {
    "scopes": "scopes",
    "allowed_models": "allowed_models",
    "allowed_endpoints": "allowed_endpoints",
    "allowed_ip_addresses": "allowed_networks",
    "blocked_ip_addresses": "blocked_networks",
    "max_parallel_requests": "max_parallel_requests",
    "max_tokens_per_request": "max_tokens_per_request",
    "enable_streaming": "enable_streaming",
    "enable_function_calling": "enable_function_calling",
    "priority": "priority",
}
"""The rule that each of the other settings makes."""


_DEFAULTS: Final = KeySettings(name="")


def check_digest(digest: bytes, hint: str) -> None:
    """Refuse what can't be a key's digest and its hint.

    Raises:
        InvalidCommandError: `param` names the field.
    """
    require(len(digest) == DIGEST_BYTES, "key_digest", "must be 32 bytes")
    # A longer hint might be the key itself.
    require(len(hint) <= MAX_HINT_CHARS, "hint", f"has over {MAX_HINT_CHARS} characters")


def checked(settings: KeySettings, *, wall_s: float, fields: Iterable[str] = FIELDS) -> KeySettings:
    """The settings in the form in which they are kept, if the named ones are within bounds.

    Raises:
        InvalidCommandError: A value is out of bounds; `param` names the field.
    """
    named = frozenset(fields)
    unknown = named - FIELDS
    if unknown:
        name = min(unknown)
        raise InvalidCommandError(f"A key has no field '{name[:100]}'.", param=name[:100])
    settings = structs.replace(
        settings, name=settings.name.strip(), tenant=settings.tenant or DEFAULT_TENANT
    )
    for name in sorted(named):
        check = _CHECKS.get(name)
        if check is not None:
            check(name, getattr(settings, name))
    if "expires_at" in named:
        expires_at = settings.expires_at
        require(
            expires_at is None or wall_s < expires_at <= LAST_SECOND,
            "expires_at",
            "must be a time in the future and before year 10000, in Unix seconds",
        )
    return settings


def stored(
    settings: KeySettings, *, key_id: str, digest: bytes, hint: str, created_at: int
) -> StoredKey:
    """A new key of checked settings."""
    return StoredKey(
        key_id=key_id,
        digest=digest,
        hint=hint,
        created_at=created_at,
        rules=rules_of(settings),
        **{name: getattr(settings, name) for name in _KEPT_AS_THEY_ARE},
    )


def changed(key: StoredKey, settings: KeySettings, fields: Iterable[str]) -> StoredKey:
    """The key with the named, checked settings in place of its own."""
    named = frozenset(fields)
    parsed = rules_of(
        structs.replace(_DEFAULTS, **{name: getattr(settings, name) for name in named})
    )
    changes = {_RULE_OF[name]: getattr(parsed, _RULE_OF[name]) for name in named & _RULE_OF.keys()}
    rules = replace(key.rules, **changes) if changes else key.rules
    return replace(
        key,
        rules=NO_RULES if rules == NO_RULES else rules,
        **{name: getattr(settings, name) for name in _KEPT_AS_THEY_ARE if name in named},
    )


def audited(settings: KeySettings, fields: Iterable[str]) -> dict[str, Any]:
    """What the audit log says of the named settings: values, but of personal ones just `…`."""
    return {
        name: "…" if name in PERSONAL_FIELDS else getattr(settings, name) for name in sorted(fields)
    }


def _check_networks(name: str, value: tuple[str, ...] | None) -> None:
    check_length(name, value)
    for text in value or ():
        try:
            networks_of((text,))
        except ValueError:
            raise InvalidCommandError(
                f"'{name}' takes addresses and networks such as 192.0.2.7, 10.0.0.0/8 or"
                f" 2001:db8::/32, not '{text[:64]}'.",
                param=name,
            ) from None


def _check_scopes(name: str, value: tuple[str, ...] | None) -> None:
    check_length(name, value)
    for scope in value or ():
        require(
            scope in SCOPES, name, f"knows no scope '{scope[:64]}'; there are {', '.join(SCOPES)}"
        )


_CHECKS: Final[dict[str, Check]] = {
    "name": text_of(MAX_NAME_CHARS, is_needed=True),
    "description": text_of(MAX_DESCRIPTION_CHARS),
    "owner": text_of(MAX_OWNER_CHARS),
    "tenant": text_of(MAX_TENANT_CHARS),
    "tags": check_tags,
    "metadata": check_metadata,
    "scopes": _check_scopes,
    "requests_per_minute": check_limit,
    "tokens_per_minute": check_limit,
    "max_parallel_requests": check_limit,
    "max_tokens_per_request": check_limit,
    "allowed_models": check_globs,
    "allowed_endpoints": check_globs,
    "allowed_ip_addresses": _check_networks,
    "blocked_ip_addresses": _check_networks,
}
