"""Ctrl-C: the first lets what runs reach its rung, the second stops at once; what was stored is kept either way."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final

from rich.console import Console

FIRST: Final = (
    "interrupted: no new trials; what runs goes on to its rung and is kept. Once more stops at once, also resumable"
)


class Interruptible:
    """A context in which the first SIGINT only asks to stop. On the way out after one, raises KeyboardInterrupt.

    Args:
        stop: asks for the end; called within the signal's handler.
        console: where the first one is told.
    """

    def __init__(self, stop: Callable[[], None], console: Console) -> None:
        self._stop, self._console, self._asked = stop, console, False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._first)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._asked and error is None:
            raise KeyboardInterrupt

    def _first(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, _second)
        self._stop()
        # in a thread: the signal may have come in the midst of another print, whose locks this one has to wait for
        threading.Thread(target=self._console.print, args=(FIRST,), kwargs={"soft_wrap": True}).start()


def _second(number: int, frame: FrameType | None) -> None:
    """Wherever that is: what is torn in the midst of its making has nothing to say when it goes."""
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt
