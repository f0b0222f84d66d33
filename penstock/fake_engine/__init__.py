"""An engine without a model: speaks the real protocol from a script, for load and failure tests.

`script.py` says what it answers and when, `engine.py` does so, `service.py` is its process.
Others start it with `python -m penstock.fake_engine`, in place of an engine.
May import `protocol`.
"""
