"""The engine worker: scheduler, paged KV cache, models, sampling and tokenizer of one model."""
