"""A worker process for tests: announces itself, then sits in `wait` or is busy with a long call.

It grants everything, and says in `expires_s` how long the question may have waited unread.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from protocol.runtime.lifetime import exit_with_parent
from protocol.wire import codec
from protocol.wire.endpoints import dial_endpoints
from protocol.wire.messages import AuthCommand, AuthOffer, Authorize, Granted
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler


def main() -> int:
    """Run one worker until it ends.

    Arguments: `wait`; `busy` for a main thread that sits in C code and never comes back; `load` for
    a worker that loads until SIGUSR1.
    """
    exit_with_parent(os.environ)
    ready_file = os.environ.get("PENSTOCK_READY_FILE")
    # Before any thread starts, so that the signal waits for `sigwait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    handler = RecordingHandler[AuthCommand]()
    worker = Worker(
        role="auth",
        decoder=codec.auth_command_decoder(),
        handler=handler,
        endpoints=dial_endpoints(os.environ, "auth", secured=False),
        settings=WorkerSettings(
            heartbeat_interval_s=0.05,
            exit_grace_s=0.1,
            drain_timeout_s=float(os.environ.get("FAKE_DRAIN_TIMEOUT_S", "5")),
        ),
        ready_file=Path(ready_file) if ready_file else None,
    )

    def answer(gateway_id: str, command: AuthCommand) -> None:
        if isinstance(command, Authorize):
            granted = Granted(
                request_id=command.request_id,
                lease_id="",
                tenant="",
                key_id="",
                role="user",
                expires_s=worker.command_age_s(),
            )
            worker.send(gateway_id, granted)

    handler.answer = answer
    handler.unfinished = int(os.environ.get("FAKE_UNFINISHED", "0"))
    worker.start()
    if sys.argv[1] == "load":
        worker.set_phase("loading")
        signal.sigwait({signal.SIGUSR1})
    worker.announce(AuthOffer(epoch=1))
    while sys.argv[1] == "busy":
        # As a compiler would: no bytecode runs in this thread, and no lock is held.
        ctypes.CDLL(None).poll(None, 0, 600_000)
    return worker.wait()


if __name__ == "__main__":
    sys.exit(main())
