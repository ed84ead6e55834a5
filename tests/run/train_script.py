"""One run, for tests that end it from outside: python train_script.py RUN_DIR ROUNDS OUTPUT, with PAUSE
seconds before each round."""

import importlib
import os
import sys
import time

import jax
import numpy as np

from fedjax_core.run import fit
from tests.run.small import cohorts, simulator


def main(run_dir, rounds, output):
    sim, draw = simulator(), cohorts()
    sim.reserve(draw.max_size)
    # compiled beforehand, so that what interrupts comes between rounds
    sim.run(sim.init(jax.random.key(9)), draw(0), donate=True)

    def slowed(round):
        print(round, flush=True)
        time.sleep(float(os.environ["PAUSE"]))
        return draw(round)

    slowed.max_size = draw.max_size
    history = fit(sim, int(rounds), slowed, run_dir, checkpoint_every=2, evaluate_every=3, progress=False)
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(history.state)
    ]
    np.savez(output, *leaves)
    print(history.stopped, int(history.state.round), flush=True)


if __name__ == "__main__":
    # By its name: what a checkpoint says of the run is then the same where a test calls `main` itself.
    importlib.import_module("tests.run.train_script").main(*sys.argv[1:])
