"""What gateways of before 1.3 say about keys, in today's words, and answers in theirs."""

from protocol.wire.messages import (
    Actor,
    ChangeKeyStatus,
    CreateKey,
    KeyDetails,
    KeyRecord,
    KeySettings,
    MakeKey,
    RevokeKey,
)


def make_key(command: CreateKey) -> MakeKey:
    """The same with everything that they know nothing of at its default."""
    return MakeKey(
        request_id=command.request_id,
        actor=Actor(key_id=command.actor_key_id),
        key_digest=command.key_digest,
        hint=command.hint,
        settings=KeySettings(
            name=command.name,
            role=command.role,
            tenant=command.tenant,
            requests_per_minute=command.requests_per_minute,
            tokens_per_minute=command.tokens_per_minute,
            expires_at=command.expires_at,
        ),
    )


def revoke_key(command: RevokeKey) -> ChangeKeyStatus:
    """The same as a change of status."""
    return ChangeKeyStatus(
        request_id=command.request_id,
        actor=Actor(key_id=command.actor_key_id),
        key_id=command.key_id,
        action="revoke",
    )


def key_record(key: KeyDetails) -> KeyRecord:
    """A key as they read it: every role that they don't know is a user's."""
    settings = key.settings
    return KeyRecord(
        key_id=key.key_id,
        name=settings.name,
        role="admin" if settings.role == "admin" else "user",
        hint=key.hint,
        created_at=key.created_at,
        tenant=key.tenant_id,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        expires_at=settings.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
        total_requests=key.total_requests,
        total_prompt_tokens=key.total_prompt_tokens,
        total_completion_tokens=key.total_completion_tokens,
    )
