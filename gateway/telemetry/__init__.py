"""What operators see: this gateway's metrics, those that workers report, the access log and traces.

Written by every room, read by `/metrics` alone; nothing is decided by a number kept here.
Others use `Metrics`, `AccessRecord`, `Refusals`, `WorkerRecords` and `RequestTraces`.
May import nothing of the gateway.
"""
