"""The versions of the auth database's schema, each one step forward and the same step back.

`vNNNN_words.py` has `revision` NNNN and `down_revision`, the number before. Its first line is what
`schema_version` says of it. May import `alembic` and `sqlalchemy` only.
"""
