"""No thread of a process dies silently: what escapes is logged and told to whoever ends it."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_logger = logging.getLogger("penstock.threads")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def watch_threads(on_death: Callable[[str], object]) -> None:
    """From now on an exception that escapes a thread of this process is logged and told.

    That includes what is no `Exception`: a panic of a native library, and a SystemExit, which
    Python would ignore. The main thread is not concerned: its exceptions end the process anyway.

    Args:
        on_death: Called in the dying thread with the thread's name.
    """

    def hook(args: threading.ExceptHookArgs) -> None:
        name = "?" if args.thread is None else args.thread.name
        error = args.exc_value
        _logger.critical("the thread %s died", name, exc_info=error)
        on_death(name)

    threading.excepthook = hook


class WatchedPool(ThreadPoolExecutor):
    """A pool whose work nobody asks for its result.

    What escapes the work is handed to `threading.excepthook`, as it is in a thread of its own; a
    `ThreadPoolExecutor` would keep it in a future that nobody reads.
    """

    def submit(
        self,
        fn: Callable[Arguments, Result],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Future[Result]:
        """As `ThreadPoolExecutor.submit`."""

        def work(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return fn(*args, **kwargs)
            except BaseException as error:
                hook_args = (type(error), error, error.__traceback__, threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(hook_args))
                raise

        return super().submit(work, *args, **kwargs)
