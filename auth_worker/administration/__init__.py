"""What administrators ask for: commands checked, turned into operations, and answered once done.

`key_administration.py` and `resource_administration.py` have a method a command, `first_admin.py`
makes the first administrator's key at the start.
Others use `AdminCommands` and `ensure_admin`.
May import `auth_worker.storage`, `auth_worker.decisions`, `auth_worker.records`,
`auth_worker.principals`, `auth_worker.outbound`, `auth_worker.config`, `auth_worker.clock` and
`auth_worker.errors`.
"""
