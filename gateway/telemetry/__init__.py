"""What operators see: this gateway's metrics, and those that workers report.

Written by every room, read by `/metrics` alone; nothing is decided by a number kept here.
May import `gateway.errors` and `protocol`.
"""
