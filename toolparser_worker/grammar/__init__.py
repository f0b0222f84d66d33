"""From a format's declaration and a request's tools to the grammar that the output has to follow.

`request.py` says which grammar a request wants; the same declarations as `machine` reads are
turned into rules, so that what is enforced is what is parsed.
Others use `request_grammar` and its `Wish`.
May import `toolparser_worker.machine` and `toolparser_worker.errors`.
"""
