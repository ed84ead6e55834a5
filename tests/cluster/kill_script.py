"""A run over workers of a Ray of its own that kills itself, or itself and all of that Ray, at points of its
rounds.

python -m tests.cluster.kill_script FOLDER WHO WHERE [POINT ROUND]

WHERE is what clients keep: "device", or "files".
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import psutil

import fedjax_core as fc
from fedjax_core.cluster import pool
from tests.cluster.launched_script import save
from tests.consortium import failpoints
from tests.run import small

ROUNDS = 8
POINTS = (
    ("shares are out", 1),
    ("1 of 2 shares is back", 3),
    ("in the middle of a checkpoint", 4),
    ("before its commit", 6),
)


def strike(folder, who):
    """Kills the driver, or its workers and Ray as well; notes what was there."""
    tree = psutil.Process().children(recursive=True)
    (folder / "tree").write_text(json.dumps([[one.pid, one.create_time(), one.name()] for one in tree]))
    if who == "everything":
        for one in tree:
            one.kill()
    os.kill(os.getpid(), signal.SIGKILL)


class Watched(fc.ClusterSimulator):
    """Knows which round it is in."""

    number = -1

    def run(self, state, cohort, **rest):
        Watched.number = int(state.round)
        return super().run(state, cohort, **rest)


def arm(point, number, come, folder):
    """Has `come()` called at this point, which is of a checkpoint of that number, or of a round's work on the
    workers."""
    if "share" not in point:
        failpoints.arm(point, number, come, folder / "struck" / point)
        return
    inner, calls = pool.WorkerPool._next, []

    def outer(self, waiting):
        calls.append(Watched.number)
        if Watched.number == number and calls.count(number) == (1 if "out" in point else 2):
            come()
        return inner(self, waiting)

    pool.WorkerPool._next = outer


def main(folder, who, where, point="", number="0"):
    """Ends with the state in state.npz."""
    folder = Path(folder)
    if point:
        arm(point, int(number), lambda: strike(folder, who), folder)
    composed = small.simulator().round
    settings = {"workers": 2, "shares": 2, "batch_size": 4, "epochs": 1, "lanes": 2, "cpus_per_worker": 0.5}
    with Watched(
        composed, small.clients(), client_state=where if where == "device" else folder / "rows", **settings
    ) as sim:
        draw = fc.cohorts.uniform(len(small.SIZES), size=4, seed=1)
        history = fc.fit(
            sim,
            ROUNDS,
            draw,
            folder / "run",
            key=jax.random.key(3),
            checkpoint_every=2,
            evaluate_every=3,
            progress=False,
        )
    state = history.state
    if where != "device":
        state = state._replace(clients=state.clients.read(np.arange(len(small.SIZES))))
    save(state, folder / "state.npz")


if __name__ == "__main__":
    main(*sys.argv[1:])
