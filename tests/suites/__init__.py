"""Public suites through the engine's own code: `python -m tests.suites`, one module for each."""
