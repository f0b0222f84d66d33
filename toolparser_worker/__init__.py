"""The parser worker: model text in; content, reasoning and tool calls out.

`handler.py` takes commands, `sessions.py` has a parser a choice; `machine` parses, `formats` says
how, `grammar` makes an output follow.
Others start it with `python -m toolparser_worker`; scripts use `parse_text`.
May import `protocol`.
"""
