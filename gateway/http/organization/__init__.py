"""OpenAI's organization API over what this server has: projects are teams, spend limits budgets.

Shapes are those of OpenAI's administrative client (`client.admin.organization`).
Others use `shapes.py`; the routes are in `gateway.http.routes`.
May import `gateway.http.schemas` and `gateway.errors`.
"""
