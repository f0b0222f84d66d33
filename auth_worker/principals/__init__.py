"""Who may ask: keys, what they may be used for, roles and their scopes, and how they are defined.

Plain values and pure checks: nothing here knows a disk, a socket or a thread.
Others use all of it; a field, a role or a scope of a principal is added here first.
May import `auth_worker.clock` and `auth_worker.errors`.
"""
