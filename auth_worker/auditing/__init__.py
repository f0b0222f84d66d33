"""Whether the audit log holds: its rows read back beside whoever writes them, and verified.

May be touched when the proof of the log changes. May import `storage`, `records` and below.
"""
