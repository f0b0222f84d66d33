"""What is to be written or read: operations, rows and the audit log's chain of hashes.

Plain values that cross from the threads that decide to the one that writes. May be touched when
something new must last. May import `principals` and what lies below it.
"""
