"""The written grammar, tokenizer, packing, model and training loop behind the bundled demo model."""
