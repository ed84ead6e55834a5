"""What does a federation of real sites cost beside bare Ray, what does it hold in memory, and how soon is it
back after a kill?

    python scripts/bench_sites.py                                            all cases: 15 minutes on two idle cores
    python scripts/bench_sites.py --cases overhead --sites 4 10 --parameters 1

Every site is a process, and sends the model back as it came: what is left is the way there and back.
Federations are as they are by default, with signatures, digests, the gate, and audit logs on a disk. Bare Ray
is one `put`, one call of an actor a site, the arrays back and their sum, over the same Ray in alternation.
What workers of a cluster bring to a simulation is in `bench_cluster.py`."""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import bench_echo as echo
import bench_recovery
import bench_timing as timing
import numpy as np
import psutil
import ray
import tyro
from rich.table import Table

from fedjax_core.sites.audit import Log
from fedjax_core.sites.transport.certificates import Authority
from fedjax_core.sites.wire import envelope, tensors
from fedjax_core.sites.wire.identity import Roster, SiteKey

# an empty round over bare Ray; by how much the coordinator's peak may grow from the fewest sites to the most
RATIO, FLAT = (
    1.5,
    0.1,
)
# bytes of a site's process, and how often it and the store hold the model; seen with 25 M parameters
SITE, COPIES = (
    0.35e9,
    6,
)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    cases: tuple[str, ...] = ("overhead", "memory", "recovery", "cost", "rounds")
    """Any of overhead, memory, recovery, cost, rounds."""
    sites: tuple[int, ...] = (4, 10, 32)
    """How many, for the overhead; the other cases have 4."""
    parameters: tuple[int, ...] = (1, 1_200_000, 25_000_000)
    """Float32 numbers of the model, for overhead and cost."""
    memory_sites: tuple[int, ...] = (2, 4, 8, 16)
    memory_parameters: int = 25_000_000
    turns: int = 7
    """How often each has its turn."""
    seconds: float = 1.0
    """About how long a turn is."""
    rounds: int = 500
    """For the memory over rounds."""


