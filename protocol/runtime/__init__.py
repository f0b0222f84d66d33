"""What every process needs to run: settings, logs, metrics, and an end with its supervisor.

Not about the wire; `metrics.py` alone knows one message of it. How a setting is declared stands in
`settings.py` and `setting_kinds.py`; `shared_settings.py` has those that several packages read.
`allocator.py` is for processes that read large bodies, `large_pages.py` for those that hold many
small objects for long, `threads.py` for those with threads, `child_process.py` for those with an
event loop that start others, `helper_process.py` and `give_way.py` for work that may wait a little,
`gguf_header.py` for those that want to know what is in a GGUF file.
Others use each file by itself.
May import `protocol.errors`, `protocol.wire.messages` and names of settings from `protocol.wire`.
"""
