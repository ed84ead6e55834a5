"""Measures how fast a run goes: rates, how full the lanes are, and how long the device waited for the host.

    waiting = sum over dispatches of max(0, dispatched - max(device done with the one before, host began to pack))

The host counts while the device works, so no round is slowed by it. The first dispatch of each program is
left out of the rates, since it holds the compilation.

>>> meter = Meter()
>>> meter.report()["examples/s"]
nan
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from fedjax_core.lanes.dispatch import Load


class Meter:
    """Adds up the dispatches of a simulator; `report` gives their rates, `reset` begins anew."""

    def __init__(self, step: Callable[[], tuple[float, float]] = lambda: (math.nan, math.nan)) -> None:
        """`step` gives the operations of a local step, and the seconds at the hardware's peak; only `report`
        calls it."""
        self._step, self._step_cost = step, (math.nan, math.nan)
        self.programs, self.compile_seconds = 0, 0.0
        self._watcher: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forgets all dispatches, but not the number of programs compiled."""
        self._clients = self._steps = self._examples = self._room = 0
        self._busy, self._waited, self._done = 0.0, 0.0, -math.inf
        self._last: Future[None] | None = None

    def compiled(self, seconds: float) -> None:
        """Counts a program that took this time to compile."""
        self.programs += 1
        self.compile_seconds += seconds

    def dispatched(self, work: Load, packing: float, result: Any) -> None:
        """Counts dispatched work: the host began to pack it at `packing` (by `time.perf_counter`), `result`
        is one of its output arrays."""
        if self._watcher is None:
            self._watcher = ThreadPoolExecutor(1, thread_name_prefix="meter")
        self._last = self._watcher.submit(self._watch, work, packing, time.perf_counter(), result)

    def report(self) -> dict[str, float]:
        """Rates over the dispatches so far, once they are done; NaN where there was none. "MFU" only for
        devices that `xla.flops` knows."""
        if self._last is not None:
            self._last.result()
        if self._steps and math.isnan(self._step_cost[0]):
            self._step_cost = self._step()
        with self._lock:
            seconds = self._busy + self._waited
            rate = (lambda n: n / seconds) if seconds else (lambda n: math.nan)
            peak = {} if math.isnan(self._step_cost[1]) else {"MFU": self._step_cost[1] * rate(self._steps)}
            return {
                "client updates/s": rate(self._clients),
                "local steps/s": rate(self._steps),
                "examples/s": rate(self._examples),
                "operations/s": self._step_cost[0] * rate(self._steps),
                "fill": self._examples / self._room if self._room else math.nan,
                "waiting for data": self._waited / seconds if seconds else math.nan,
                "programs": float(self.programs),
                "compile seconds": self.compile_seconds,
            } | peak

    def _watch(self, work: Load, packing: float, start: float, result: Any) -> None:
        try:
            jax.block_until_ready(result)
        except Exception:  # the reader of the result gets the error
            return
        now = time.perf_counter()
        with self._lock:
            self._clients += work.clients
            self._steps += work.steps
            self._examples += work.examples
            self._room += work.room
            if self._done > -math.inf:
                self._waited += max(0.0, start - max(self._done, packing))
            self._busy += now - max(start, self._done)
            self._done = now
