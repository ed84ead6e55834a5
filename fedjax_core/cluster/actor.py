"""The worker's side of Ray: an actor process that holds a `Worker`. The driver's side is `pool`."""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ray

from fedjax_core.cluster.shard import Broadcast, Shard, ShardResult, Worker
from fedjax_core.cluster.source import Folder, Sent


class Setup(NamedTuple):
    """All that a worker is made from; Ray stores it once a node."""

    code: bytes  # (Round, Plan) by cloudpickle: closures of the user's own functions
    source: Sent | Folder
    streamed: bool
    settings: dict[str, Any]  # of `jax.config`
    path: list[str]  # where the user's modules are


class Actor:
    """A `Worker` in a process of its own."""

    def __init__(self, setup: Setup) -> None:
        sys.path += [folder for folder in setup.path if folder not in sys.path and Path(folder).exists()]
        for name, value in setup.settings.items():
            jax.config.update(name, value)
        composed, plan = ray.cloudpickle.loads(setup.code)
        self.worker = Worker(composed, setup.source.open(), plan, streamed=setup.streamed)

    def about(self) -> dict[str, Any]:
        """The process, node and device of this worker."""
        device = jax.devices()[0]
        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "device": f"{device.platform} {device.device_kind}",
        }

    def run(self, broadcast: Broadcast, share: Shard) -> ShardResult:
        """Runs a share and returns its result."""
        return self.worker.run(broadcast, share)

    def run_keeping_accumulator(self, broadcast: Broadcast, share: Shard) -> tuple[ShardResult, Any]:
        """(the result without its accumulator, the accumulator): two Ray objects; the second stays on this
        node until it is needed."""
        done = self.worker.run(broadcast, share)
        return done._replace(collected=done.collected._replace(acc=())), done.collected.acc

    def merge(self, a: Any, b: Any) -> Any:
        """Merges two accumulators."""
        return self.worker.merge(a, b)

    def measure(self, broadcast: Broadcast, share: Shard) -> dict[str, Any]:
        """Measures what the program of an exchange needs."""
        return self.worker.measure(broadcast, share)

    def choose_lanes(self, most: int, measured: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(the fastest number of lanes on this worker, what was measured for that)."""
        return self.worker.choose_lanes(most, measured)
