"""What every route answers: the schemas of all surfaces, and which route answers which."""

from typing import Final

from gateway.http.openapi import (
    answers_administration,
    answers_anthropic_organization,
    answers_chat,
    answers_messages,
    answers_organization,
    answers_responses,
    answers_scoring,
    answers_server,
    answers_stored,
)
from gateway.http.openapi.shapes import Answers, Schema

_SURFACES: Final = (
    answers_chat,
    answers_responses,
    answers_messages,
    answers_scoring,
    answers_server,
    answers_stored,
    answers_administration,
    answers_organization,
    answers_anthropic_organization,
)


SCHEMAS: Final[dict[str, Schema]] = {}
ROUTES: Final[dict[str, Answers | None]] = {}
"""By method and path as in the document; None where a route answers with errors alone."""
for _surface in _SURFACES:
    assert SCHEMAS.keys().isdisjoint(_surface.SCHEMAS), "a name stands for one thing"
    SCHEMAS.update(_surface.SCHEMAS)
    ROUTES.update(_surface.ROUTES)
