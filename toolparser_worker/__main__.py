"""Starts the parser worker: `python -m toolparser_worker`."""

from protocol.runtime import collector

if __name__ == "__main__":
    collector.start()

import logging
import sys
import time
from collections.abc import Mapping, Sequence

from protocol.errors import ConfigurationError
from protocol.runtime import logs, tracing
from protocol.runtime.allocator import return_large_blocks, trim_in_background
from protocol.runtime.lifetime import exit_with_parent
from protocol.wire import codec, worker_start
from protocol.wire.messages import Message, ParserCommand, ParserOffer
from protocol.wire.worker import Worker, WorkerSettings
from toolparser_worker.config import ParserSettings
from toolparser_worker.formats import NO_FORMAT, REASONING_FORMATS, TOOL_FORMATS
from toolparser_worker.handler import ParserHandler
from toolparser_worker.sessions import SessionStore

EXIT_FAILED = 1
_OPTIONS = {
    "endpoint": "PENSTOCK_TOOLPARSER_ENDPOINT",
    "log_level": "PENSTOCK_LOG_LEVEL",
}
_logger = logging.getLogger("penstock.toolparser")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parser worker; options win over the environment.

    Returns:
        The exit code: 0 clean, 1 when something stops the start or a gateway refuses us.
    """
    environ = worker_start.environment(
        "toolparser_worker",
        "Turns model text into content, reasoning and tool calls.",
        _OPTIONS,
        arguments,
    )
    logs.setup("toolparser")
    try:
        settings = ParserSettings.from_env(environ)
        logs.setup("toolparser", settings.log_level)
        tracing.setup("toolparser", environ, build=worker_start.build())
        return _serve(settings, environ)
    except ConfigurationError as error:
        _logger.error("%s", error.message)
        return EXIT_FAILED
    finally:
        tracing.close()


def _serve(settings: ParserSettings, environ: Mapping[str, str]) -> int:
    endpoints, security = worker_start.dialled(environ, "toolparser", settings.key_dir)
    exit_with_parent(environ)
    return_large_blocks()
    trim_in_background()

    def send(gateway_id: str, message: Message) -> None:
        worker.send(gateway_id, message)

    store = SessionStore(
        max_sessions=settings.max_sessions,
        idle_timeout_s=settings.session_timeout_s,
        clock=time.monotonic,
        max_tools_bytes=settings.max_tools_bytes,
    )
    handler = ParserHandler(store, send, lambda: worker.flush())
    worker: Worker[ParserCommand] = Worker(
        role="toolparser",
        decoder=codec.parser_command_decoder(),
        handler=handler,
        endpoints=endpoints,
        security=security,
        settings=WorkerSettings(drain_timeout_s=settings.drain_timeout_s),
        build=worker_start.build(),
        metrics=handler.metrics.registry,
        ready_file=settings.ready_file,
    )
    worker.start()
    worker.announce(
        ParserOffer(
            tool_formats=tuple(sorted([*TOOL_FORMATS, NO_FORMAT])),
            reasoning_formats=tuple(sorted([*REASONING_FORMATS, NO_FORMAT])),
        )
    )
    _logger.info(
        "parsing %d tool formats and %d reasoning formats",
        len(TOOL_FORMATS),
        len(REASONING_FORMATS),
    )
    collector.settle()
    return worker.wait()


if __name__ == "__main__":
    sys.exit(main())
