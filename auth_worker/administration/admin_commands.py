"""The admin commands of gateways: what each writes or reads, and its answer once that is done."""

from collections.abc import Callable
from typing import Any

from msgspec import structs

from auth_worker.administration import old_commands
from auth_worker.administration.actors import check_page
from auth_worker.administration.kept_answers import claim_row, keep_row
from auth_worker.administration.key_administration import Administration
from auth_worker.administration.reports import Reports
from auth_worker.administration.resource_administration import ResourceAdministration
from auth_worker.clock import Clock
from auth_worker.decisions.authority import Authority
from auth_worker.errors import AuthError, RefusedError
from auth_worker.records.operations import (
    AuditEntry,
    AuditRows,
    ClaimedAnswer,
    KeyCounts,
    KeyPage,
    Operation,
    Reading,
    ReadKeys,
    ResourcePage,
    Result,
    UsagePage,
)
from auth_worker.storage.backlog import OnDone
from auth_worker.storage.committer import Committer
from protocol.errors import ErrorCode, PenstockError
from protocol.wire.messages import (
    Actor,
    AnswerClaimed,
    AnswerKept,
    AuditPage,
    ChangeKeyStatus,
    ChangeResource,
    ClaimAnswer,
    CountKeys,
    CreateKey,
    Failure,
    FindKeys,
    FindResources,
    KeepAnswer,
    KeyDetails,
    Keys,
    KeysCounted,
    KeysFound,
    ListKeys,
    MakeKey,
    MakeResource,
    Message,
    ReadAudit,
    ReadStanding,
    ReadUsage,
    ResourcesFound,
    RevokeKey,
    RotateKey,
    SetMember,
    UpdateKey,
    UpdateResource,
    UsageFound,
)

RETRY_AFTER_S = 2.0

OldCommand = CreateKey | ListKeys | RevokeKey
Report = ReadUsage | ReadStanding
ResourceCommand = MakeResource | UpdateResource | ChangeResource | SetMember | FindResources
AdminCommand = (
    OldCommand
    | ResourceCommand
    | Report
    | MakeKey
    | UpdateKey
    | RotateKey
    | ChangeKeyStatus
    | FindKeys
    | CountKeys
    | ReadAudit
    | ClaimAnswer
    | KeepAnswer
)
"""What an administrator asks for; the first three are of gateways before 1.3."""

Answer = Callable[[Message], None]


