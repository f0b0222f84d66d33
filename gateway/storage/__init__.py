"""What is kept between requests: responses, conversations, background jobs, answers to repeat.

Everything belongs to a tenant and is found with its name only. SQL of one dialect for SQLite, which
is embedded, and PostgreSQL; all of it runs in one thread beside the loop. Knows no worker, and of
an item no more than whether it says the same as another one.
Others use `Store` and the stores that it has, the classes of `records.py`, and `open_store`.
May import `gateway.config`, `gateway.housekeeping`, `gateway.json_numbers` and `gateway.errors`.
"""
