"""Ctrl-C and SIGTERM end a run in order: the running rounds finish, a checkpoint is written, and `fit`
returns.

A second one raises KeyboardInterrupt at once. Handlers are set in the main thread only, and restored
afterwards.

>>> import os, signal
>>> with Interruption() as interruption:
...     os.kill(os.getpid(), signal.SIGTERM)
...     interruption.asked
'SIGTERM'
"""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("fedjax_core")


class Interruption:
    """While entered, remembers in `asked` the name of the signal that asked to stop; None until then."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None: set outside Python, and could not be put back. Ignored, as under nohup: stays so.
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        log.warning(
            "%s: finishing the running rounds, then a checkpoint; once more stops at once", self.asked
        )
