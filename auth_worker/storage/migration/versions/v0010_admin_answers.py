"""Administrators' requests that are done once."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """A table of requests that were begun, and of their sealed answers."""
    op.create_table(
        "admin_answers",
        sa.Column("name", sa.LargeBinary(32), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
    )
    op.create_index("admin_answers_by_owner", "admin_answers", ["owner", "at_ms"])
    op.create_index("admin_answers_by_time", "admin_answers", ["at_ms"])


def downgrade() -> None:
    """A repeated request is a new one."""
    op.drop_table("admin_answers")
