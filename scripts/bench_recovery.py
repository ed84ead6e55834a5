"""How soon is a federation back after a kill, and does it grow over many rounds? Cases `recovery` and
`rounds` of `bench_sites.py`."""

import os
import signal
import tempfile
import time
from multiprocessing import get_context
from typing import Any

import bench_echo as echo
import bench_timing as timing
import numpy as np
import psutil
from rich.table import Table

import fedjax_core as fc

GROWTH = 1000  # bytes a round that are still called flat: 1 MB in a thousand rounds


def study(folder: str, parameters: int, say: Any) -> None:
    """A run with a checkpoint after every round, in a process that will be killed; tells when it gets
    where."""
    say.send((time.monotonic(), "imported"))

    def everyone(r: int) -> np.ndarray:
        say.send((time.monotonic(), f"round {r}"))
        return np.arange(4)

    with echo.federation(4, parameters, folder) as made:
        say.send((time.monotonic(), "sites answer"))
        fc.fit(made, 1_000_000, cohorts=everyone, run_dir=f"{folder}/run", checkpoint_every=1, progress=False)


def started(folder: str, parameters: int, rounds: int) -> tuple[Any, dict[str, float]]:
    """(the process of a run that has come so many rounds further, when it got to each step)."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=study, args=(folder, parameters, theirs))
    process.start()
    theirs.close()  # so that an end of the process is heard
    times: dict[str, float] = {}
    # "imported", "sites answer", then a cohort for each round, when the one before is done
    for asked in range(-2, rounds + 1):
        at, what = mine.recv()
        times["first round done" if asked == 1 else what] = at
    return process, times


def coordinator_killed(parameters: int) -> dict[str, float]:
    """Seconds from SIGKILL to each step of the way back, when the process is started again at once."""
    with tempfile.TemporaryDirectory() as folder:
        process, _ = started(folder, parameters, 3)
        killed, left = kill(process)
        process, times = started(folder, parameters, 1)
        left += kill(process)[1]
        for one in psutil.wait_procs(left, timeout=10)[1]:  # of Ray's own, which end when they miss the rest
            one.kill()
    return {what: times[what] - killed for what in ("imported", "sites answer", "first round done")}


def kill(process: Any) -> tuple[float, list[psutil.Process]]:
    """Ends a process as a failing machine would: (when that was, the processes that it had started)."""
    children, now = psutil.Process(process.pid).children(recursive=True), time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return now, children


def site_killed(parameters: int) -> dict[str, float]:
    """Seconds of a round after a site was killed, and of one without that."""
    with tempfile.TemporaryDirectory() as folder, echo.federation(4, parameters, folder) as made:
        turn = timing.turn_of(echo.rounds_of(made), 0.0)
        usual = float(np.median([turn() for _ in range(5)]))
        os.kill(echo.pids(made)[2], signal.SIGKILL)
        return {"a round": usual, "the round after the kill": turn(), "the next": turn()}


def recovery(settings: Any) -> Table:
    """How long it takes to be back after a kill."""
    table = Table("killed", "parameters", "seconds to", "median", "spread")
    for title, measure in (("coordinator", coordinator_killed), ("one of 4 sites", site_killed)):
        for parameters in settings.parameters[:2]:
            timing.say(f"recovery: {title}, {parameters:,} parameters")
            found = [measure(parameters) for _ in range(max(1, settings.turns // 3))]
            for what in found[0]:
                table.add_row(
                    title,
                    f"{parameters:,}",
                    what,
                    *timing.spread(np.array([one[what] for one in found]), ".2f"),
                )
    return table


def slope(rounds: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """(bytes a round, its standard error), by least squares."""
    (rise, _), errors = np.polyfit(rounds, found, 1, cov=True)
    return float(rise), float(np.sqrt(errors[0, 0]))


def endurance(settings: Any) -> Table:
    """The private memory of coordinator, sites and Ray over many rounds."""
    seen, every = [], settings.rounds // 10
    with tempfile.TemporaryDirectory() as folder, echo.federation(4, settings.parameters[0], folder) as made:
        dispatch, sites = echo.rounds_of(made), echo.pids(made)
        timing.say(f"rounds: {settings.rounds} of 4 sites")
        others = [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in sites]
        for _ in range(settings.rounds + 1):
            dispatch()
            now = [timing.memory(pid)["RssAnon"] for pid in ("self", *sites)]
            seen.append(
                [
                    now[0],
                    *now[1:],
                    sum(timing.memory(pid)["RssAnon"] for pid in others if psutil.pid_exists(pid)),
                ]
            )
    table = Table(
        "private MB of",
        *(f"{r}" for r in range(every, settings.rounds + 1, every)),
        "bytes a round",
        "target",
    )
    for name, column in zip(
        ("coordinator", *(f"site {i}" for i in range(4)), "Ray itself"), np.array(seen, float).T, strict=True
    ):
        settled = np.arange(settings.rounds // 5, settings.rounds + 1)
        rise, error = slope(settled, column[settled])
        at = [f"{column[r] / 1e6:,.1f}" for r in range(every, settings.rounds + 1, every)]
        table.add_row(
            name,
            *at,
            f"{rise:,.0f} +- {error:,.0f}",
            timing.verdict(rise, most=GROWTH) if name != "Ray itself" else "",
        )
    return table
