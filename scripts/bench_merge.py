"""Should workers of several nodes merge what their shares come to, or the driver? A round of a large model,
on Ray nodes of this machine.

    python scripts/bench_merge.py                                   four nodes, of one worker each
    sudo scripts/links.sh 4 1gbit .venv/bin/python scripts/bench_merge.py --address auto      each behind a link of that speed

Each client takes one step of a model of so many float32 numbers; there is next to nothing to compute. The
nodes have stores of their own. Without `links.sh` what goes from one to another goes through a socket of this
machine, and no link to the driver can be the limit."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import tyro
from ray.cluster_utils import Cluster

import fedjax_core as fc
from fedjax_core.cluster import simulator


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    parameters: tuple[int, ...] = (2_000_000, 25_000_000)
    shares: tuple[int, ...] = (4, 8)
    nodes: int = 4
    turns: int = 7
    """How often each has its turn."""
    store: int = 2_000_000_000
    """Bytes of a node's object store."""
    address: str | None = None
    """Of a cluster that is there; without one the nodes are started."""


def measure(parameters: int, shares: int, settings: Settings, address: str) -> dict[str, np.ndarray]:
    """Seconds a round [turns], merged by the driver and by the workers, in alternation; raises where the two
    differ in a bit."""
    data = fc.Clients.from_list([{"x": np.ones((1, 1), np.float32)}] * 16)
    task = fc.Task(
        lambda key: jnp.ones(parameters), lambda params, batch, key: (params[0] - batch["x"][:, 0]) ** 2
    )
    composed, everyone = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))), np.arange(16)
    seconds: dict[str, list[float]] = {"driver": [], "workers": []}
    with fc.ClusterSimulator(
        composed,
        data,
        batch_size=1,
        epochs=1,
        workers=settings.nodes,
        shares=shares,
        lanes=1,
        address=address,
    ) as cluster:
        first = cluster.init(jax.random.key(0))
        for _ in range(settings.turns + 1):
            after = []
            for who, large in (("driver", sys.maxsize), ("workers", 0)):
                simulator.LARGE = large
                begun = time.perf_counter()
                state, _ = jax.block_until_ready(cluster.run(first, everyone))
                seconds[who].append(time.perf_counter() - begun)
                after.append(np.asarray(state.server.params).tobytes())
            if after[0] != after[1]:
                raise AssertionError(
                    f"{parameters:,} parameters in {shares} shares: merged by workers the model has other bits"
                )
    return {who: np.array(taken[1:]) for who, taken in seconds.items()}


def main(settings: Settings) -> None:
    """Measures and prints, on a cluster that is there or on one of this machine."""
    print(
        f"{settings.nodes} nodes on {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB; jax {jax.__version__}"
    )
    with contextlib.nullcontext(settings.address) if settings.address else started(settings) as address:
        compare(settings, address)


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[str]:
    """The address of a cluster of a head without workers, and so many nodes."""
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": settings.store},
    )
    for _ in range(settings.nodes):
        nodes.add_node(num_cpus=1, object_store_memory=settings.store)
    yield nodes.address
    nodes.shutdown()


def compare(settings: Settings, address: str) -> None:
    """A line for each model and number of shares."""
    for parameters in settings.parameters:
        for shares in settings.shares:
            seconds = measure(parameters, shares, settings, address)
            told = [
                f"{who} {np.median(s) * 1e3:,.0f} ms ({s.min() * 1e3:,.0f} to {s.max() * 1e3:,.0f})"
                for who, s in seconds.items()
            ]
            ratio = seconds["workers"] / seconds["driver"]
            print(
                f"{parameters:,} parameters, {shares} shares: {', '.join(told)}, ratio {np.median(ratio):.2f} "
                f"({ratio.min():.2f} to {ratio.max():.2f})",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
