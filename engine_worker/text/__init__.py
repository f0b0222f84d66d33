"""Text to token ids and back: tokenizer, templates, detokenizer, stop rules, detection of formats.

No jax; `preparation.py` answers a gateway's question about a prompt.
Others use `Tokenizer`, `ChatTemplate`, `PromptPreparer`, `OutputText` and `detect_formats`.
May import `engine_worker.core.choice`, `engine_worker.core.scheduling` and `engine_worker.errors`.
"""
