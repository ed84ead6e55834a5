"""A small run with everything that a resume could forget: client state, a server optimiser, error feedback,
draws, uneven cohorts."""

import json
from functools import cache

import jax
import numpy as np
import optax

import fedjax_core as fc

SIZES = (5, 1, 0, 9, 4, 7)


def clients():
    """Six unequal clients with three features and two classes, one of them without examples."""
    rng = np.random.default_rng(0)
    return fc.Clients.from_list(
        [
            {"x": rng.normal(size=(n, 3)).astype(np.float32), "y": rng.integers(0, 2, n).astype(np.int32)}
            for n in SIZES
        ]
    )


@cache
def composed(lr):
    """SCAFFOLD under quantisation with feedback."""
    algorithm = fc.algorithms.scaffold(
        fc.models.logistic(features=3, classes=2), lr=lr, population=len(SIZES)
    )
    return fc.compose(algorithm, uplink=fc.uplink.feedback(fc.uplink.quantize(bits=8)))


def simulator(lr=0.1, **settings):
    """Two lanes of it."""
    return fc.Simulator(composed(lr), clients(), **{"batch_size": 4, "epochs": 1, "lanes": 2, **settings})


def averaging(lr=0.1):
    """The cheapest simulator: full-batch FedAvg."""
    algorithm = fc.algorithms.fedavg(fc.models.logistic(features=3, classes=2), local=optax.sgd(lr))
    return fc.Simulator(fc.compose(algorithm), clients(), batch_size=9, epochs=1, lanes=1)


def cohorts():
    """Each client by itself with probability one half."""
    return fc.cohorts.poisson(len(SIZES), rate=0.5, seed=1)


def bits(state):
    """Every leaf as (dtype, shape, bytes)."""
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves]


def leaves(path):
    """Every array that a script saved of its last state, as (dtype, shape, bytes)."""
    with np.load(path) as found:
        return [(found[name].dtype, found[name].shape, found[name].tobytes()) for name in found.files]


def rounds_logged(run_dir, kind):
    """The rounds of one kind of record in metrics.jsonl, in order."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record["round"] for record in map(json.loads, lines) if record["kind"] == kind]
