"""The auth worker: the only owner of keys, limits, usage totals and the audit log."""
