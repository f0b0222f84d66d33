"""What every body is read with: JSON with errors that name a field, ranges, unknown fields.

A field's bounds stand in one table, for checks, errors and documentation alike.
Others use `body.py` for a body of any kind, and the tables of `ranges.py` and `fields.py`.
May import `gateway.errors`.
"""
