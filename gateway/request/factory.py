"""Makes requests of every kind, each with just the parts that its life and its work need."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gateway.errors import (
    DeadlineExceededError,
    GatewayError,
    ShuttingDownError,
    WorkerUnavailableError,
)
from gateway.ledger.outbox import Outbox
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import IdentityTable
from gateway.request.choices.launcher import EnginePool
from gateway.request.jobs.job import GenerationJob
from gateway.request.jobs.model_names import ModelNames
from gateway.request.kinds.generation import GenerationWork
from gateway.request.kinds.questions import AnswerT, Question, QuestionT, QuestionWork
from gateway.request.kinds.text_parse import ParseWork
from gateway.request.kinds.tool_call import ToolWork
from gateway.request.leases.takes import Takes
from gateway.request.lifecycle.request import Request
from gateway.request.lifecycle.sessions import SessionTable
from gateway.request.lifecycle.work import Work
from gateway.telemetry.metrics import Metrics
from gateway.tools.tool_servers import ToolRunner
from gateway.workers.auth import AuthLink
from gateway.workers.parsers import ParserLink
from protocol.wire.messages import OpenParse, Scope


@dataclass(frozen=True, slots=True)
class RequestRules:
    """The settings that requests live by.

    Attributes:
        timeout_s: How long a request may take.
        slice_tokens: What a choice reserves at a time when the client set no limit.
        max_answer_bytes: Answers estimated larger are refused.
        thinking_budgets: Tokens of reasoning by effort.
        allows_templates: Whether requests may bring a chat template.
        models: Names that are served sooner or later.
        scopes: What a key must be good for, by route template.
    """

    timeout_s: float
    slice_tokens: int
    max_answer_bytes: int
    thinking_budgets: Mapping[str, int]
    allows_templates: bool
    models: tuple[str, ...]
    scopes: Mapping[str, Scope]


class RequestFactory:
    """Makes requests; one a gateway.

    Args:
        auth: Decides what callers may use.
        outbox: Keeps settlements.
        identities: Who callers were a moment ago.
        sessions: Every request under way.
        pool: The engines.
        parsers: The parser workers.
        metrics: Where work is counted.
        names: Which model is meant, and which one generates.
        rules: From the settings.
        clock: Monotonic seconds.

    Attributes:
        is_draining: Whether nothing new is begun.
        series: What makes several requests one after another; a drain waits for all of them.
    """

    def __init__(
        self,
        *,
        auth: AuthLink,
        outbox: Outbox,
        identities: IdentityTable,
        sessions: SessionTable,
        pool: EnginePool,
        parsers: ParserLink,
        metrics: Metrics,
        names: ModelNames,
        rules: RequestRules,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._auth = auth
        self._outbox = outbox
        self._identities = identities
        self._sessions = sessions
        self._pool = pool
        self._parsers = parsers
        self._metrics = metrics
        self._names = names
        self._rules = rules
        self._clock = clock
        self.is_draining = False
        self.series = SessionTable()

    def generation(
        self,
        job: GenerationJob,
        caller: Caller,
        request_id: str,
        takes: Takes | None = None,
        *,
        model: str | None = None,
        is_continued: bool = False,
    ) -> tuple[Request, GenerationWork]:
        """Chat or a completion.

        Args:
            job: What is asked for; its model may be an alias.
            caller: Who asks.
            request_id: Made by the gateway.
            takes: For one that may be made several times.
            model: Who generates; None is whom the names choose.
            is_continued: Whether it belongs to what has begun, which a drain lets finish.
        """
        if model is None:
            model = self.model_of(job)
        work = GenerationWork(
            job if model == job.model else job.changed(model=model),
            asked_model=job.model,
            pool=self._pool,
            parsers=self._parsers,
            metrics=self._metrics,
            configured_models=self._rules.models,
            slice_tokens=self._rules.slice_tokens,
            max_answer_bytes=self._rules.max_answer_bytes,
            thinking_budgets=self._rules.thinking_budgets,
            allows_templates=self._rules.allows_templates,
            clock=self._clock,
        )
        return self._request(work, caller, request_id, takes, is_continued=is_continued), work

    def model_of(self, job: GenerationJob) -> str:
        """Who would generate now, by the names and who is there."""
        return self._names.choose(job.model, names_token_ids=job.names_token_ids)

    def longer_model(self, name: str, tried: str) -> str | None:
        """The first fallback with a longer context than the model that a prompt was too long for.

        Args:
            name: As the client asked; its request holds no token ids.
            tried: The model that refused it.
        """
        return self._names.longer(name, tried)

    def question(
        self,
        question: Question[QuestionT, AnswerT],
        caller: Caller,
        request_id: str,
        *,
        is_continued: bool = False,
    ) -> tuple[Request, QuestionWork[QuestionT, AnswerT]]:
        """Embeddings, tokens of a text, or the text of tokens.

        Args:
            question: What is asked.
            caller: Who asks.
            request_id: Made by the gateway.
            is_continued: Whether it belongs to what has begun, which a drain lets finish.
        """
        asked = question.model
        question = replace(question, model=self._names.served(asked))
        work = QuestionWork(
            question,
            asked_model=asked,
            pool=self._pool,
            metrics=self._metrics,
            configured_models=self._rules.models,
        )
        return self._request(work, caller, request_id, is_continued=is_continued), work

    def parse(
        self, endpoint: str, opening: OpenParse, text: str, caller: Caller
    ) -> tuple[Request, ParseWork]:
        """A text to be told apart; the session's id is the request's."""
        work = ParseWork(endpoint, opening, text, self._parsers)
        return self._request(work, caller, opening.request_id), work

    def tool(
        self,
        endpoint: str,
        toolbox: ToolRunner,
        name: str,
        arguments_json: str,
        caller: Caller,
        request_id: str,
        *,
        is_continued: bool = False,
    ) -> tuple[Request, ToolWork]:
        """A call of one of this server's tools."""
        work = ToolWork(endpoint, toolbox, name, arguments_json, caller.name)
        return self._request(work, caller, request_id, is_continued=is_continued), work

    def _request(
        self,
        work: Work,
        caller: Caller,
        request_id: str,
        takes: Takes | None = None,
        *,
        is_continued: bool = False,
    ) -> Request:
        return Request(
            work,
            request_id=request_id,
            caller=caller,
            scope=self._rules.scopes[work.endpoint],
            auth=self._auth,
            outbox=self._outbox,
            identities=self._identities,
            sessions=self._sessions,
            check_open=self._outbox.check_room if is_continued else self._check_open,
            too_late=self._too_late,
            timeout_s=self._rules.timeout_s,
            clock=self._clock,
            takes=takes,
        )

    def _check_open(self) -> None:
        if self.is_draining:
            raise ShuttingDownError()
        self._outbox.check_room()

    def _too_late(self, model: str) -> GatewayError:
        limit_s = self._rules.timeout_s
        if model and not self._pool.directory.engines(model):
            return WorkerUnavailableError(
                f"No engine of the model `{model}` came back within the {limit_s:g} "
                "seconds that a request may take; please try again."
            )
        return DeadlineExceededError(f"The request took longer than {limit_s:g} seconds.")