def room(sites: int, parameters: int) -> str:
    """Why so many sites do not fit into the memory there is; nothing where they do."""
    needed, free = sites * (SITE + COPIES * 4 * parameters), psutil.virtual_memory().available
    return (
        ""
        if needed < free
        else f"left out: would need about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    )


def overhead(settings: Settings) -> Table:
    """A round's time, by the number of sites and the model's size."""
    table = Table(
        "sites",
        "parameters",
        "ms a round",
        "spread",
        "bare Ray",
        "spread",
        "times bare Ray",
        "spread",
        "target",
    )
    for sites in settings.sites:
        for parameters in settings.parameters:
            timing.say(f"overhead: {sites} sites, {parameters:,} parameters")
            row = [str(sites), f"{parameters:,}"]
            if (why := room(sites, parameters)) != "":
                table.add_row(*row, why)
                continue
            with tempfile.TemporaryDirectory() as folder, echo.federation(sites, parameters, folder) as made:
                dispatches = {"federation": echo.rounds_of(made), "bare": echo.bare(sites, parameters)}
                engines = {
                    name: timing.turn_of(dispatch, settings.seconds) for name, dispatch in dispatches.items()
                }
                seconds = timing.alternate(engines, settings.turns)
            ratio = seconds["federation"] / seconds["bare"]
            judged = timing.verdict(float(np.median(ratio)), most=RATIO if parameters == 1 else None)
            times = [part for taken in seconds.values() for part in timing.spread(taken * 1e3, ",.1f")]
            table.add_row(*row, *times, *timing.spread(ratio, ".2f"), judged)
    return table


@contextmanager
def watched(pid: int) -> Iterator[dict[str, int]]:
    """The most private and the most shared bytes of a process, looked at every 5 ms from outside."""
    most, over = {"RssAnon": 0, "RssShmem": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            now = timing.memory(pid)
            most.update({name: max(was, now[name]) for name, was in most.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def memory(settings: Settings) -> Table:
    """The coordinator's peak, by the number of sites."""
    table = Table(
        "sites",
        "private MB before a round",
        "peak in rounds",
        "above that",
        "of Ray's store, mapped",
        "target",
    )
    first = None
    for sites in settings.memory_sites:
        timing.say(f"memory: {sites} sites, {settings.memory_parameters:,} parameters")
        if (why := room(sites, settings.memory_parameters)) != "":
            table.add_row(str(sites), why)
            continue
        with tempfile.TemporaryDirectory() as folder, timing.process() as call:
            call(echo.hold, sites, settings.memory_parameters, folder)
            pid = call(os.getpid)
            before = timing.memory(pid)["RssAnon"]
            with watched(pid) as most:
                for _ in range(3):
                    call(echo.turn)
            call(echo.release)
        first = first or most["RssAnon"]
        judged = timing.verdict(most["RssAnon"] / first, most=1 + FLAT)
        found = [
            f"{n / 1e6:,.0f}" for n in (before, most["RssAnon"], most["RssAnon"] - before, most["RssShmem"])
        ]
        table.add_row(str(sites), *found, judged)
    return table


def parts(parameters: int) -> dict[str, Callable[[], Any]]:
    """What happens to one message of this size, each by itself."""
    key, update = SiteKey.make("site0"), {"w": np.ones(parameters, np.float32)}
    roster, body, head = Roster({"site0": key.public}), tensors.pack(update), bytes(700)
    header = envelope.Header(
        kind="update",
        run="run",
        round=0,
        exchange=0,
        sender="site0",
        recipient="coordinator",
        sequence=1,
        created_unix_ms=0,
        config="ab",
    )
    message, signature = envelope.encode(header, update, key), key.sign("envelope", head)
    return {
        "sign": lambda: key.sign("envelope", head),
        "verify": lambda: key.public.fits("envelope", head, signature),
        "digest": lambda: hashlib.sha256(body).digest(),
        "pack": lambda: tensors.pack(update),
        "unpack": lambda: tensors.unpack(body),
        "gate: finite, norm": lambda: tensors.measure(update),
        "whole message made": lambda: envelope.encode(header, update, key),
        "whole message read": lambda: envelope.decode(message, roster, recipient="coordinator"),
    }


def protection(settings: Settings) -> Table:
    """A round with and without what can be left out, each federation in a process of its own, in
    alternation."""
    table = Table("4 sites", "parameters", "ms a round", "spread", "times that of the first", "spread")
    for parameters in settings.parameters[:2]:
        timing.say(f"cost: rounds with and without audit and TLS, {parameters:,} parameters")
        with ExitStack() as stack, tempfile.TemporaryDirectory() as home:
            tls = (
                Authority.make(f"{home}/authority")
                .issue(f"{home}/node", "node", ["127.0.0.1", "localhost"])
                .environment
            )
            kinds = {
                "as they are": (f"{home}/a", {}),
                "without audit logs": (None, {}),
                "with TLS": (f"{home}/b", tls),
            }
            engines = {}
            for name, (folder, environment) in kinds.items():
                call = stack.enter_context(timing.process(**environment))
                call(echo.hold, 4, parameters, folder, settings.seconds)
                stack.callback(call, echo.release)
                engines[name] = partial(call, echo.turn)
            seconds = timing.alternate(engines, settings.turns)
        for name, taken in seconds.items():
            ratio = (
                timing.spread(taken / seconds["as they are"], ".2f") if name != "as they are" else ("", "")
            )
            table.add_row(name, f"{parameters:,}", *timing.spread(taken * 1e3, ",.1f"), *ratio)
    return table


def messages(settings: Settings) -> Table:
    """What each thing that is done to a message takes."""
    table = Table("one message", *(f"ms, {parameters:,} parameters" for parameters in settings.parameters))
    columns = []
    for parameters in settings.parameters:
        timing.say(f"cost: parts of a message of {parameters:,} parameters")
        engines = {
            name: timing.turn_of(lambda part=part: (part(), 1.0), settings.seconds / 10)
            for name, part in parts(parameters).items()
        }
        columns.append(timing.alternate(engines, settings.turns))
    for name in columns[0]:
        table.add_row(name, *(f"{np.median(column[name]) * 1e3:,.3f}" for column in columns))
    with tempfile.TemporaryDirectory() as folder, Log(folder, SiteKey.make("site0")) as log:
        for name, wait in (("audit entry", False), ("audit entry, on the disk", True)):
            entry = timing.turn_of(
                lambda wait=wait: (log.record("site0", "update", wait=wait), 1.0), settings.seconds / 10
            )
            table.add_row(name, f"{np.median([entry() for _ in range(settings.turns)]) * 1e3:,.3f}")
    return table


CASES: dict[str, tuple[Callable[[Any], Table], ...]] = {
    "overhead": (overhead,), "memory": (memory,), "recovery": (bench_recovery.recovery,), "cost": (protection, messages),
    "rounds": (bench_recovery.endurance,),
}  # fmt: skip


def main(settings: Settings) -> None:
    """Measures each case and prints its table."""
    print(f"{timing.header()}; ray {ray.__version__}, {psutil.virtual_memory().total / 1e9:.0f} GB")
    for case in settings.cases:
        for table in CASES[case]:
            timing.show(table(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))
