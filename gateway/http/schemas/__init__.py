"""The bodies that clients send, as pydantic models: shapes, ranges, and errors that name a field.

Names and ranges are OpenAI's, or vLLM's where OpenAI has none. No schema knows a worker.
Others use the models and their `parse_…`, and `RequestModel` to make more.
May import `gateway.errors`.
"""
