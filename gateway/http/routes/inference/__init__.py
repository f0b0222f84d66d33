"""Work that engines, parsers and tools do: generation, embeddings, decisions, tokens, tools, MCP.

A file an API; whatever two of them decide alike is in `gateway.request`.
Others use `ROUTERS`.
May import every room before `gateway.http.routes`, and `gateway.http.routes.server`.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes.inference import (
    embeddings,
    generate,
    mcp,
    messages,
    responses,
    scoring,
    tokenize,
    tools,
)

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router
    for module in (generate, responses, messages, embeddings, tokenize, scoring, tools, mcp)
)
