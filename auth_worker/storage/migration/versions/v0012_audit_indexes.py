"""What the audit log says of money stands in the indexes that find it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_INDEXES = {"audit_by_actor": "actor_key_id", "audit_by_subject": "subject"}


def upgrade() -> None:
    """Entries without an actor or a subject, as one of each commit is, leave those indexes."""
    for name, column in _INDEXES.items():
        op.drop_index(name, "audit_log")
        is_said = sa.text(f"{column} <> ''")
        op.create_index(
            name, "audit_log", [column, "seq"], sqlite_where=is_said, postgresql_where=is_said
        )


def downgrade() -> None:
    """They stand there again."""
    for name, column in _INDEXES.items():
        op.drop_index(name, "audit_log")
        op.create_index(name, "audit_log", [column, "seq"])
