"""What this gateway can do at the moment, for probes and for people."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.housekeeping import Housekeeping
from gateway.ledger.outbox import Outbox
from gateway.workers.auth import AuthLink
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.parsers import ParserLink
from protocol.wire.peers import Peer


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """One look.

    Attributes:
        status: `ready`, `degraded` (a part is missing, but requests are served), `starting` or
            `draining`.
        can_serve: Whether a new request for some model can be served here.
        missing: What isn't there, in words.
        models: Every configured or known model: whether an engine takes its work, and under which
            fingerprints it is served.
        workers: Connected workers by role, model and phase; without names, which are nobody's
            business.
    """

    status: str
    can_serve: bool
    missing: tuple[str, ...]
    models: tuple[dict[str, object], ...]
    workers: tuple[dict[str, object], ...]


class Readiness:
    """Looks at the parts that a request needs.

    Args:
        models: Configured names.
        directory: The engines.
        auth: The auth workers.
        parsers: The parser workers.
        outbox: Whether a settlement has a place.
        housekeeping: Whether periodic work is done.
        peers: Every connected worker.
        is_draining: Whether nothing new is taken.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        *,
        directory: EngineDirectory,
        auth: AuthLink,
        parsers: ParserLink,
        outbox: Outbox,
        housekeeping: Housekeeping,
        peers: Callable[[], Iterable[Peer]],
        is_draining: Callable[[], bool],
    ) -> None:
        self._models = models
        self._directory = directory
        self._auth = auth
        self._parsers = parsers
        self._outbox = outbox
        self._housekeeping = housekeeping
        self._peers = peers
        self._is_draining = is_draining

    def look(self) -> ReadinessReport:
        """What there is now."""
        models = self._models or tuple(sorted(self._directory.models()))
        serving = [name for name in models if self._directory.is_serving(name)]
        missing = [f"engine of model {name}" for name in models if name not in serving]
        if not models:
            missing.append("engine")
        blocking = self._blocking()
        missing += blocking
        if not self._parsers.is_ready:
            missing.append("toolparser worker")
        missing += _named(self._housekeeping.broken(is_essential=False))
        can_serve = bool(serving) and not blocking and not self._is_draining()
        if self._is_draining():
            status = "draining"
        elif not can_serve:
            status = "starting"
        else:
            status = "degraded" if missing else "ready"
        return ReadinessReport(
            status, can_serve, tuple(missing), self._model_rows(models), self._worker_rows()
        )

    def _blocking(self) -> list[str]:
        """What keeps every request from being served."""
        found = [] if self._auth.is_ready else ["auth worker"]
        if not self._outbox.can_keep:
            found.append("room for settlements (the disk of PENSTOCK_DATA_DIR, or the auth worker)")
        return found + _named(self._housekeeping.broken())

    def _model_rows(self, models: Iterable[str]) -> tuple[dict[str, object], ...]:
        return tuple(
            {
                "model": name,
                "ready": self._directory.is_serving(name),
                "fingerprints": list(self._directory.fingerprints(name)),
            }
            for name in models
        )

    def _worker_rows(self) -> tuple[dict[str, object], ...]:
        return tuple(
            {
                "role": peer.role,
                "model": peer.engine.model if peer.engine is not None else None,
                "phase": peer.phase,
                "fraction": peer.fraction,
                "detail": peer.detail,
            }
            for peer in self._peers()
        )


def _named(chores: Iterable[str]) -> list[str]:
    return [f"housekeeping: {name}" for name in chores]
