"""One incremental machine that runs every declared format, in time linear in the text.

A table of states whose steps answer moved, more or done; `declarations.py` is what a format says of
itself. Results don't depend on how the text is cut into deltas.
Others use `Machine` and the declarations; a format needs no code of its own.
May import nothing of ours but `protocol`.
"""
