"""Embeddings as JSON: written vector by vector, the same as in one piece."""

import base64
from array import array
from typing import Any

import orjson
import pytest

from gateway.http.routes.inference import embeddings
from protocol.wire.messages import Embedded

VECTORS = ([0.5, -1.25], [1e-7, 3.0], [0.0, -0.0])


def embedded(num_vectors: int) -> Embedded:
    data = array("f", [number for vector in VECTORS[:num_vectors] for number in vector])
    return Embedded(
        request_id="r",
        vectors=data.tobytes(),
        num_dimensions=2,
        num_tokens=tuple(range(num_vectors)),
    )


@pytest.mark.parametrize("num_vectors", [1, 3])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_json_in_openais_shape(num_vectors: int, encoding: Any) -> None:
    answer = orjson.loads(embeddings._render(embedded(num_vectors), 7, 'a"b', encoding))
    told = [one.pop("embedding") for one in answer["data"]]
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": index} for index in range(num_vectors)],
        "model": 'a"b',
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    for vector, shown in zip(VECTORS, told, strict=False):
        data = array("f", vector)
        if encoding == "base64":
            assert base64.b64decode(shown) == data.tobytes()
        else:
            assert shown == data.tolist()
