"""GET /v1/models and /v1/models/{id}."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import ModelNotFoundError
from gateway.http.access.guard import GuardedRoute
from gateway.http.anthropic.models import VERSION_HEADER, model_info, model_page
from gateway.http.parts import parts_of
from gateway.http.schemas.base.ranges import MAX_CHOICES
from protocol.wire.messages import EngineOffer, Granted, SamplingDefaults

router = APIRouter(route_class=GuardedRoute, tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The models that are or were served since the start, as far as the caller may use them.

    To Anthropic's clients in their shape.
    """
    offers = visible_models(request)
    if VERSION_HEADER in request.headers:
        query = request.query_params
        return _json(model_page(offers, query, query.getlist("lifecycle[]")))
    data = [_card(name, offers[name]) for name in sorted(offers)]
    return _json({"object": "list", "data": data})


@router.get("/v1/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    """One model; ids may hold slashes."""
    offers = visible_models(request)
    offer = offers.get(model_id)
    if offer is None:
        raise ModelNotFoundError(model_id, tuple(sorted(offers)))
    if VERSION_HEADER in request.headers:
        return _json(model_info(model_id, offer))
    return _json(_card(model_id, offer) | _details(offer))


def visible_models(request: Request) -> dict[str, EngineOffer]:
    """The models that the caller of a guarded route may use, by their names and aliases."""
    parts = parts_of(request)
    offers = dict(parts.directory.models())
    granted: Granted = request.state.granted
    named = {name: offers[model] for name, model in parts.names.aliases.items() if model in offers}
    return {
        name: offer
        for name, offer in (offers | named).items()
        if _fits(offer.model, granted.allowed_models)
        and _fits(offer.model, granted.team_allowed_models)
    }


def _fits(name: str, globs: Sequence[str] | None) -> bool:
    return globs is None or any(fnmatchcase(name, glob) for glob in globs)


def _details(offer: EngineOffer) -> dict[str, Any]:
    defaults = offer.sampling_defaults
    return {
        "architecture": offer.architecture,
        "dtype": offer.dtype,
        "compute": {
            "backend": offer.backend,
            "weights": offer.dtype,
            "stored_as": offer.stored_as or None,
            "stored_formats": offer.stored_formats or None,
            "kv": offer.kv_dtype,
            "blocks": [
                {"block": place.block, "backend": place.backend, "reason": place.reason or None}
                for place in offer.placements
            ],
        },
        "quality": orjson.loads(offer.quality_json) if offer.quality_json else None,
        "num_parameters": offer.num_parameters,
        "fingerprint": offer.fingerprint,
        "has_chat_template": offer.has_chat_template,
        "tool_format": offer.tool_format,
        "reasoning_format": offer.reasoning_format,
        "format_evidence": offer.format_evidence,
        "sampling_defaults": {
            name: getattr(defaults, name) for name in SamplingDefaults.__struct_fields__
        },
        "limits": {
            "max_model_len": offer.max_model_len,
            "vocab_size": offer.vocab_size,
            "max_logprobs": offer.max_logprobs,
            "max_num_seqs": offer.max_num_seqs,
            "num_kv_tokens": offer.num_kv_tokens,
            "max_choices": MAX_CHOICES,
        },
        "embeddings": (
            {"num_dimensions": offer.num_embedding_dimensions, "pooling": offer.pooling}
            if offer.num_embedding_dimensions
            else None
        ),
    }


def _card(name: str, offer: EngineOffer) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": offer.created,
        "owned_by": "penstock",
        "root": offer.model,
        "max_model_len": offer.max_model_len,
        "capabilities": list(offer.capabilities),
        "metadata": _metadata(offer),
    }


def _metadata(offer: EngineOffer) -> dict[str, Any]:
    """What the model can do, in booleans: what clients look for who don't know its name."""
    can = offer.capabilities
    # An engine that tells nothing of what it can do generates.
    generates = not can or "completions" in can
    return {
        "architecture": offer.architecture,
        "supports_chat": offer.has_chat_template and generates,
        "supports_completions": generates,
        "supports_streaming": generates,
        "supports_function_calling": offer.tool_format is not None,
        "supports_reasoning": offer.reasoning_format is not None,
        "supports_structured_outputs": generates,
        "supports_logprobs": generates and offer.max_logprobs > 0,
        "supports_fill_in_middle": "fill_in_middle" in can,
        "supports_embeddings": bool(offer.num_embedding_dimensions),
        "supports_decisions": "scores" in can,
        "supports_classification": "classify" in can,
        "supports_vision": False,
    }


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
