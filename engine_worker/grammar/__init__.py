"""Constrained decoding: from a `Grammar` of the wire to the tokens that an output may take next.

Compiled in threads of their own after a trial in a process that can be killed; `json_schema` turns
schemas into rules there.
Others use `CompileQueue`, `GrammarCompiler` and `Constraint`.
May import `engine_worker.text` (the tokenizer), `engine_worker.core.choice` (token masks),
`engine_worker.core.scheduling` (turns between tenants) and `engine_worker.errors`.
"""
