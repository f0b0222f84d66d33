"""How much more than usual is tried."""

import os

EFFORT = int(os.environ.get("FUZZ_EFFORT", "1"))
"""How many times as many examples as usual are tried; `make fuzz` says."""
