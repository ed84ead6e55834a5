"""What the contract tests share: the zoo's rounds, run once and kept, and how states are compared.

An entry's round is built, compiled and run once a process, whichever tests ask for it.
"""

from functools import cache

import jax
import numpy as np
import pytest

from fedjax_core import Simulator, State
from tests.reference import Reference
from tests.zoo import SIZES, ZOO, clients

ROUNDS, BATCH = 5, 4
COHORTS = [np.random.default_rng(r).permutation(len(SIZES))[:9] for r in range(ROUNDS)]
entries = pytest.mark.parametrize("name", ZOO)
# One of each kind of piece; under the contracts that compile most, the others run with --slow.
KINDS = ("fedavg", "ifca", "scaffold, clip, feedback", "mime, clip, feedback", "trimmed mean")
pieces = pytest.mark.parametrize("name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in ZOO])


@cache
def built(name: str):
    return ZOO[name].build(), clients(ZOO[name].data)


def simulator(name: str, **settings) -> Simulator:
    composed, data = built(name)
    return Simulator(composed, data, **{"batch_size": BATCH, "epochs": 2, "lanes": 3, **settings})


def run(sim, cohorts=COHORTS, state=None):
    state, seen = sim.init(jax.random.key(1)) if state is None else state, []
    for cohort in cohorts:
        state, found = sim.run(state, cohort)
        seen.append(found)
    return state, seen


@cache
def usual(name: str):
    """What three lanes do in five rounds: (simulator, state, metrics)."""
    sim = simulator(name)
    return (sim, *run(sim))


@cache
def by_plain_loops(name: str):
    return run(Reference(*built(name), batch_size=BATCH, epochs=2))


def assert_close(got: State, expected: State):
    """The model to 1e-6 of its norm; what the server and the clients keep besides to 2e-5.

    Control variates and residuals are small differences of larger numbers, so float32 leaves fewer digits in them: a change of 1e-7
    in a model is one of 1e-7 / (T lr) in a control variate, and of 1e-7 * 2^bits in what a quantiser left over.
    """
    assert_norm(got.params, expected.params, 1e-6)
    for part in ("server", "uplink", "clients", "round"):
        assert_norm(getattr(got, part), getattr(expected, part), 2e-5)


def assert_norm(got, expected, bound: float):
    x, y = (np.concatenate([[0.0], *(np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(t))]) for t in (got, expected))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert np.linalg.norm(x - y) <= bound * np.linalg.norm(y)


def assert_equal(got: State, expected: State):
    """Every bit."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(bits(got)), jax.tree.leaves(bits(expected)), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def bits(state: State):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
