"""Texts to vectors: encoders of the BERT family, pooling, and batches by length."""
