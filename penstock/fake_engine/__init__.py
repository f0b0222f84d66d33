"""An engine without a model: speaks the real protocol from a script, for load and failure tests."""
