"""The written grammar, tokenizer, packing, model and training loop of the bundled demo model."""
