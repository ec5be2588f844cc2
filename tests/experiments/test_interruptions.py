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

pytestmark = pytest.mark.one_backend

TRAINING = (
    "reproduce", "table2/original/invariant", "--data=digits", "--width=0.02",
    "--epochs=100000", "--out=out",
)  # fmt: skip
LONGEST = 300  # seconds for one command, on a busy machine


def interrupted(*arguments, when, directory):
    """Exit code and output of a command that gets Ctrl-C in a terminal.

    Args:
        when: Function of the output so far and the elapsed seconds.
    """
    program = "from keras_invdrop_command import main; main()"
    ours, terminal = pty.openpty()

    def begin():
        # The terminal is its own, as that of a shell is, and Ctrl-C is for it,
        # even where the tests run in the background.
        os.login_tty(terminal)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=directory,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
        preexec_fn=begin,
    )
    os.close(terminal)
    start, text, pressed = time.monotonic(), "", False
    while True:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                text += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # All its processes have closed it.
                break
        if not pressed and when(text, time.monotonic() - start):
            os.write(ours, b"\x03")
            pressed = True
        if time.monotonic() - start > LONGEST:
            process.kill()
            pytest.fail(f"after {LONGEST} s, pressed: {pressed}\n{text}")
    os.close(ours)
    return process.wait(), text


def check(code, text, sentence):
    assert code == 130, text
    assert "Traceback" not in text
    *_, last = text.splitlines()
    assert last == f"keras-invdrop: interrupted{sentence}"


def epochs_are_done(text, seconds):
    return re.search(r" [1-9]\d*/100000 ", text)


def test_while_it_starts(tmp_path):
    """Ctrl-C while Keras is imported."""
    code, text = interrupted(
        "tables", when=lambda text, seconds: seconds > 1, directory=tmp_path
    )
    check(code, text, "")


@pytest.mark.parametrize(
    ("workers", "begun"),
    [
        (1, "compiling"),
        pytest.param(2, "waiting", marks=pytest.mark.thorough),
    ],
)
def test_while_it_trains(workers, begun, tmp_path):
    training = *TRAINING, f"--seeds=1-{workers}", f"--workers={workers}"
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


def test_what_is_ignored_stays_so(tmp_path):
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
