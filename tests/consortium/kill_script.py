"""A federation with its sites in the coordinator's process, which kills itself at a point of a round.

python -m tests.consortium.kill_script FOLDER [POINT ROUND]
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

import fedjax_core as fc
from tests.consortium import failpoints
from tests.sites.federations import NAMES, site_files
from tests.zoo import round_of

ROUNDS = 5
COHORTS = [[0, 1, 2, 3], [3, 0, 1], [2, 1, 0, 3], [0, 2], [1, 3, 2, 0]]


def run(folder):
    """The leaves of the state after all rounds, and of what sites keep."""
    composed = round_of("scaffold, clip, feedback", 4)
    with fc.Federation(
        composed,
        site_files(folder=folder),
        batch_size=4,
        epochs=2,
        transport="in-process",
        folder=folder / "coordinator",
    ) as fed:
        state = fc.fit(
            fed,
            ROUNDS,
            lambda r: COHORTS[r],
            folder / "run",
            key=jax.random.key(1),
            checkpoint_every=2,
            progress=False,
        ).state
    versions = zip(NAMES, np.asarray(state.clients.version), strict=True)
    kept = [
        next((folder / name / "kept" / "run").glob(f"*{version:012d}")).read_bytes()
        for name, version in versions
    ]
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return [np.asarray(x) for x in leaves] + [np.frombuffer(raw, np.uint8) for raw in kept]


def main(folder, point="", number="0"):
    folder = Path(folder)
    if point:
        failpoints.arm(point, int(number), lambda: os.kill(os.getpid(), signal.SIGKILL), folder / "struck")
    np.savez(folder / "state.npz", *run(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
