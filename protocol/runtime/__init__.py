"""What every process needs to run: settings, logs, metrics, and an end with its supervisor.

Not about the wire; `metrics.py` alone knows one message of it.
May import `protocol.errors` and `protocol.wire.messages`.
"""
