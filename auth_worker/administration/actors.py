"""Who administers, looked at again, and what the audit log says of them."""

from collections.abc import Iterable

from auth_worker.errors import ActorNotAllowedError, InvalidCommandError
from auth_worker.principals.key_index import Alike
from auth_worker.principals.keys import ANONYMOUS_KEY_ID, KeyDirectory, StoredKey
from auth_worker.principals.roles import ROLE_SCOPES, administers, powers_of
from auth_worker.principals.tokens import TOKEN_ID_PREFIX
from auth_worker.records.operations import AuditAction, AuditEntry
from protocol.wire.messages import Actor, PrincipalRole, Scope

MAX_PAGE = 1000


def acting_key(keys: KeyDirectory, actor: Actor, scope: Scope, wall_s: float) -> StoredKey:
    """The key of whoever asks; the gateway asked before, but it may have been revoked in between.

    Whoever comes with the old secret of a rotated key has a key that expires with that.

    Raises:
        ActorNotAllowedError: It may not do this, or not any more.
    """
    is_anonymous = actor.key_id == ANONYMOUS_KEY_ID
    key = None if is_anonymous else keys.acting(actor.key_id, actor.key_digest)
    if key is None or not key.is_active(wall_s) or scope not in key.scopes:
        raise ActorNotAllowedError(f"This needs an active key with the scope {scope}.")
    return key


def check_reach(actor: StoredKey, key: StoredKey) -> None:
    """A narrowed admin makes and changes no key that may do more to this server than itself.

    Otherwise it could give itself, by another key, what was kept from it: a scope, or a route or
    an address at which to use one.

    Raises:
        ActorNotAllowedError: The key may do more.
    """
    beyond = sorted(powers_of(key.scopes - actor.scopes, is_of_admin=key.is_of_admin))
    if beyond:
        whose = "one" if beyond[0].startswith("admin.") else "an administrator's key"
        raise ActorNotAllowedError(
            f"A key without the scope {beyond[0]} can't make or change {whose} that has it."
        )
    if not administers(key.scopes, is_of_admin=key.is_of_admin):
        return
    for bound, covers in (
        ("allowed_endpoints", actor.rules.covers_endpoints),
        ("allowed_ip_addresses or blocked_ip_addresses", actor.rules.covers_addresses),
    ):
        if not covers(key.rules):
            raise ActorNotAllowedError(
                f"A key that is bounded by {bound} can't make or change an administrator's key"
                " with wider bounds."
            )


def check_lasts(actor: StoredKey, key: StoredKey) -> None:
    """A key that expires makes, changes and wakes no administrator's key that outlasts it.

    Otherwise whoever was let in for a while could stay. It may end any. Tokens, of actors and among
    keys, are their issuer's to end, whatever time each of them has.

    Raises:
        ActorNotAllowedError: The key would last longer.
    """
    if actor.expires_at is None or not administers(key.scopes, is_of_admin=key.is_of_admin):
        return
    if any(one.key_id.startswith(TOKEN_ID_PREFIX) for one in (actor, key)):
        return
    if key.expires_at is None or key.expires_at > actor.expires_at:
        raise ActorNotAllowedError(
            "A key that expires can't make, change or wake an administrator's key that lasts"
            " longer."
        )


def check_stays(actor: StoredKey) -> None:
    """A key that expires makes, changes and wakes nothing that tells of the audit log after it.

    Webhooks are the server's, and go on whatever becomes of the key that made them. Tokens are
    their issuer's to end, as `check_lasts` says.

    Raises:
        ActorNotAllowedError: The key expires, or may not read the log itself.
    """
    if "admin.audit" not in actor.scopes:
        raise ActorNotAllowedError(
            "A webhook is sent entries of the audit log: this needs the scope admin.audit, too."
        )
    if actor.expires_at is not None and not actor.key_id.startswith(TOKEN_ID_PREFIX):
        raise ActorNotAllowedError(
            "A key that expires can't make, change or wake a webhook, which would go on after it."
        )


def check_role(actor: StoredKey, role: PrincipalRole, does: str) -> None:
    """A narrowed admin makes nobody one, and touches nobody, who may do more than itself.

    Args:
        actor: Who asks.
        role: That a user has, or is to have.
        does: What is asked, as the end of a sentence that begins with the key.

    Raises:
        ActorNotAllowedError: The role may do more to this server.
    """
    beyond = sorted(powers_of(ROLE_SCOPES[role] - actor.scopes, is_of_admin=role == "admin"))
    if beyond:
        raise ActorNotAllowedError(f"A key without the scope {beyond[0]} can't {does}.")


def check_holder_reach(
    actor: StoredKey, keys: Iterable[Alike], role: PrincipalRole | None = None, *, opens: bool
) -> None:
    """Nobody ends, wakes or takes away what may do more to this server than himself.

    The keys of a user or a team end and open with it, and with a membership. So whoever may
    administer these alone could lock administrators out, or wake one, without having their scopes.

    Args:
        actor: Who asks.
        keys: That the change ends or opens, as far as they administer.
        role: Of the user that it is about, whose tokens may do as much; None for a team.
        opens: Whether the change may open them; see `check_lasts`.

    Raises:
        ActorNotAllowedError: One of them may do more, or would do it for longer.
    """
    if role is not None:
        check_role(actor, role, "change a user whose role has it")
    looks_at_each = opens and actor.expires_at is not None
    for alike in keys:
        if not looks_at_each and _reaches(actor, alike.widest):
            continue
        for key in alike.keys:
            check_reach(actor, key)
            if opens:
                check_lasts(actor, key)


def _reaches(actor: StoredKey, key: StoredKey) -> bool:
    try:
        check_reach(actor, key)
    except ActorNotAllowedError:
        return False
    return True


def entry_of(
    request_id: str, actor: Actor, action: AuditAction, subject: str, wall_s: float
) -> AuditEntry:
    """An entry of something that an administrator does."""
    return AuditEntry(
        at_ms=int(wall_s * 1000),
        actor_key_id=actor.key_id,
        action=action,
        subject=subject,
        address=actor.address[:64],
        request_id=request_id[:64],
    )


def check_page(limit: int) -> None:
    """Refuse a page of no size, or of too many.

    Raises:
        InvalidCommandError: The limit is out of range.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidCommandError(f"'limit' must be 1 to {MAX_PAGE}.", param="limit")
