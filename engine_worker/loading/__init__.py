"""Assembles a served model from its folder: tokenizer, weights, runner, and what it offers.

`decoder.py` for language models, `encoder.py` for embedding models, `phases.py` tells the progress.
Others use `load_model`, `load_encoder` and `is_encoder_folder`.
May import every room but `serving` and `python_api`.
"""
