"""The OpenAPI document as one HTML page without scripts, for people with a browser."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h2 { margin-top: 2.5rem; } code { font: 14px ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
td, th { border-top: 1px solid #8884; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.method { font-weight: 700; margin-right: .5rem; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } a { color: #8cf; } }
"""


def api_page(document: Mapping[str, Any], document_url: str) -> str:
    """The page.

    Args:
        document: OpenAPI 3.1.
        document_url: Where machines find it.
    """
    title = escape(document["info"]["title"])
    summary = escape(document["info"].get("summary", ""))
    body = "".join((*_operations(document), *_schemas(document)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f'<body><h1>{title}</h1><p>{summary} For machines: <a href="{escape(document_url)}">'
        f"{escape(document_url)}</a>.</p>{body}</body></html>"
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Routes</h2><table><tr><th>Route</th><th>What</th><th>Body</th><th>Answer</th></tr>"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            yield (
                f'<tr><td><code><span class="method">{escape(method.upper())}</span>'
                f"{escape(path)}</code></td><td>{escape(operation.get('description', ''))}</td>"
                f"<td>{_type(schema) if schema else ''}</td>"
                f"<td>{_answer(operation['responses'])}</td></tr>"
            )
    yield "</table>"


def _answer(responses: Mapping[str, Any]) -> str:
    """What a route answers when all goes well, and the events of its streams."""
    good = [one.get("content", {}) for status, one in responses.items() if status.startswith("2")]
    kinds = [kind for content in good for kind in content.values()]
    shown = [_type(kind["schema"]) for kind in kinds if "schema" in kind]
    for kind in kinds:
        if "itemSchema" in kind:
            _end, event = kind["itemSchema"]["properties"]["data"]["anyOf"]
            shown.append(f"events: {_type(event['contentSchema'])}")
    return "<br>".join(shown)


def _schemas(document: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in document["components"]["schemas"].items():
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        yield f"<p>{escape(schema.get('description', ''))}</p>"
        if "properties" not in schema:
            yield f"<p>{_type(schema)}</p>"
            continue
        yield "<table><tr><th>Field</th><th>Type</th><th></th></tr>"
        required = schema.get("required", ())
        for field, kind in schema.get("properties", {}).items():
            needed = "required" if field in required else ""
            yield f"<tr><td><code>{escape(field)}</code></td><td>{_type(kind)}</td>"
            yield f"<td>{needed}</td></tr>"
        yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [
            _type(one)
            for one in schema.get("anyOf", schema.get("oneOf"))
            if one.get("type") != "null"
        ]
        return " or ".join(kinds)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in values)
    kind = schema.get("type", "anything")
    text = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if "items" in schema:
        return f"list of {_type(schema['items'])}{_bounds(schema)}"
    return escape(text) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = [
        f"{sign} {schema[name]}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", "&gt;"),
            ("maximum", "≤"),
            ("minLength", "length ≥"),
            ("maxLength", "length ≤"),
            ("minItems", "length ≥"),
            ("maxItems", "length ≤"),
        )
        if name in schema
    ]
    return f" ({', '.join(words)})" if words else ""
