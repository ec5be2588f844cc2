"""The entry point of the command `keras-invdrop`.

`keras_invdrop.experiments.command_line` implements the command and imports
Keras. That import takes seconds and may fail, so this module stands outside
the package and imports none of it at first: an interruption (Ctrl-C) or a
missing package gets a one-sentence message at any time.
"""

import os
import signal
import sys
import threading
from contextlib import suppress


def _end() -> None:
    """Prints that the command was interrupted, and ends the process."""
    said = ["interrupted"]
    # Absent until the package is imported, which this thread must not do.
    package = sys.modules.get("keras_invdrop._interruptions")
    for ending in reversed(getattr(package, "endings", [])):
        with suppress(Exception):  # Errors must not keep the process alive.
            said += filter(None, [ending()])
    text = f"keras-invdrop: {'; '.join(said)}\n"
    if sys.stderr.isatty():
        text = f"\n{text}"  # The terminal has written ^C.
    os.write(2, text.encode())
    # Python's regular exit has crashed in threads of the backends.
    os._exit(128 + signal.SIGINT)


def _end_when_interrupted() -> None:
    """Ends the process on Ctrl-C at any time.

    Python would raise `KeyboardInterrupt` in whatever code is running:
    imports may swallow the exception, and code that the backends call may
    crash. A thread that waits for the signal avoids both and responds even
    during a compilation. The signal stays blocked in child processes, which
    end with this process.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return  # a background job of a shell
    if not hasattr(signal, "sigwait"):  # Windows
        signal.signal(signal.SIGINT, lambda *_: _end())
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        _end()

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Runs the command, or tells the user which package to install."""
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
