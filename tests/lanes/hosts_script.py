"""One of several hosts of one simulation: `python hosts_script.py PROCESS PROCESSES PORT FILE`; the first
writes what they end with."""

import sys

import jax
import numpy as np

import fedjax_core as fc
from tests.zoo import SIZES, ZOO, clients

COHORTS = [np.random.default_rng(r).permutation(len(SIZES))[:9] for r in range(3)]


def train(mesh=None, lanes=4):
    """(the model, the rest of the state and the last metrics): each as one array, after a round by itself and
    two in one dispatch."""
    composed = ZOO["scaffold, clip, feedback"].build()
    simulator = fc.Simulator(composed, clients(), batch_size=4, epochs=2, lanes=lanes, mesh=mesh)
    state, _ = simulator.run(simulator.init(jax.random.key(1)), COHORTS[0])
    state, metrics = simulator.run_many(state, COHORTS[1:])
    assert int(state.round) == 3 and simulator.traces == 2
    rest = (state.server, state.uplink, state.clients, metrics)
    return tuple(
        np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(part)])
        for part in (state.params, rest)
    )


def main(process, processes, port, file):
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    assert jax.process_count() == int(processes) and len(jax.devices()) == 2 * len(jax.local_devices())
    # each measures, all take what the first found
    model, rest = train(jax.make_mesh((jax.device_count(),), ("lanes",)), lanes="auto")
    if int(process) == 0:
        np.savez(file, model=model, rest=rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
