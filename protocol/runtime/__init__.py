"""What every process needs to run: settings, logs, metrics, and an end with its supervisor.

Not about the wire; `metrics.py` alone knows one message of it. `settings.py` and
`setting_kinds.py` are how a setting is declared, `shared_settings.py` has those of several packages.
May import `protocol.errors`, `protocol.wire.messages` and names of settings from `protocol.wire`.
"""
