"""Files of tenants and batches of requests, on the disk of the gateway's data folder.

`files.py` keeps files, `records.py` says what a batch is, `journal.py` what became of its lines,
`lines.py` reads them, `check.py` checks them for a command, `runner.py` takes batches up and ends
them, `line_runs.py` has what is left of their lines answered in idle capacity, `idle_room.py` says
how much of that engines have, `line_room.py` what lines of all batches take of it. Whatever blocks
is done in the threads of `batch_threads.py`. Knows no HTTP: how a line is answered is handed in.
Others use `FileStore`, `BatchStore`, `BatchRunner` and `BatchService`.
May import `gateway.request`, `gateway.dispatch`, `gateway.workers`, `gateway.bridge`,
`gateway.housekeeping`, `gateway.config` and `gateway.errors`.
"""
