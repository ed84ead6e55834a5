"""What the benchmarks share: turns taken in alternation, processes of their own, resident memory, and the
words around a number.

A machine's speed drifts, by up to 1.6 within minutes where others use it. What is compared therefore takes
turns in one run, and ratios are formed turn by turn; a table gives their median and their spread.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import fedjax_core as fc

Dispatch = Callable[[], tuple[Any, float]]
"""Starts some work: (what to wait for, how many examples that is)."""
Turn = Callable[[], float]
"""Works for a while: seconds an example."""


def header() -> str:
    """The device and the versions that numbers hold for."""
    device = jax.devices()[0]
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, fedjax_core {fc.__version__}"
    return (
        f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores, {platform.machine()}; {versions}; "
        f"{time.strftime('%Y-%m-%d')}"
    )


def say(what: str) -> None:
    """Progress, on standard error."""
    print(what, file=sys.stderr, flush=True)


def show(table: Table) -> None:
    """The table on standard output, as wide as it needs."""
    Console(width=160).print(table)


def turn_of(dispatch: Dispatch, seconds: float) -> Turn:
    """A turn of as many dispatches one after another as take about so many seconds; the first, which
    compiles, is made here."""

    def timed(times: int) -> tuple[float, float]:
        examples, start = 0.0, time.perf_counter()
        for _ in range(times):
            result, count = dispatch()
            examples += count
        jax.block_until_ready(result)
        return time.perf_counter() - start, examples

    timed(1)
    times = int(np.clip(seconds / timed(1)[0], 1, 100))

    def turn() -> float:
        taken, examples = timed(times)
        return taken / examples

    return turn


def alternate(engines: Mapping[str, Turn], turns: int) -> dict[str, np.ndarray]:
    """Seconds an example of each engine in each turn, [turns]; one turn each goes before, which does not
    count."""
    for turn in engines.values():
        turn()
    taken = [[turn() for turn in engines.values()] for _ in range(turns)]
    return dict(zip(engines, np.array(taken).T, strict=True))


def spread(values: np.ndarray, form: str) -> tuple[str, str]:
    """(median, from the least to the most) in this format."""
    return format(float(np.median(values)), form), f"{values.min():{form}} to {values.max():{form}}"


def verdict(value: float, *, least: float | None = None, most: float | None = None) -> str:
    """Whether the value meets its target, and the target; nothing where there is none."""
    sides = [(f">= {least:g}", value >= least)] if least is not None else []
    sides += [(f"<= {most:g}", value <= most)] if most is not None else []
    return (
        ""
        if not sides
        else f"{'pass' if all(met for _, met in sides) else 'FAIL'} ({', '.join(said for said, _ in sides)})"
    )


@contextmanager
def process(**environment: str) -> Iterator[Callable[..., Any]]:
    """call(function, *args): the function's answer from one fresh process with these variables set, which
    lives as long as the block.

    The function is a module's own, as pickle wants it. Several processes may share a GPU: none takes its
    memory in advance."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        before, wanted = dict(os.environ), {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment}
        os.environ.update(wanted)
        pool.submit(os.getpid).result()  # starts it
        os.environ.clear()
        os.environ.update(before)
        yield lambda function, *args: pool.submit(function, *args).result()


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of a process's memory: VmRSS now; of it RssAnon its own, RssFile files, RssShmem shared; VmHWM
    the most since `mark`."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        words[0][:-1]: int(words[1]) * 1024
        for words in lines
        if words[0].startswith(("VmRSS:", "VmHWM:", "Rss"))
    }


def mark() -> None:
    """Sets VmHWM back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
