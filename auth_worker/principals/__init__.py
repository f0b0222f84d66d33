"""Who may ask: keys, what they may be used for, roles and their scopes, and how they are defined.

Plain values and pure checks: nothing here knows a disk, a socket or a thread. May be touched
when a principal gets a field, a role or a scope. May import `auth_worker.errors`, `clock` and
`protocol`.
"""
