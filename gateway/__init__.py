"""The gateway: HTTP in, messages out; knows no model, no key and no parser.

`application.py` wires the rooms together and `__main__.py` starts it. From the ground up: `bridge`,
`telemetry`, `tools`, `hooks`, `ledger`, `storage`, `dispatch`, `workers`, `request`, `batches`,
`http`; a room imports only those before it. `errors.py` is the tree that all share,
`json_numbers.py` keeps the digits of clients' numbers, `turns.py` gives out places to callers in
turn, `config.py` holds the settings.
Others start it with `python -m gateway`; packages of hooks import `gateway.hooks.hook`.
May import `protocol`.
"""
