"""Text to token ids and back: tokenizer, templates, detokenizer, stops, tool-format detection.

No jax; `preparation.py` answers a gateway's question about a prompt.
May import `engine_worker.core.choice`, `engine_worker.core.scheduling` and `engine_worker.errors`.
"""
