"""Anthropic's Messages API: bodies become chats, and a chat's events its blocks and events.

Public: names, ranges and shapes are those of https://platform.claude.com/docs/en/api/messages.
May import `gateway.request`, `gateway.http.schemas`, `gateway.http.bodies.convert` and
`gateway.http.errors.error_table`; it knows no worker.
"""
