"""Users, teams, limits and prices."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Keys belong to users and teams; limits and prices are rows."""
    for name in ("user_id", "team_id"):
        op.add_column("keys", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column(
        "keys",
        sa.Column("may_name_end_users", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index("keys_by_user", "keys", ["user_id"])
    op.create_index("keys_by_team", "keys", ["team_id"])
    _add_users_and_teams()
    _add_limits()
    _add_prices()


def downgrade() -> None:
    """Keys stand alone again; one that a user, a team or a limit bounds is revoked.

    By itself a key may do what its role may, also where its user may do less, or is in its team no
    more.
    """
    op.execute(
        "UPDATE keys SET revoked_at = coalesce(revoked_at, created_at) WHERE"
        " (user_id <> '' AND NOT EXISTS (SELECT 1 FROM users AS u WHERE u.user_id = keys.user_id"
        " AND u.suspended_at IS NULL AND (u.role IN ('admin', keys.role)"
        " OR (u.role = 'service' AND keys.role IN ('user', 'readonly')))))"
        " OR (team_id <> '' AND NOT EXISTS (SELECT 1 FROM teams AS t WHERE t.team_id = keys.team_id"
        " AND t.suspended_at IS NULL AND t.allowed_models IS NULL))"
        " OR (user_id <> '' AND team_id <> '' AND NOT EXISTS (SELECT 1 FROM team_members AS m"
        " WHERE m.user_id = keys.user_id AND m.team_id = keys.team_id))"
        " OR EXISTS (SELECT 1 FROM limits WHERE is_hard AND (holder = 'house'"
        " OR holder_id = keys.key_id OR (holder_id <> '' AND holder_id IN (user_id, team_id))))"
    )
    for table in ("prices", "limits", "team_members", "teams", "users"):
        op.drop_table(table)
    for index in ("keys_by_team", "keys_by_user"):
        op.drop_index(index, "keys")
    for column in ("may_name_end_users", "team_id", "user_id"):
        op.drop_column("keys", column)


def _add_users_and_teams() -> None:
    op.create_table(
        "users",
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("user_id", sa.String(), nullable=False, unique=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("tags", sa.String()),
        sa.Column("metadata", sa.String()),
        sa.Column("suspended_at", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "teams",
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("team_id", sa.String(), nullable=False, unique=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tenant_is_shared", sa.Boolean(), nullable=False),
        sa.Column("allowed_models", sa.String()),
        sa.Column("tags", sa.String()),
        sa.Column("metadata", sa.String()),
        sa.Column("suspended_at", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "team_members",
        sa.Column("team_id", sa.String(), primary_key=True),
        sa.Column("user_id", sa.String(), primary_key=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("team_members_by_user", "team_members", ["user_id"])


def _add_limits() -> None:
    op.create_table(
        "limits",
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("limit_id", sa.String(), nullable=False, unique=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("holder_id", sa.String(), nullable=False),
        sa.Column("measure", sa.String(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("time_zone", sa.String(), nullable=False),
        sa.Column("starts_at", sa.BigInteger()),
        sa.Column("length_s", sa.BigInteger()),
        sa.Column("models", sa.String()),
        sa.Column("endpoints", sa.String()),
        sa.Column("is_hard", sa.Boolean(), nullable=False),
        sa.Column("thresholds", sa.String()),
        sa.Column("rolls_over", sa.Boolean(), nullable=False),
        sa.Column("auto_renews", sa.Boolean(), nullable=False),
        sa.Column("raised_by", sa.BigInteger(), nullable=False),
        sa.Column("raised_until", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("limits_by_holder", "limits", ["holder", "holder_id"])


def _add_prices() -> None:
    op.create_table(
        "prices",
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("price_id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("models", sa.String(), nullable=False),
        sa.Column("valid_from_ms", sa.BigInteger(), nullable=False),
        sa.Column("prompt", sa.BigInteger(), nullable=False),
        sa.Column("cached_prompt", sa.BigInteger()),
        sa.Column("completion", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger()),
        sa.Column("embedding", sa.BigInteger()),
        sa.Column("request", sa.BigInteger(), nullable=False),
        sa.Column("is_ended", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.UniqueConstraint("price_id", "version"),
        sqlite_autoincrement=True,
    )
