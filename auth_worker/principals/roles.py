"""Roles and scopes: the one table of who may do what.

docs/auth.md shows the same table; a test compares them. A key's scopes narrow its role and never
widen it.
"""

from functools import lru_cache
from typing import Final, get_args

from protocol.wire.messages import PrincipalRole, Scope

SCOPES: Final[tuple[str, ...]] = get_args(Scope)

_READING: Final = frozenset({"models.list", "tools.list", "docs.read"})
_USING: Final = _READING | {
    "chat.completions",
    "completions",
    "embeddings.create",
    "responses",
    "tokenize",
    "tools.parse",
    "tools.execute",
}

ROLE_SCOPES: Final[dict[PrincipalRole, frozenset[str]]] = {
    "admin": frozenset(SCOPES),
    "service": _USING | {"admin.metrics"},
    "user": _USING,
    "readonly": _READING | {"admin.metrics"},
}
"""What each role may do."""

OF_OLD_GATEWAYS: Final[frozenset[PrincipalRole]] = frozenset({"user", "admin"})
"""Roles that a gateway may use which doesn't say what its route needs: it knows no others."""


@lru_cache(maxsize=4096)
def scopes_of(role: PrincipalRole, narrowed_to: frozenset[str] | None) -> frozenset[str]:
    """What a key of a role may do, if it was narrowed to these scopes; None narrows nothing."""
    allowed = ROLE_SCOPES[role]
    return allowed if narrowed_to is None else allowed & narrowed_to
