"""What the benchmarks of real sites share: a federation whose sites send the model back as it came, and bare
Ray doing the same.

Every site is a process that holds one example, and there is nothing to learn: what is left is the way there
and back. A federation may also be held by a process of its own (`bench_timing.process`), which then takes
turns when it is told to."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bench_timing as timing
import jax
import jax.numpy as jnp
import numpy as np
import ray

import fedjax_core as fc
from fedjax_core.algorithms import ONCE, Algorithm, Client, Exchange, Report
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport.ray_start import NAMESPACE

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a script


def pids(made: fc.Federation) -> list[int]:
    """The processes of the sites."""
    actors = [ray.get_actor(f"site-{name}", namespace=NAMESPACE) for name in made.clients.ids]
    return ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors])


class Model(NamedTuple):
    params: Any


def echo(parameters: int) -> fc.Round:
    """Clients that send the model back as it came, and the mean of that."""
    task = fc.Task(lambda key: jnp.ones(parameters), lambda params, batch, key: batch["x"])
    client = Client(
        begin=lambda params, own, key: (),
        step=lambda params, carry, batch, key: (carry, {}),
        finish=lambda params, carry, seen: Report(params, seen.examples, own=()),
    )
    exchange = Exchange(
        lambda server: server.params, client, lambda server, reports: Model(reports.value), work=ONCE
    )
    return fc.compose(Algorithm(task, task.init, Model, lambda params: (), (exchange,)))


@contextmanager
def federation(sites: int, parameters: int, folder: str | None, **settings: Any) -> Iterator[fc.Federation]:
    """Sites of one example each; without a folder they keep no audit log."""
    homes = [None if folder is None else Path(folder) / f"site{i}" for i in range(sites)]
    files = [
        SiteFile(name=f"site{i}", data={"x": np.ones(1, np.float32)}, folder=homes[i]) for i in range(sites)
    ]
    home = None if folder is None else Path(folder) / "coordinator"
    with fc.Federation(echo(parameters), files, batch_size=1, epochs=1, folder=home, **settings) as made:
        yield made


def rounds_of(made: fc.Federation) -> timing.Dispatch:
    """A round of all sites a call."""
    state, everyone = made.init(jax.random.key(0)), np.arange(len(made.clients))

    def dispatch() -> tuple[Any, float]:
        nonlocal state
        state, seen = made.run(state, everyone)
        assert float(seen["clients"]) == len(everyone)
        return state, 1.0

    return dispatch


class Bare:
    """An actor without any of it."""

    def handle(self, array: np.ndarray) -> np.ndarray:
        return array


def bare(sites: int, parameters: int) -> timing.Dispatch:
    """The same round over Ray alone."""
    actors = [ray.remote(Bare).options(num_cpus=0).remote() for _ in range(sites)]
    array = np.zeros(parameters, np.float32)

    def dispatch() -> tuple[Any, float]:
        shared = ray.put(array)
        total = sum(ray.get([actor.handle.remote(shared) for actor in actors]))
        return total, 1.0

    return dispatch


_held: dict[str, Any] = {}  # of a process of its own: the federation there, until it ends


def hold(sites: int, parameters: int, folder: str | None, seconds: float = 0.0, **settings: Any) -> None:
    """Starts a federation in this process, and goes through its first rounds."""
    made = _held["stack"] = ExitStack()
    fed = made.enter_context(federation(sites, parameters, folder, **settings))
    _held["round"] = timing.turn_of(rounds_of(fed), seconds)


def turn() -> float:
    """A turn of the federation that this process holds."""
    return _held["round"]()


def release() -> None:
    """Ends the federation that this process holds."""
    _held["stack"].close()
