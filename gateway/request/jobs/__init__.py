"""What a client asks for, as its checked body says it, and whether a model can do it.

`job.py` is one generation, `answer_options.py` what its answer shows; `model_names.py` finds the
model, `model_limits.py` and `thoughts.py` refuse what it can't do.
Others use `GenerationJob`, `AnswerOptions`, `ModelNames` and the checks; nothing here waits.
May import `gateway.workers`, `gateway.bridge` and `gateway.errors`.
"""
