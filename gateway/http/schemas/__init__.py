"""The bodies that clients send, as pydantic models: shapes, ranges, and errors that name a field.

Public: names and ranges are OpenAI's, or vLLM's where OpenAI has none.
May import `gateway.errors` and `protocol`; no schema knows a wire message's use or a worker.
"""
