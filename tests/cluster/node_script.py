"""A cluster of two nodes on this machine loses one between rounds, and gets another: run by test_node.py in a
process of its own."""

import sys
import warnings
from pathlib import Path

import jax
import numpy as np
from ray.experimental import get_object_locations

import fedjax_core as fc
from fedjax_core.cluster import pool, simulator
from tests.run import small

warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # Ray starts its own programs


def main(folder: str) -> None:
    """Prints `same` where what was lost changed no bit."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    composed, cohort = small.simulator().round, [0, 1, 3, 4, 5]
    with fc.ClusterSimulator(
        composed, small.clients(), workers=2, batch_size=4, lanes=2, address=nodes.address
    ) as sim:
        assert len({worker["node"] for worker in sim.workers}) == 2
        first, _ = sim.run(sim.init(jax.random.key(0)), cohort)
        check_once_a_node(sim, first, cohort)
        expected, _ = sim.run_many(first, [cohort] * 3)

        nodes.remove_node(second, allow_graceful=False)
        found, _ = sim.run_many(first, [cohort] * 3)
        assert sim.deaths == 1 and small.bits(found) == small.bits(expected)

        second = nodes.add_node(num_cpus=1)
        sim.resize(2)
        assert len({worker["node"] for worker in sim.workers}) == 2
        assert small.bits(sim.run_many(first, [cohort] * 3)[0]) == small.bits(expected)

    with fc.ClusterSimulator(
        composed,
        small.clients(),
        workers=2,
        batch_size=4,
        lanes=2,
        address=nodes.address,
        client_state=Path(folder) / "rows",
    ) as sim:
        assert len({worker["node"] for worker in sim.workers}) == 2
        first, _ = sim.run(sim.init(jax.random.key(0)), cohort)
        nodes.remove_node(second, allow_graceful=False)
        found, _ = sim.run_many(first, [cohort] * 3)
        assert sim.deaths == 1
        assert small.bits(
            found._replace(clients=found.clients.read(np.arange(len(small.SIZES))))
        ) == small.bits(expected)

    second = nodes.add_node(num_cpus=1)
    with fc.ClusterSimulator(
        composed, small.clients(), workers=2, shares=4, batch_size=4, lanes=2, address=nodes.address
    ) as sim:
        first, _ = sim.run(sim.init(jax.random.key(0)), cohort)
        expected, _ = sim.run_many(first, [cohort] * 3)
        check_merged_there(
            sim, first, cohort, expected, lambda: nodes.remove_node(second, allow_graceful=False)
        )
    nodes.shutdown()
    print("same")


def check_merged_there(sim, first, cohort, expected, lose) -> None:
    """Accumulators taken for large ones are merged by the workers; a node that is lost with some of them
    changes no bit."""
    simulator.LARGE, merged, times, lost = 1, pool.WorkerPool._merged, [], []
    here = pool.ray.get_runtime_context().get_node_id()

    def watched(self, level):
        times.append(len(level))
        if len(times) > 3 and not lost and any(member.about["node"] != here for _, member in level):
            lost.append(lose())
        return merged(self, level)

    pool.WorkerPool._merged = watched
    found, _ = sim.run_many(first, [cohort] * 3)
    assert small.bits(found) == small.bits(expected) and times == [4] * 3 and sim.deaths == 0
    found, _ = sim.run_many(first, [cohort] * 3)
    assert small.bits(found) == small.bits(expected) and len(lost) == 1 and sim.deaths == 1


def check_once_a_node(sim, state, cohort) -> None:
    """A round's message is put once, and is then on both nodes."""
    refs, put = [], pool.ray.put
    pool.ray.put = lambda value: refs.append(put(value)) or refs[-1]
    sim.run(state, cohort)
    pool.ray.put = put
    assert len(refs) == 1 and len(set(get_object_locations(refs)[refs[0]]["node_ids"])) == 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
