"""The tables of fields on the pages of APIs have one form, and say what code and SDKs do."""

import importlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.http.anthropic import schemas as messages
from gateway.http.openresponses import schemas as responses
from gateway.http.schemas.base import fields
from gateway.http.schemas.inference.batches import BatchRequest
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.inference.completion import CompletionRequest
from gateway.http.schemas.inference.embedding import EmbeddingRequest
from gateway.http.schemas.inference.tokenize import DetokenizeRequest, TokenizeRequest
from gateway.http.schemas.tools.functions import FUNCTION_FIELDS
from gateway.http.scoring import decision_schemas, rerank
from gateway.http.scoring.classify import ClassifyRequest

DOCS = Path(__file__).parents[4] / "docs"
HEAD = "| honoured | harmless: taken, no effect | refused by name (400) |\n|---|---|---|\n"
UPLOAD = frozenset({"file", "purpose", "expires_after"})


class Surface(NamedTuple):
    """One table.

    Attributes:
        before: What stands on its page before it, a heading or a word in bold.
        known: Fields that the code takes.
        harmless: Those of them that change nothing.
        refused: Fields that are a 400 by name.
        sdk: Request types of official clients, all of whose fields the table must have.
    """

    page: str
    before: str
    known: Collection[str]
    harmless: Collection[str] = ()
    refused: Collection[str] = ()
    sdk: tuple[str, ...] = ()


_RESPONSE = "openai.types.responses"
SURFACES = (
    Surface(
        "http-api",
        "**Chat**",
        ChatRequest.known_fields | FUNCTION_FIELDS,
        fields.HARMLESS_FIELDS,
        fields.CHAT_REFUSED_FIELDS | fields.EXTENSION_REFUSED_FIELDS,
        ("openai.types.chat.completion_create_params.CompletionCreateParamsStreaming",),
    ),
    Surface(
        "http-api",
        "**Completions**",
        CompletionRequest.known_fields,
        set(fields.HARMLESS_FIELDS) & CompletionRequest.known_fields,
        fields.COMPLETION_REFUSED_FIELDS | fields.EXTENSION_REFUSED_FIELDS,
        ("openai.types.completion_create_params.CompletionCreateParamsStreaming",),
    ),
    Surface(
        "http-api",
        "## Embeddings",
        EmbeddingRequest.known_fields,
        ("user",),
        sdk=("openai.types.embedding_create_params.EmbeddingCreateParams",),
    ),
    Surface(
        "http-api",
        "### Tokenizing",
        TokenizeRequest.known_fields | DetokenizeRequest.known_fields,
    ),
    Surface(
        "responses-api",
        "## Fields",
        responses.ResponsesRequest.known_fields,
        responses.HARMLESS_FIELDS,
        responses.REFUSED_FIELDS,
        (
            f"{_RESPONSE}.response_create_params.ResponseCreateParamsStreaming",
            f"{_RESPONSE}.input_token_count_params.InputTokenCountParams",
            f"{_RESPONSE}.response_compact_params.ResponseCompactParams",
        ),
    ),
    Surface(
        "messages-api",
        "## Fields",
        messages.MessagesRequest.known_fields,
        messages.HARMLESS_FIELDS,
        messages.REFUSED_FIELDS,
        (
            "anthropic.types.message_create_params.MessageCreateParamsStreaming",
            "anthropic.types.message_count_tokens_params.MessageCountTokensParams",
            "anthropic.types.beta.message_create_params.MessageCreateParamsBase",
            "anthropic.types.beta.message_count_tokens_params.MessageCountTokensParams",
        ),
    ),
    Surface(
        "decisions-api",
        "## POST /v1/decisions",
        decision_schemas.DecisionRequest.known_fields,
        decision_schemas.HARMLESS_FIELDS,
        sdk=("openai.types.decision_create_params.DecisionCreateParams",),
    ),
    Surface(
        "decisions-api",
        "## POST /v1/systemone",
        decision_schemas.SystemoneRequest.known_fields,
    ),
    Surface(
        "decisions-api",
        "**Rerank**",
        rerank.RerankRequest.known_fields,
        rerank.HARMLESS_FIELDS,
    ),
    Surface("decisions-api", "**Score**", rerank.ScoreRequest.known_fields, rerank.HARMLESS_FIELDS),
    Surface("decisions-api", "## Classify", ClassifyRequest.known_fields, rerank.HARMLESS_FIELDS),
    Surface(
        "batches-api", "## Files", UPLOAD, sdk=("openai.types.file_create_params.FileCreateParams",)
    ),
    Surface(
        "batches-api",
        "## Batches",
        BatchRequest.known_fields | {"model"},
        ("model",),
        sdk=("openai.types.batch_create_params.BatchCreateParams",),
    ),
)


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def cells(surface: Surface) -> list[set[str]]:
    """The names of a table's three cells, but for what stands in brackets."""
    after = page(surface.page).split(f"\n{surface.before}\n", 1)[1]
    between, table = after.split(HEAD, 1)
    assert not re.search(r"^#", between, re.MULTILINE), "the table is of another section"
    row = table.splitlines()[0].strip("|")
    # A link's target has brackets, too.
    bare = re.sub(r"\([^()]*\)", "", re.sub(r"\]\([^)]*\)", "]", row))
    return [set(re.findall(r"`(\w+)`", cell)) for cell in bare.split(" | ")]


def name_of(surface: Surface) -> str:
    return f"{surface.page} {surface.before.strip('#* ')}"


@pytest.mark.parametrize("surface", SURFACES, ids=name_of)
def test_a_table_says_what_the_code_does(surface: Surface) -> None:
    honoured, harmless, refused = cells(surface)
    assert harmless == set(surface.harmless)
    assert honoured == set(surface.known) - harmless
    assert refused == set(surface.refused)


@pytest.mark.parametrize(
    ("surface", "params"),
    [(surface, params) for surface in SURFACES for params in surface.sdk],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else name_of(value),
)
def test_every_field_of_an_sdks_request_is_in_its_table(surface: Surface, params: str) -> None:
    module, _, name = params.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    told = set().union(*cells(surface))
    named = set(kind.__annotations__)
    assert named
    assert named <= told


def test_every_table_is_looked_at() -> None:
    for name in {surface.page for surface in SURFACES}:
        known = sum(surface.page == name for surface in SURFACES)
        assert page(name).count(HEAD) == known, name
