"""Alembic's folder: one file a schema version in `versions/`, and the `env.py` that runs them.

When a table changes: a new file in `versions/`, its number in its name, and the same change in
`schema.py`. A version that was released never changes.
Others leave it to Alembic, which `storage/migrations.py` calls.
May import nothing of ours: tables go on changing, what a version makes doesn't.
"""
