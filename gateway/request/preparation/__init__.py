"""Prepare: prompts on their way to token ids at an engine.

`prompts.py` sends the prompts of one request a few at a time, `engine_asker.py` asks one engine
after another.
Others use `PromptBatch`, `EngineAsker` and `is_retryable`.
May import `gateway.workers`, `gateway.dispatch` and `gateway.errors`.
"""
