"""Every method of the official administrative clients has a route here, or a reason why not."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

from gateway.http.access.guard import GuardedRoute
from gateway.http.app import build_api
from tests.fakes.late import anthropic
from tests.fakes.running_gateway import running_gateway

_CALL = re.compile(
    r"self\._(get|post|delete|put|patch|get_api_list)\(\s*(?:path_template\(\s*)?f?\"([^\"]+)\""
)
_NO_ROLES = "roles here are the four of keys and users; there are no custom ones"
_NO_GROUPS = "users are grouped by teams"
_NO_STORE = "nothing of OpenAI's storage or identity services is here"
_NO_TOOLS = "OpenAI's hosted tools and service tiers aren't here"
_ISSUER = "tokens of one issuer are accepted, by settings"
_NO_PEOPLE = "what single people use of Anthropic's apps isn't here"
_NO_SUCH = "there is nothing of the kind to count"
UNSERVED_OF_OPENAI = {
    "roles": _NO_ROLES,
    "users.roles": _NO_ROLES,
    "projects.roles": _NO_ROLES,
    "projects.users.roles": _NO_ROLES,
    "groups": _NO_GROUPS,
    "groups.roles": _NO_GROUPS,
    "groups.users": _NO_GROUPS,
    "projects.groups": _NO_GROUPS,
    "projects.groups.roles": _NO_GROUPS,
    "certificates": "clients are known by keys and tokens; mutual TLS is the proxy's",
    "projects.certificates": "clients are known by keys and tokens; mutual TLS is the proxy's",
    "data_retention": "nothing that clients send is kept but what they store themselves",
    "projects.data_retention": "nothing that clients send is kept but what they store themselves",
    "external_keys": _NO_STORE,
    "external_storage": _NO_STORE,
    "workload_identity_providers": _ISSUER,
    "workload_identity_providers.federation_rules": _ISSUER,
    "projects.hosted_tool_permissions": _NO_TOOLS,
    "projects.service_tier_settings": _NO_TOOLS,
}
"""Resources of which no method is served."""
UNSERVED_METHODS_OF_OPENAI = {
    **{
        f"usage.{name}": _NO_SUCH
        for name in (
            *("audio_speeches", "audio_transcriptions", "code_interpreter_sessions"),
            *("file_search_calls", "images", "moderations", "vector_stores", "web_search_calls"),
        )
    },
}
UNSERVED_OF_ANTHROPIC = {
    "analytics.apps.chat.projects": _NO_PEOPLE,
    "analytics.artifacts": _NO_PEOPLE,
    "analytics.connectors": _NO_PEOPLE,
    "analytics.plugins": _NO_PEOPLE,
    "analytics.skills": _NO_PEOPLE,
    "analytics.summaries": _NO_PEOPLE,
    "analytics.users": _NO_PEOPLE,
    "compliance_settings": "nothing that clients send is kept but what they store themselves",
    "external_keys": "data is encrypted by the disk or the database server",
    "federation.issuers": _ISSUER,
    "federation.rules": _ISSUER,
    "federation.rules.workspaces": _ISSUER,
    "spend_limits.increase_requests": "nobody asks for a higher limit by this server",
    "rbac_groups": _NO_GROUPS,
    "rbac_groups.members": _NO_GROUPS,
    "rbac_roles": _NO_ROLES,
    "rbac_roles.permissions": _NO_ROLES,
}


def calls(resource: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, HTTP method and path of every method of a resource and of those below it."""
    for attribute in sorted(vars(type(resource)) | dict.fromkeys(dir(type(resource)))):
        if attribute.startswith(("_", "with_")):
            continue
        member = inspect.getattr_static(type(resource), attribute)
        dotted = f"{name}.{attribute}".lstrip(".")
        if inspect.isfunction(member):
            for method, path in _CALL.findall(inspect.getsource(member)):
                yield dotted, "GET" if method == "get_api_list" else method.upper(), path
        elif "resources" in type(getattr(resource, attribute)).__module__:
            yield from calls(getattr(resource, attribute), dotted)


async def unserved(socket_dir: Path, client: Any, prefix: str) -> dict[str, str]:
    """The methods without a route, and their paths."""
    async with running_gateway(socket_dir) as gateway:
        routes = [
            (route.path_regex, route.methods or set())
            for route in build_api(gateway.application.parts).routes
            if isinstance(route, GuardedRoute)
        ]
    found = list(calls(client))
    assert len(found) > 10, "the client's own source reads otherwise now"
    missing = {}
    for name, method, path in found:
        wanted = prefix + re.sub(r"\{[^}]*\}", "x", path).partition("?")[0]
        if not any(method in methods and regex.match(wanted) for regex, methods in routes):
            missing[name] = f"{method} {wanted}"
    return missing


def without_reason(missing: dict[str, str], resources: Any, methods: Any) -> dict[str, str]:
    """Those that nobody says anything of; a reason for what is served is wrong, too."""
    of = {name: name.rpartition(".")[0] for name in missing}
    assert set(resources) <= set(of.values()), "a reason is there for what isn't missing"
    assert set(methods) <= set(missing), "a reason is there for what isn't missing"
    return {
        name: where
        for name, where in missing.items()
        if name not in methods and of[name] not in resources
    }


async def test_openai(socket_dir: Path) -> None:
    organization = openai.OpenAI(api_key="x", admin_api_key="y").admin.organization
    missing = await unserved(socket_dir, organization, "/v1")
    assert without_reason(missing, UNSERVED_OF_OPENAI, UNSERVED_METHODS_OF_OPENAI) == {}


async def test_anthropic(socket_dir: Path) -> None:
    organization = anthropic.Anthropic(api_key="x").organization
    missing = await unserved(socket_dir, organization, "")
    assert without_reason(missing, UNSERVED_OF_ANTHROPIC, ()) == {}
