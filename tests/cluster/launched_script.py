"""What tests launch: `ray RUN_DIR ROUNDS FILE` trains on a cluster, with PAUSE seconds before a round; `pod
FOLDER` on a mesh of all."""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_core as fc
from tests.run import small


def on_workers(run_dir, rounds, file):
    """Ends with the state in `file`; says each round as it begins."""
    assert os.environ["RAY_ADDRESS"]
    draw = small.cohorts()

    def slowed(round):
        print("round", round, flush=True)
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return draw(round)

    slowed.max_size = draw.max_size
    composed = small.simulator().round
    with fc.ClusterSimulator(
        composed, small.clients(), workers=2, shares=2, batch_size=4, lanes=2, cpus_per_worker=0.5
    ) as sim:
        print("workers", *(worker["pid"] for worker in sim.workers), flush=True)
        print("nodes", len({worker["node"] for worker in sim.workers}), flush=True)
        history = fc.fit(sim, int(rounds), slowed, run_dir, checkpoint_every=2, progress=False)
    save(history.state, file)
    print(history.stopped, int(history.state.round), flush=True)


def save(state, file):
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    np.savez(file, *leaves)


def on_a_mesh(folder):
    """Ends with the model in a file of each process."""
    mesh = jax.make_mesh((jax.device_count(),), ("lanes",))
    sim = small.simulator(mesh=mesh, lanes=jax.device_count())
    with pytest.raises(ValueError, match=f"jax.distributed has {jax.process_count()}"):
        fc.fit(sim, 3, lambda round: [0, 1, 3, 4, 5], Path(folder) / "run")
    assert not (Path(folder) / "run").exists()
    state = fc.fit(sim, 3, lambda round: [0, 1, 3, 4, 5], progress=False).state
    save(state.params, Path(folder) / f"{jax.process_index()}-of-{jax.process_count()}.npz")


if __name__ == "__main__":
    {"ray": on_workers, "pod": on_a_mesh}[sys.argv[1]](*sys.argv[2:])
