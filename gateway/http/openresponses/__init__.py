"""OpenAI's Responses API: items become the messages of a chat, a chat's events items and events.

Public: names and shapes are those of https://platform.openai.com/docs/api-reference/responses and
https://www.openresponses.org. May import `gateway.request`, `gateway.tools`,
`gateway.http.schemas`, `gateway.http.render`, `gateway.http.bodies.convert` and
`gateway.http.errors.error_table`; it knows no worker.
"""
