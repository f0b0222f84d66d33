"""Decisions, rerank and score: bodies, the prompts that ask for labels, and what their chances say.

`wording.py` says how a model is asked, `probabilities.py` what is made of its answers; an engine
scores the labels.
Others use the bodies and answers of each file; the routes are in `gateway/http/routes/`.
May import `gateway.http.schemas`, `gateway.request`, `gateway.bridge` and `gateway.errors`.
"""
