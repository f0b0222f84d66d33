"""OpenAI's Responses API: items become the messages of a chat, a chat's events items and events.

Names and shapes are those of https://platform.openai.com/docs/api-reference/responses and
https://www.openresponses.org. Knows no worker.
Others use `asked_response` of `convert.py`, `ResponseEvents` and the classes of `events.py`.
May import `gateway.http.schemas`, `gateway.http.render`, `gateway.http.bodies.convert`,
`gateway.http.errors.error_table`, `gateway.request`, `gateway.storage`, `gateway.tools`,
`gateway.bridge` and `gateway.errors`.
"""
