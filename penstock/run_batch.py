"""`penstock run-batch`: a file of requests in, a file of answers out, in OpenAI's batch format.

It is a client of a server's `/v1/files` and `/v1/batches`, which check the lines, answer them and
write down what became of each; without `--url` the server is one of its own. So what a line may be,
what its answer looks like, and that a kill loses nothing is said in one place, `gateway/batches`.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from penstock.api_client import ApiClient, read_admin_key
from penstock.batch_client import BatchClient
from penstock.batch_input import BatchInput, parts_of, read_input
from penstock.batch_output import BatchOutput
from penstock.batch_run import BatchCounts, BatchRun, Watch, check_lines
from penstock.config import ServeSettings
from penstock.errors import CommandError, UsageError
from penstock.private_server import private_settings
from penstock.run_folder import RunFolder
from penstock.serve import running_server
from penstock.terminal import visible_line

DEFAULT_CONCURRENCY: Final = 32
_READ_TIMEOUT_S: Final = 60.0
"""What is asked here is answered from a disk; a server that is silent for so long hangs."""
_COLUMNS: Final = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())


def run(
    input_path: Path,
    output_path: Path,
    *,
    url: str | None,
    settings: ServeSettings,
    api_key: str | None,
    concurrency: int | None,
    console: Console,
) -> int:
    """Run a whole file, at a running server or at one that is started for it.

    Args:
        input_path: Requests.
        output_path: Answers; what an earlier run answered well is kept and not asked again.
        url: A running server; None starts one of this machine with `settings`.
        settings: Of that server.
        api_key: Of the running server.
        concurrency: Requests under way at a time, of the server that is started.
        console: For progress.

    Returns:
        The exit code: 0 when every request has a good answer, 1 otherwise.

    Raises:
        CommandError: The files are wrong, the server can't be used, or it was told to stop.
    """
    if url is not None and concurrency is not None:
        raise UsageError(
            "--concurrency is of the server that is started here; the one of --url has its own "
            "setting, PENSTOCK_MAX_BATCH_REQUESTS."
        )
    source = read_input(input_path)
    with BatchOutput(output_path) as output:
        folder = RunFolder(output.path)
        # Whatever is wrong with the output is said before a model is loaded for nothing.
        left = [line for line in source.lines if line.custom_id not in output.answered]
        counts: BatchCounts | None = BatchCounts(len(source.lines), len(source.lines))
        if left and url is not None:
            counts = _run_at(url, api_key, source, output, folder, console)
        elif left:
            check_lines(source, parts_of(left), output.path)
            counts = _run_at_own_server(
                source, output, settings, folder, concurrency or DEFAULT_CONCURRENCY, console
            )
        if counts is None:
            return 1
        output.put_in_order(line.custom_id for line in source.lines if line.custom_id is not None)
        folder.remove()
    return _told(counts, console)


def _told(counts: BatchCounts, console: Console) -> int:
    num_left = counts.total - counts.skipped - counts.succeeded - counts.failed
    none = f", {num_left} have no answer" if num_left else ""
    console.print(
        f"{counts.succeeded} answered, {counts.failed} failed, "
        f"{counts.skipped} were answered before{none}",
        highlight=False,
    )
    return 0 if counts.succeeded + counts.skipped == counts.total else 1


@dataclass(frozen=True)
class _Server:
    """A server that is asked.

    Attributes:
        default_model: For bodies that name none.
        was_reached: Whether it is known to be there.
    """

    url: str
    api_key: str | None
    default_model: str | None = None
    was_reached: bool = False


def _run_at_own_server(
    source: BatchInput,
    output: BatchOutput,
    settings: ServeSettings,
    folder: RunFolder,
    concurrency: int,
    console: Console,
) -> BatchCounts | None:
    """Start a server for the batch; None when it was told to stop before it served.

    What the server has of the batch stays in its folder until the end, whatever kills it.
    """
    folder.make()
    folder.wait_until_free(partial(_say, console))
    given = {
        "PENSTOCK_MAX_BATCH_REQUESTS": str(concurrency),
        # Nobody else asks it anything, so the next lines may wait in the engine.
        "PENSTOCK_BATCH_SHARE": "2",
    }
    private = private_settings(settings, folder.path, given)
    with running_server(private, console, is_private=True) as (url, supervisor):
        if url is None:
            return None
        at_once = "Stopped at once; run the same command to continue."
        with _ended_by_signals(supervisor.signals, at_once) as check:

            def poll() -> None:
                check()
                supervisor.poll()

            watch = Watch(poll, lambda: supervisor.stop_requested)
            model = settings.models[0].name if len(settings.models) == 1 else None
            key = read_admin_key(folder.path / "admin.key", folder.path)
            server = _Server(url, key, model, was_reached=True)
            return _run_with_bar(server, source, output, folder, watch, console)


def _run_at(
    url: str,
    api_key: str | None,
    source: BatchInput,
    output: BatchOutput,
    folder: RunFolder,
    console: Console,
) -> BatchCounts:
    folder.make()
    received: list[int] = []
    at_once = (
        "Stopped at once; the server ends what it has begun, and the same command fetches its "
        "answers and continues."
    )
    with _ended_by_signals(received, at_once) as check:
        is_told = False

        def poll() -> None:
            nonlocal is_told
            check()
            if received and not is_told:
                is_told = True
                _say(console, "Stopping; a second Ctrl-C or SIGTERM ends this at once.")

        watch = Watch(poll, lambda: bool(received))
        return _run_with_bar(_Server(url, api_key), source, output, folder, watch, console)


@contextmanager
def _ended_by_signals(received: list[int], at_once: str) -> Iterator[Callable[[], None]]:
    """Have SIGINT and SIGTERM noted; the second one raises, whatever is waited for.

    Args:
        received: Takes the signals.
        at_once: Says what it means to end so.

    Yields:
        What raises after two signals: an exception of a handler is lost where Python ignores those
        of the code that it interrupts.
    """

    def check() -> None:
        if len(received) > 1:
            raise CommandError(at_once)

    def on_signal(number: int, frame: object) -> None:
        received.append(number)
        # A system call goes on after a handler that returns, such as the read of an answer.
        check()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(console: Console, line: str) -> None:
    """Tell something in between; it may hold a server's words."""
    console.print(visible_line(line), highlight=False, markup=False, soft_wrap=True)


def _run_with_bar(
    server: _Server,
    source: BatchInput,
    output: BatchOutput,
    folder: RunFolder,
    watch: Watch,
    console: Console,
) -> BatchCounts:
    with (
        ApiClient(server.url, server.api_key, read_timeout_s=_READ_TIMEOUT_S) as client,
        Progress(*_COLUMNS, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("requests", total=len(source.lines))

        def show(counts: BatchCounts) -> None:
            bar.update(task, completed=counts.skipped + counts.succeeded + counts.failed)

        run = BatchRun(
            source,
            output,
            BatchClient(
                client,
                watch.pause,
                say=partial(_say, console),
                was_reached=server.was_reached,
            ),
            watch,
            run_id=folder.run_id(),
            default_model=server.default_model,
            on_progress=show,
        )
        run.run()
    counts = run.counts
    if watch.is_stopping() and counts.skipped + counts.succeeded + counts.failed < counts.total:
        _told(counts, console)
        raise CommandError("Stopped; run the same command to continue.")
    return counts
