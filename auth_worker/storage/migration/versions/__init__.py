"""The versions of the auth database's schema, each one step forward and the same step back.

`vNNNN_words.py` has `revision` NNNN and `down_revision`, the number before. Its first line is what
`schema_version` says of it.
Others leave it to Alembic; a version that was released is never edited.
May import nothing of ours, only `alembic` and `sqlalchemy`.
"""
