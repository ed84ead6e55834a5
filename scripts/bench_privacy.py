"""What does privacy cost? Secure aggregation at a site and at the coordinator, and differential privacy
beside the plain round.

    python scripts/bench_privacy.py                                       everything: under 5 minutes on two idle cores
    python scripts/bench_privacy.py --length 10000 --turns 1 --clients 0.05 --seconds 0.05             a try: half a minute

Secure aggregation, in one thread and processor time, the least of some calls: what a site computes from the
others' shares to its masked vector, and what the coordinator computes of all sites' messages until it has the
sum, a tenth of them gone once secrets were shared. Differential privacy, by the clock, turn by turn with the
plain round of the same clients: noise for whole clients (`fc.privacy.client_level`) and for examples (DP-SGD,
`fc.privacy.example_level`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bench_timing as timing
import bench_workloads as bench
import jax
import numpy as np
import optax
import tyro
from bench_engine import mesh, rounds, task
from rich.table import Table

import fedjax_core as fc
from fedjax_core.secure_aggregation.client import Client
from fedjax_core.secure_aggregation.messages import Round, Terms
from fedjax_core.secure_aggregation.server import Server
from fedjax_core.secure_aggregation.spent import Spent
from fedjax_core.sites.wire.identity import SiteKey

MASKS_MS, SERVER_SECONDS, CLIENT_LEVEL, EXAMPLE_LEVEL = 25.0, 1.0, 1.25, 3.0
"""The targets: at most so much."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often."""

    length: int = 1_000_000
    """Numbers in an update under masks."""
    sites: int = 50
    """Of the coordinator's measurement; a site is measured among ten."""
    turns: int = 7
    """How often each engine has its turn."""
    seconds: float = 0.5
    """How long a turn is at least."""
    clients: float = 1.0
    """This share of each workload's cohort takes part in a round."""


def party(sites: int, length: int) -> tuple[dict[str, Client], Server]:
    """({name: a site}, the coordinator) of one round."""
    keys = {f"site{i:03}": SiteKey.make(f"site{i:03}") for i in range(sites)}

    def fits(name: str, purpose: str, data: bytes, signature: bytes) -> bool:
        return keys[name].public.fits(purpose, data, signature)

    terms = Terms(Round("bench", 0), length)
    return {name: Client(name, terms, key.sign, fits, Spent(), 3) for name, key in keys.items()}, Server(
        terms, fits
    )


def site(settings: Settings, sites: int = 10, calls: int = 5) -> float:
    """Milliseconds of a site among so many, from the others' shares to its masked vector."""
    took = []
    for _ in range(calls):
        parties, server = party(sites, settings.length)
        roster = server.roster(one.advertise() for one in parties.values())
        boxes = server.route([one.share(roster) for one in parties.values()])
        name, one = next(iter(parties.items()))
        vector = np.arange(settings.length, dtype=np.uint32)
        start = time.thread_time()
        one.mask(boxes[name], vector)
        took.append(time.thread_time() - start)
    return 1e3 * min(took)


def coordinator(settings: Settings) -> float:
    """Seconds of the coordinator, in all of its stages, where a tenth of the sites sends no vector."""
    parties, server = party(settings.sites, settings.length)
    took = 0.0

    def timed(work: Callable[[], Any]) -> Any:
        nonlocal took
        start = time.thread_time()
        found = work()
        took += time.thread_time() - start
        return found

    advertised = [one.advertise() for one in parties.values()]
    roster = timed(lambda: server.roster(advertised))
    shared = [one.share(roster) for one in parties.values()]
    boxes = timed(lambda: server.route(shared))
    there = list(parties)[settings.sites // 10 :]
    for name in there:
        # Each is of another site, whose masked vector is let go of once it is added.
        masked = parties[name].mask(boxes[name], np.full(settings.length, 7, np.uint32))
        timed(lambda masked=masked: server.add(masked))
    survivors = timed(server.survivors)
    confirmed = [parties[name].confirm(survivors) for name in there]
    wanted = timed(lambda: server.wanted(confirmed))
    revealed = [parties[name].reveal(wanted[name]) for name in there]
    total = timed(lambda: server.total(revealed))
    assert (total == np.uint32(7 * len(there))).all()
    return took


def simulator(
    name: str, workload: bench.Workload, kind: str, clients: fc.Clients, cohort: int
) -> tuple[fc.Simulator, Any]:
    """A simulator of FedAvg, and its first state: "plain", of "client level", or of "example level"."""
    learnt, renamed = task(name, workload)
    private: Any = None
    gradient: dict[str, Any] = {}
    if kind == "client level":
        private = fc.privacy.client_level(
            population=len(clients), cohort=cohort, rounds=100, clip=1.0, noise=1.0, delta=1e-5
        )
    elif kind == "example level":
        made = fc.privacy.example_level(
            clip=1.0, noise=1.0, batch_size=workload.batch_size, rounds=100, delta=1e-5
        )
        gradient = {"gradient": made.gradient}
    algorithm = fc.algorithms.fedavg(
        learnt, local=optax.sgd(workload.lr), weighting=fc.algorithms.uniform, **gradient
    )
    pieces = {} if private is None else {"uplink": private.uplink, "aggregator": private.aggregator}
    sim = fc.Simulator(fc.compose(algorithm, **pieces), clients, batch_size=workload.batch_size, epochs=1)
    return sim, sim.init(jax.random.key(0), params=renamed(workload.init(jax.random.key(0))))


def beside_plain(name: str, kinds: dict[str, float], settings: Settings, table: Table) -> None:
    """Rows of a workload: how many times the plain round's time each kind takes, at most `kinds[kind]`."""
    workload = bench.WORKLOADS[name]
    data = workload.data()
    clients = fc.Clients.from_arrays({"x": data.x, "y": data.y}, offsets=data.offsets)
    cohort = max(2, int(settings.clients * workload.cohort))
    engines = {}
    for kind in ("plain", *kinds):
        timing.say(f"{name}: compiling {kind}")
        engines[kind] = timing.turn_of(
            rounds(*simulator(name, workload, kind, clients, cohort), cohort), settings.seconds
        )
    taken = timing.alternate(engines, settings.turns)
    for kind, most in kinds.items():
        ratio = taken[kind] / taken["plain"]
        table.add_row(
            name, kind, *timing.spread(ratio, ".2f"), timing.verdict(float(np.median(ratio)), most=most)
        )


def main(settings: Settings) -> None:
    """Measures and prints two tables."""
    mesh(0)
    print(timing.header())
    secure = Table(
        "secure aggregation", "numbers", "sites", "taken", "target", title="processor time of one thread"
    )
    masks, took = site(settings), min(coordinator(settings) for _ in range(min(3, settings.turns)))
    secure.add_row(
        "a site's masks",
        f"{settings.length:,}",
        "10",
        f"{masks:.1f} ms",
        timing.verdict(masks, most=MASKS_MS),
    )
    verdict = timing.verdict(took, most=SERVER_SECONDS)
    secure.add_row(
        "the coordinator, a tenth gone", f"{settings.length:,}", str(settings.sites), f"{took:.2f} s", verdict
    )
    timing.show(secure)
    private = Table("workload", "differential privacy", "time / plain round", "spread", "target")
    beside_plain("synth", {"example level": EXAMPLE_LEVEL}, settings, private)
    beside_plain("mlp", {"client level": CLIENT_LEVEL, "example level": EXAMPLE_LEVEL}, settings, private)
    timing.show(private)


if __name__ == "__main__":
    main(tyro.cli(Settings))
