"""Loads the hooks of other packages and calls them, each within a time."""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from gateway.errors import GatewayError, RefusedByHookError
from gateway.hooks.hook import (
    GROUP,
    SAMPLING_FIELDS,
    Hook,
    HookAnswer,
    HookCall,
    HookRequest,
    Refusal,
)
from protocol.errors import ConfigurationError

START_TIMEOUT_S = 60.0
MAX_TAGS = 16
MAX_TAG_CHARACTERS = 64
MAX_REASON_CHARACTERS = 1000
NUM_THREADS = 16
"""Of hooks alone: one that never returns keeps its thread, and none of the gateway's."""
_logger = logging.getLogger("penstock.gateway.hooks")

ResultT = TypeVar("ResultT")
Count = Callable[[str, str], None]
"""Told the hook's name and how a call ended: `ok`, `refused`, `failed` or `timeout`."""


def load_hooks(plugins: Iterable[EntryPoint] | None = None) -> dict[str, Hook]:
    """The hooks of installed packages by name, in the order of their names.

    Raises:
        ConfigurationError: One can't be loaded; names it. A gateway that would leave out a hook
            that blocks prompts must not start.
    """
    found = entry_points(group=GROUP) if plugins is None else plugins
    hooks: dict[str, Hook] = {}
    for plugin in sorted(found, key=lambda one: one.name):
        if plugin.name in hooks:
            raise ConfigurationError(f"Two packages have a hook called {plugin.name!r}.")
        try:
            hook = plugin.load()()
        except Exception as error:
            # Whatever a plug-in raises, the operator must learn which one it was.
            raise ConfigurationError(
                f"The hook {plugin.name!r} cannot be loaded: {type(error).__name__}: {error!s:.500}"
            ) from error
        if not isinstance(hook, Hook):
            raise ConfigurationError(
                f"The hook {plugin.name!r} is no gateway.hooks.hook.Hook, but {type(hook).__name__}"
            )
        hooks[plugin.name] = hook
    return hooks


class HookRunner:
    """Calls hooks, one after the other.

    Args:
        hooks: By name.
        timeout_s: For each call.
        count: Counts calls.
    """

    def __init__(self, hooks: Mapping[str, Hook], timeout_s: float, count: Count) -> None:
        self._hooks = hooks
        self._timeout_s = timeout_s
        self._count = count
        self._threads = ThreadPoolExecutor(NUM_THREADS, "hook")

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def find(self, name: str) -> Hook | None:
        """The hook of this name."""
        return self._hooks.get(name)

    async def start(self) -> None:
        """Start all.

        Raises:
            ConfigurationError: One couldn't.
        """
        for name, hook in self._hooks.items():
            try:
                await self._result(hook.start, START_TIMEOUT_S)
            except Exception as error:
                raise ConfigurationError(
                    f"The hook {name!r} didn't start: {type(error).__name__}: {error!s:.500}"
                ) from error
            _logger.info("the hook %s sees requests", name)

    async def stop(self) -> None:
        """Stop all; what goes wrong is logged."""
        for name, hook in self._hooks.items():
            try:
                await self._result(hook.stop, self._timeout_s)
            except Exception:
                _logger.exception("the hook %s didn't stop well", name)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def refine(self, request: HookRequest) -> None:
        """Let every hook look at a request, and change its body.

        Raises:
            RefusedByHookError: One refused it.
            GatewayError: One failed, or took too long.
        """
        try:
            for name, hook in self._hooks.items():
                await self._refine(name, hook, request)
        finally:  # those of a request that is refused are told as well
            tags: object = request.tags
            items = list(tags.items())[:MAX_TAGS] if isinstance(tags, dict) else []
            request.tags = {
                str(key)[:MAX_TAG_CHARACTERS]: str(value)[:MAX_TAG_CHARACTERS]
                for key, value in items
            }

    async def answer(self, name: str, call: HookCall) -> HookAnswer | None:
        """Have a hook answer a route of its own; None where it has none.

        Raises:
            GatewayError: It failed, or took too long.
        """
        hook = self._hooks.get(name)
        if hook is None or type(hook).answer is Hook.answer:
            return None
        answer: HookAnswer | None = await self._call(name, hook.answer, call)
        if answer is not None:
            self._check(name, answer, HookAnswer)
        return answer

    async def _refine(self, name: str, hook: Hook, request: HookRequest) -> None:
        if type(hook).refine_request is not Hook.refine_request:
            refusal = await self._call(name, hook.refine_request, request)
            if refusal is not None:
                self._check(name, refusal, Refusal)
                self._check_score(name, refusal.risk_score)
                self._count(name, "refused")
                reason = str(refusal.reason)[:MAX_REASON_CHARACTERS]
                raise RefusedByHookError(reason, refusal.risk_score)
        if type(hook).refine_sampling is not Hook.refine_sampling:
            body = request.body
            sampling = {field: body[field] for field in SAMPLING_FIELDS & body.keys()}
            before = set(sampling)
            await self._call(name, hook.refine_sampling, request, sampling)
            for gone in before - sampling.keys():
                body.pop(gone, None)
            body.update(sampling)

    async def _call(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            result = await self._result(method, self._timeout_s, *arguments)
        except TimeoutError as error:
            self._count(name, "timeout")
            _logger.error("the hook %s took over %g seconds", name, self._timeout_s)
            raise _failed(name) from error
        except Exception as error:
            self._count(name, "failed")
            _logger.exception("the hook %s failed", name)
            raise _failed(name) from error
        self._count(name, "ok")
        return result

    def _check(self, name: str, value: object, kind: type[Any]) -> None:
        if not isinstance(value, kind):
            self._count(name, "failed")
            _logger.error("the hook %s returned no %s: %.100r", name, kind.__name__, value)
            raise _failed(name)

    def _check_score(self, name: str, score: object) -> None:
        if score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
            self._count(name, "failed")
            _logger.error("the hook %s gave a risk of %.100r, which is not 0 to 1", name, score)
            raise _failed(name)

    async def _result(self, method: Callable[..., Any], timeout_s: float, *arguments: Any) -> Any:
        """What a hook's method returns, whichever way it is written.

        A thread can't be stopped: one that takes too long goes on, and nobody waits for it.
        """
        async with asyncio.timeout(timeout_s):
            if inspect.iscoroutinefunction(method):
                return await method(*arguments)
            call = partial(contextvars.copy_context().run, method, *arguments)
            result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
            if isinstance(result, Awaitable):
                return await result
            return result


def _failed(name: str) -> GatewayError:
    return GatewayError(f"The hook `{name}` of this server failed; the request was not answered.")