class AdminCommands:
    """Turns each admin command into one operation and the answer to its result.

    Args:
        administration: Judges those on keys and the audit log.
        resources: Judges those on users, teams, limits and prices.
        authority: Is told of deleted keys and of refusals.
        committer: Asked whether anything may be written.
        clock: For the times of refusals.
        before_reading: Called before keys are read, so that what is due is counted.
        seal_key_of: What seals the kept answers of a principal without a secret of its own.
    """

    def __init__(
        self,
        administration: Administration,
        resources: ResourceAdministration,
        authority: Authority,
        *,
        committer: Committer,
        clock: Clock,
        before_reading: Callable[[], None],
        seal_key_of: Callable[[str], bytes],
    ) -> None:
        self._administration = administration
        self._resources = resources
        self._reports = Reports(authority, clock)
        self._authority = authority
        self._committer = committer
        self._clock = clock
        self._before_reading = before_reading
        self._seal_key_of = seal_key_of

    def prepare(self, command: AdminCommand, answer: Answer) -> tuple[Operation, OnDone] | None:
        """What to make durable, and what to do then; None when it was answered already.

        While the disk is stuck nothing is taken in; only what closes a key holds at once even so.
        """
        if not _closes(command) and not self._committer.is_healthy:
            answer(_stuck(command.request_id))
            return None
        try:
            operation, on_done = self._operation(command, answer)
        except RefusedError as error:
            if self._committer.is_healthy:
                self._note_refusal(command, error)
            answer(failure_of(command.request_id, error))
            return None
        if self._committer.is_full:
            answer(_stuck(command.request_id))
            return None
        return operation, on_done

    def _operation(self, command: AdminCommand, answer: Answer) -> tuple[Operation, OnDone]:
        administration = self._administration
        on_done = self._answering(command, answer)
        if isinstance(command, ResourceCommand):
            prepared = self._resources.prepare(command)

            def on_resources_done(result: Result) -> None:
                self._resources.done(prepared, result)
                on_done(result)

            return prepared, on_resources_done
        match command:
            case ClaimAnswer():
                return claim_row(command, self._authority.keys, self._clock), on_done
            case KeepAnswer():
                return keep_row(command, self._authority.keys, self._clock), on_done
            case ReadStanding():
                return self._reports.standing(command), self._telling(command, answer)
            case MakeKey() | CreateKey():
                as_now = (
                    old_commands.make_key(command) if isinstance(command, CreateKey) else command
                )
                addition = administration.make(as_now)

                def on_added(result: Result) -> None:
                    if isinstance(result, KeyPage):
                        administration.added(addition.key, result.records[0].key_id)
                    on_done(result)

                return addition, on_added
            case UpdateKey():
                return administration.update(command), on_done
            case RotateKey():
                return administration.rotate(command), on_done
            case RevokeKey():
                return administration.change_status(old_commands.revoke_key(command)), on_done
            case ChangeKeyStatus():
                operation = administration.change_status(command)
                if command.action == "delete":
                    self._authority.forget(command.key_id)
                    self._resources.forget_holder("key", command.key_id)
                return operation, on_done
            case _:
                return self._reading(command), on_done

    def _telling(self, command: ReadStanding, answer: Answer) -> OnDone:
        """How it stands is told of the moment in which the key's record was read."""

        def on_done(result: Result) -> None:
            try:
                answer(self._reports.told(command, result))
            except AuthError as error:
                answer(failure_of(command.request_id, error))

        return on_done

    def _reading(self, command: ListKeys | FindKeys | CountKeys | ReadAudit | ReadUsage) -> Reading:
        if isinstance(command, ReadUsage):
            self._before_reading()
            return self._reports.usage(command)
        if isinstance(command, ReadAudit):
            return self._administration.read_audit(command)
        self._before_reading()
        if isinstance(command, FindKeys):
            return self._administration.find(command)
        if isinstance(command, CountKeys):
            return self._administration.count(command)
        check_page(command.limit)
        return ReadKeys(command.after_key_id, command.limit)

    def _note_refusal(self, command: AdminCommand, error: RefusedError) -> None:
        actor = _actor(command)
        self._authority.refusals.note(
            AuditEntry(
                at_ms=int(self._clock.wall_s() * 1000),
                actor_key_id=actor.key_id[:200],
                action="change_refused",
                subject=_subject(command)[:200],
                detail={
                    "command": type(command).__struct_config__.tag,
                    "code": str(error.code),
                    "param": error.param,
                },
                outcome="refused",
                address=actor.address[:64],
                request_id=command.request_id[:64],
            )
        )

    def _claimed(self, command: ClaimAnswer, result: ClaimedAnswer) -> AnswerClaimed:
        actor_id = command.actor.key_id
        has_secret = self._authority.keys.get(actor_id) is not None
        return AnswerClaimed(
            request_id=command.request_id,
            state=result.state,
            answer=result.answer,
            seal_key=b"" if has_secret else self._seal_key_of(actor_id),
            age_s=result.age_ms / 1000 if result.state == "running" else None,
        )

    def _keys(self, command: AdminCommand, page: KeyPage) -> Message:
        if isinstance(command, OldCommand):
            return Keys(
                request_id=command.request_id,
                records=tuple(map(old_commands.key_record, page.records)),
                has_more=page.has_more,
            )
        records = tuple(map(self._with_closure, page.records))
        return KeysFound(request_id=command.request_id, keys=records, has_more=page.has_more)

    def _with_closure(self, record: KeyDetails) -> KeyDetails:
        """With what its user or team, as they are now, keep the key from."""
        key = self._authority.keys.get(record.key_id)
        if key is None or not key.closed_by:
            return record
        return structs.replace(record, closed_by=key.closed_by)

    def _answering(self, command: AdminCommand, answer: Answer) -> OnDone:
        request_id = command.request_id

        def on_done(result: Result) -> None:
            if isinstance(result, KeyPage):
                answer(self._keys(command, result))
            elif isinstance(result, KeyCounts):
                fields: dict[str, Any] = {
                    name: getattr(result, name) for name in KeyCounts.__dataclass_fields__
                }
                answer(KeysCounted(request_id=request_id, **fields))
            elif isinstance(result, ResourcePage):
                answer(
                    ResourcesFound(
                        request_id=request_id,
                        resources=result.resources,
                        has_more=result.has_more,
                    )
                )
            elif isinstance(result, UsagePage):
                answer(
                    UsageFound(request_id=request_id, rows=result.rows, has_more=result.has_more)
                )
            elif isinstance(result, ClaimedAnswer) and isinstance(command, ClaimAnswer):
                answer(self._claimed(command, result))
            elif result is None and isinstance(command, KeepAnswer):
                answer(AnswerKept(request_id=request_id))
            elif isinstance(result, AuditRows):
                answer(
                    AuditPage(
                        request_id=request_id, entries=result.entries, has_more=result.has_more
                    )
                )
            else:
                no_answer = AuthError("The auth worker gave no answer.")
                error = result if isinstance(result, AuthError) else no_answer
                answer(failure_of(request_id, error))

        return on_done


def _actor(command: AdminCommand) -> Actor:
    if isinstance(command, ListKeys):
        return Actor(key_id="")
    if isinstance(command, CreateKey | RevokeKey):
        return Actor(key_id=command.actor_key_id)
    if isinstance(command, ReadAudit | ReadUsage | ReadStanding):
        return command.reader
    return command.actor


def _subject(command: AdminCommand) -> str:
    """What it is about: the id of a key, a team or another resource, as far as there is one."""
    for name in ("key_id", "resource_id", "team_id"):
        if getattr(command, name, ""):
            return str(getattr(command, name))
    return ""


def _closes(command: AdminCommand) -> bool:
    """Whether it ends somebody's access."""
    if isinstance(command, ChangeKeyStatus):
        return command.action in ("revoke", "suspend")
    if isinstance(command, ChangeResource):
        return command.action == "suspend"
    return isinstance(command, RevokeKey)


def _stuck(request_id: str) -> Failure:
    return Failure(
        request_id=request_id,
        code=ErrorCode.WORKER_UNAVAILABLE,
        message="The auth worker's database takes no writes at the moment. Try again soon.",
        retry_after_s=RETRY_AFTER_S,
    )


def failure_of(request_id: str, error: PenstockError) -> Failure:
    """The answer to a command that failed."""
    return Failure(request_id=request_id, code=error.code, message=error.message, param=error.param)
