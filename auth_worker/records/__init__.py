"""What is to be written or read: operations, rows and the audit log's chain of hashes.

Plain values that cross from the threads that decide to the one that writes; whatever new thing must
last is an operation here first.
Others make and read them; only `auth_worker.storage` turns them into SQL.
May import `auth_worker.principals` and `auth_worker.errors`.
"""
