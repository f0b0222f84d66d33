"""What administrators ask for: commands checked, turned into operations, and answered once done.

Also the first administrator's key, made at the start. May be touched when an admin command comes
or changes. May import `storage`, `decisions`, `records`, `principals` and below.
"""
