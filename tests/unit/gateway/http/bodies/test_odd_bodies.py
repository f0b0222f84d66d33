"""Whatever JSON stands wherever in a body: it is parsed, or it is the client's own error."""

from contextlib import suppress
from typing import Any, Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError
from gateway.http import routes
from gateway.http.access.guard import GuardedRoute
from gateway.http.bodies.parsers import KINDS
from gateway.http.openapi.document import EXAMPLES
from gateway.http.schemas.administration.settings import SettingsModel
from gateway.http.schemas.base.body import RequestModel, load_json_object, validate
from protocol.wire import codec
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.request_models import MODELS
from tests.fakes.sample_bodies import (
    CONTEXT,
    DEEP_LIST,
    DEEP_OBJECT,
    ODD,
    SAMPLE_BODIES,
    bytes_of,
    odd_values,
    positions,
    replaced,
)

VALUES: Final = st.recursive(
    st.sampled_from([None, True, False, 0, -1, 2**64 - 1, -(2**63), 1.5, 1e308, "", "x", "\0"])
    | st.sampled_from(["user", "assistant", "message", "function", "mcp", "text", "tool", "auto"])
    | st.sampled_from([DEEP_LIST, DEEP_OBJECT]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "name", "id", "a", ""]), inner)
    ),
    max_leaves=6,
)
DECODERS: Final[dict[str, codec.Decoder[Any]]] = {
    name: codec.Decoder(kind.result) for name, kind in KINDS.items()
}


def parsed_or_refused(kind: str, body: Any) -> None:
    """Any exception but the client's own error fails; a result travels between processes."""
    with suppress(InvalidRequestError):
        result = KINDS[kind].parse(bytes_of(kind, body), CONTEXT)
        DECODERS[kind].decode(codec.encode_value(result))


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_are_taken(kind: str) -> None:
    for body in SAMPLE_BODIES[kind]:
        KINDS[kind].parse(bytes_of(kind, body), CONTEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_value_at_any_place_is_the_clients_error_at_most(kind: str) -> None:
    for body in SAMPLE_BODIES[kind]:
        for place, path in enumerate(positions(body)):
            for odd in odd_values(kind, place):
                parsed_or_refused(kind, replaced(body, path, odd))


@settings(max_examples=15 * EFFORT)
@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_odd_values_at_several_places_are_the_clients_error_at_most(
    kind: str, data: st.DataObject
) -> None:
    body = data.draw(st.sampled_from(SAMPLE_BODIES[kind]))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(positions(body))
        if not places:
            break
        body = replaced(body, data.draw(st.sampled_from(places)), data.draw(VALUES))
    parsed_or_refused(kind, body)


def models_of_routes() -> dict[str, type[RequestModel]]:
    """The models of JSON bodies by the paths of their routes."""
    found: dict[str, type[RequestModel]] = {}
    by_name = {model.__name__: model for model in MODELS}
    for router in routes.ROUTERS:
        for route in router.routes:
            assert isinstance(route, GuardedRoute)
            body = (route.openapi_extra or {}).get("requestBody")
            content = {} if body is None else body["content"]
            name = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            if name:
                found[f"{min(route.methods or ())} {route.path}"] = by_name[name.split("/")[-1]]
    return found


ROUTES: Final = models_of_routes()


def test_the_routes_are_found() -> None:
    assert len(ROUTES) > 50


@pytest.mark.parametrize("route", ROUTES)
def test_an_odd_value_at_any_place_of_a_routes_example_is_the_clients_error_at_most(
    route: str,
) -> None:
    model, example = ROUTES[route], EXAMPLES[route.split()[1]]
    for path in positions(example):
        for odd in (*ODD, "", "x", -1, 1.5, True, 2**63, [[]], [{}], [None], {"": []}):
            with suppress(InvalidRequestError):
                body = load_json_object(orjson.dumps(replaced(example, path, odd)))
                request = validate(model, body)
                if isinstance(request, SettingsModel):
                    request.given()
