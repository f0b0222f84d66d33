"""Whether the audit log holds: its rows read back beside whoever writes them, and verified.

`audit_check.py` does so in the background, `database_check.py` and `verify_audit.py` for the
command line; `noted_entry.py` looks for an entry that somebody noted.
Others use `BackgroundCheck` and `check_database`.
May import `auth_worker.storage`, `auth_worker.records`, `auth_worker.config` and
`auth_worker.errors`.
"""
