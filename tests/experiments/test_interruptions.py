"""Ctrl-C at any moment: one sentence, exit code 130, no traceback."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from warm import Program

pytestmark = pytest.mark.one_backend

TRAINING = (
    "reproduce", "table2/original/invariant", "--data=digits", "--width=0.02",
    "--epochs=100000", "--out=out",
)  # fmt: skip
LONGEST = 300  # seconds for one command, on a busy machine


# As in the installed script, workers that import it do not run it again.
COMMAND = """
from keras_invdrop_command import main

if __name__ == "__main__":
    main()
"""
SCREEN = {"COLUMNS": "100", "TERM": "xterm"}


def cold(terminal, *arguments, cwd):
    """The command in a process that has to import Keras."""

    def begin():
        # The terminal is its own, as that of a shell is, and Ctrl-C is for it,
        # even where the tests run in the background.
        os.login_tty(terminal)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=cwd,
        env=os.environ | SCREEN,
        preexec_fn=begin,
    )


def warm(terminal, *arguments, cwd):
    """The command in a process that has imported Keras."""
    program = cwd / "command.py"
    program.write_text(COMMAND)
    name = os.ttyname(terminal)
    return Program(program, *arguments, cwd=cwd, terminal=name, **SCREEN)


def interrupted(start, *arguments, when, directory):
    """Exit code and output of a command that gets Ctrl-C in a terminal.

    Args:
        start: Function that starts the command: `cold` or `warm`.
        when: Function of the output so far and the elapsed seconds.
    """
    ours, terminal = pty.openpty()
    process = start(terminal, *arguments, cwd=directory)
    begun, text, pressed = time.monotonic(), "", False
    while True:
        ended = process.poll() is not None
        if select.select([ours], [], [], 0.05)[0]:
            text += os.read(ours, 65536).decode(errors="replace")
        elif ended:
            break
        seconds = time.monotonic() - begun
        if not pressed and when(text, seconds):
            os.write(ours, b"\x03")
            pressed = True
        if seconds > LONGEST:
            process.kill()
            pytest.fail(f"after {LONGEST} s, pressed: {pressed}\n{text}")
    os.close(ours)
    os.close(terminal)
    return process.poll(), text


def check(code, text, sentence):
    assert code == 130, text
    assert "Traceback" not in text
    *_, last = text.splitlines()
    assert last == f"keras-invdrop: interrupted{sentence}"


def epochs_are_done(text, seconds):
    return re.search(r" [1-9]\d*/100000 ", text)


def test_interrupted_while_starting(tmp_path):
    """Ctrl-C while Keras is imported."""
    code, text = interrupted(
        cold,
        "tables",
        when=lambda text, seconds: seconds > 1,
        directory=tmp_path,
    )
    check(code, text, "")


@pytest.mark.parametrize(
    ("workers", "begun"),
    [
        (1, "compiling"),
        pytest.param(2, "waiting", marks=pytest.mark.thorough),
    ],
)
def test_interrupted_while_training(workers, begun, tmp_path):
    training = warm, *TRAINING, f"--seeds=1-{workers}", f"--workers={workers}"
    code, text = interrupted(
        *training, when=lambda text, _: begun in text, directory=tmp_path
    )
    check(
        code, text, "; no epoch was finished, so the same command begins anew"
    )
    assert not (tmp_path / "out").exists()
    goes_on = (
        "; the same command resumes after the last finished epoch, "
        "which is kept in out/"
    )
    code, text = interrupted(
        *training, when=epochs_are_done, directory=tmp_path
    )
    check(code, text, goes_on)
    assert list((tmp_path / "out").glob("*.npz"))
    # It does, and says so again before another epoch is done.
    code, text = interrupted(
        *training, when=lambda text, _: begun in text, directory=tmp_path
    )
    check(code, text, goes_on)


def test_an_ignored_interruption_stays_ignored(tmp_path):
    """A background command, which ignores Ctrl-C, keeps ignoring it."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "from keras_invdrop_command import main; "
        "signal.raise_signal(signal.SIGINT); main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0
    assert "keras-invdrop" in process.stdout
