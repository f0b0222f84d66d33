"""The bodies of work that engines, parsers and tools do: chats, completions, embeddings, tokens.

Those of Responses, Messages and scoring are in the rooms of these APIs.
Others use the models and their `parse_…`.
May import `gateway.http.schemas.base` and `gateway.http.schemas.tools`.
"""
