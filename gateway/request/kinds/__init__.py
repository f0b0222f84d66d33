"""The kinds of work: each says what it may use, how it is prepared, run and aborted, and its usage.

`generation.py` is chat and completions, `questions.py` one question to an engine (embeddings,
scores, tokens), `text_parse.py` a text at a parser, `tool_call.py` a tool of this server.
Others have `factory.py` make them, and read what each has found out.
May import every other room of `gateway.request`, `gateway.workers`, `gateway.dispatch`,
`gateway.tools`, `gateway.telemetry`, `gateway.bridge` and `gateway.errors`.
"""
