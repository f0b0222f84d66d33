"""From a JSON schema to rules of llguidance's Lark, and the keywords that these leave to the model.

Pure functions of the schema, run in the trial's process: a schema may be large, and no step may
wait for it.
Others use `schema_rules` of `compiler.py`.
May import `engine_worker.errors`.
"""
