"""Alembic's folder: one file a schema version in `versions/`, and the `env.py` that runs them.

May be touched when a table changes: a new file in `versions/`, its number in its name, and the same
change in `schema.py`. A version that was released never changes. May import `alembic` and
`sqlalchemy`, nothing of ours: tables go on changing, what a version makes doesn't.
"""
