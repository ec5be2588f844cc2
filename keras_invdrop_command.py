"""The command `keras-invdrop`, from its first moment on.

What the command does is in `keras_invdrop.experiments.command_line`, which
imports Keras. That takes seconds and may fail, so this module stands beside
the package and imports none of it: an interruption (Ctrl-C) and a package that
is missing are said in one sentence, whenever they come.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress

# What an interrupted command has to do, and to say, before it ends.
_endings: list[Callable[[], str | None]] = []


@contextmanager
def when_interrupted(ending: Callable[[], str | None]) -> Iterator[None]:
    """In the block, `ending` is called if the command is interrupted.

    Args:
        ending: It is called in another thread, the last one given first, and
            may return the rest of the sentence that the user is told.
    """
    _endings.append(ending)
    try:
        yield
    finally:
        _endings.remove(ending)


def _end() -> None:
    """Says that the command was interrupted, and ends its process."""
    said = ["interrupted"]
    for ending in reversed(_endings):
        with suppress(Exception):  # Nothing keeps the process from its end.
            said += filter(None, [ending()])
    text = f"keras-invdrop: {'; '.join(said)}\n"
    if sys.stderr.isatty():
        text = f"\n{text}"  # The terminal has written ^C.
    os.write(2, text.encode())
    # Python's own way out has crashed in threads of the backends.
    os._exit(128 + signal.SIGINT)


def _end_when_interrupted() -> None:
    """Ends the process on Ctrl-C, whatever it is doing.

    A `KeyboardInterrupt` would be raised wherever Python happens to be: in
    imports, which may swallow it, and in code that the backends call, which
    may crash. A thread that waits for the signal has none of that, and need
    not wait until a program is compiled. The signal stays blocked in child
    processes, which end with this one.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return  # in the background of a shell
    if not hasattr(signal, "sigwait"):  # Windows
        signal.signal(signal.SIGINT, lambda *_: _end())
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        _end()

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Runs the command, or says what to install for it."""
    _end_when_interrupted()
    try:
        from keras_invdrop._extras import missing
    except ImportError as error:  # Keras' backend is missing.
        sys.exit(f"keras-invdrop: {error}")
    try:
        from keras_invdrop.experiments.command_line import main as run
    except ModuleNotFoundError as error:
        error = missing("The command", error.name, "experiments")
        sys.exit(f"keras-invdrop: {error}")
    run()
