"""Anthropic's Messages API: bodies become chats, and a chat's events its blocks and events.

Names, ranges and shapes are those of https://platform.claude.com/docs/en/api/messages. Knows no
worker.
Others use `messages_job`, the schemas and `MessageStreamRenderer`.
May import `gateway.http.schemas`, `gateway.http.render`, `gateway.http.bodies.convert`,
`gateway.http.errors.error_table`, `gateway.request`, `gateway.bridge` and `gateway.errors`.
"""
