"""The command line: `penstock serve` starts the server on one machine; other commands talk to it.

`cli.py` has the commands, `supervisor.py` starts processes by module name and watches them,
`model_source.py` and `fetch.py` find models, `memory_estimate.py` says what they take, the
`…_commands.py` administer over HTTP.
Others run `penstock`; no package imports it.
May import `protocol`; it knows the other packages only as `python -m …`.
"""
