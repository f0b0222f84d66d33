"""Constrained decoding: from a `Grammar` of the wire to the tokens that an output may take next.

Compiled in threads of their own after a trial in a process that can be killed; `json_schema` turns
schemas into rules there.
May import `engine_worker.text` (the tokenizer), `engine_worker.core.choice` (token masks) and
`engine_worker.core.scheduling` (turns between tenants).
"""
