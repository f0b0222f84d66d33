"""Roles and scopes: the one table of who may do what.

docs/auth.md shows the same table; a test compares them. A key's scopes narrow its role and never
widen it.
"""

from functools import lru_cache
from typing import Final, get_args

from protocol.wire.messages import PrincipalRole, Scope

SCOPES: Final[tuple[str, ...]] = get_args(Scope)

_READING: Final = frozenset({"models.list", "tools.list", "docs.read", "usage.read", "budget.read"})
_USING: Final = _READING | {
    "chat.completions",
    "completions",
    "embeddings.create",
    "decisions",
    "rerank",
    "files",
    "batches",
    "responses",
    "tokenize",
    "tools.parse",
    "tools.execute",
    "hooks",
}

ROLE_SCOPES: Final[dict[PrincipalRole, frozenset[str]]] = {
    "admin": frozenset(SCOPES),
    "service": _USING | {"admin.metrics", "admin.status"},
    "user": _USING,
    "readonly": _READING | {"admin.metrics", "admin.status"},
}
"""What each role may do."""

OF_ADMINS_ALONE: Final = ROLE_SCOPES["admin"].difference(
    *(scopes for role, scopes in ROLE_SCOPES.items() if role != "admin")
)
"""What no other role may do."""

OF_EVERYBODY: Final[frozenset[str]] = frozenset({"usage.read", "budget.read"})
"""By which an administrator reads about everybody, and all others about themselves."""

OF_OLD_GATEWAYS: Final[frozenset[PrincipalRole]] = frozenset({"user", "admin"})
"""Roles that a gateway may use which doesn't say what its route needs: it knows no others."""


def powers_of(scopes: frozenset[str], *, is_of_admin: bool) -> frozenset[str]:
    """What of some scopes reaches beyond whose they are.

    Args:
        scopes: Of a key, a token or a role.
        is_of_admin: Whether it is an administrator's.
    """
    reading = OF_EVERYBODY if is_of_admin else frozenset()
    return frozenset(scope for scope in scopes if scope.startswith("admin.") or scope in reading)


def administers(scopes: frozenset[str], *, is_of_admin: bool) -> bool:
    """Whether some scopes hold what nobody but administrators may do; arguments as before."""
    powers = powers_of(scopes, is_of_admin=is_of_admin)
    return not powers.isdisjoint(OF_ADMINS_ALONE | OF_EVERYBODY)


@lru_cache(maxsize=4096)
def scopes_of(
    role: PrincipalRole,
    narrowed_to: frozenset[str] | None,
    user_role: PrincipalRole | None = None,
) -> frozenset[str]:
    """What a key of a role may do, if it was narrowed to these scopes; None narrows nothing.

    Args:
        role: Of the key.
        narrowed_to: Its own scopes.
        user_role: Of its user, who can do no more by a key than by this role.
    """
    allowed = ROLE_SCOPES[role]
    if user_role is not None:
        allowed = allowed & ROLE_SCOPES[user_role]
    return allowed if narrowed_to is None else allowed & narrowed_to
