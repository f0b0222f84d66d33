"""Prepare: prompts on their way to token ids at an engine, and what can't fit before that.

`prompts.py` sends the prompts of one request a few at a time, `engine_asker.py` asks one engine
after another, `prompt_length.py` refuses what is too long without tokenising it.
Others use `PromptBatch`, `EngineAsker` and the checks of `prompt_length.py`.
May import `gateway.workers`, `gateway.dispatch` and `gateway.errors`.
"""
