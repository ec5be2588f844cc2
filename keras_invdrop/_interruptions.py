"""What an interrupted command (Ctrl-C) does and says before it ends."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager

# The functions that `keras_invdrop_command` calls.
endings: list[Callable[[], str | None]] = []


@contextmanager
def when_interrupted(ending: Callable[[], str | None]) -> Iterator[None]:
    """Calls `ending` if the command is interrupted inside the block.

    Args:
        ending: Function to call in another thread, the most recent one first.
            It may return text to add to the message for the user.
    """
    endings.append(ending)
    try:
        yield
    finally:
        endings.remove(ending)
