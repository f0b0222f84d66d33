"""OpenAI's organization API over what this server has: projects are teams, spend limits budgets.

May be touched when OpenAI's administrative client changes (`client.admin.organization`). May import
the schemas and what lies below them; the routes are in `gateway.http.routes`.
"""
