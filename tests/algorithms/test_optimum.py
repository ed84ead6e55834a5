"""Clients of unequal steepness who take several steps: FedAvg stalls at a point that a formula gives, others
reach the optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.algorithms import (
    fedadmm,
    fedavg,
    feddane,
    feddyn,
    fedlin,
    mime,
    scaffold,
    scaffold_one,
    uniform,
)
from tests.quadratic import OPTIMUM, STEEP, TARGETS, UNEVEN, long_run

LR, STEPS = 0.1, 3
SGD = optax.sgd(LR)
EXACT = {
    "scaffold": lambda: scaffold(UNEVEN, LR, population=3),
    "scaffold_one": lambda: scaffold_one(UNEVEN, LR, population=3),
    "feddyn": lambda: feddyn(UNEVEN, 1.0, SGD, population=3),
    "fedadmm": lambda: fedadmm(UNEVEN, 1.0, SGD),
    "fedlin": lambda: fedlin(UNEVEN, SGD, weighting=uniform),
    "feddane": lambda: feddane(UNEVEN, 0.5, SGD, weighting=uniform),
    "mime": lambda: mime(UNEVEN, SGD),
}


@pytest.mark.proves("fedavg", by="closed form: its fixed point on a heterogeneous quadratic")
def test_fedavg_stalls_where_the_formula_says():
    """Where sum (I - P_i)(b_i - w) = 0, with P_i = (I - lr A_i)^T."""
    left = [np.eye(2) - np.linalg.matrix_power(np.eye(2) - LR * a, STEPS) for a in STEEP]
    fixed = np.linalg.solve(sum(left), sum(m @ b for m, b in zip(left, TARGETS, strict=True)))
    assert np.linalg.norm(fixed - OPTIMUM) > 0.05
    assert long_run(fedavg(UNEVEN, SGD)) == pytest.approx(fixed, abs=1e-5)


@pytest.mark.proves(
    "scaffold", "scaffold_one", "feddyn", "fedadmm", "fedlin", "feddane", "mime",
    by="closed form: the optimum of a heterogeneous quadratic, to 1e-5",
)  # fmt: skip
@pytest.mark.parametrize("name", EXACT)
def test_others_reach_the_optimum(name):
    assert long_run(EXACT[name]()) == pytest.approx(OPTIMUM, abs=1e-5)


@pytest.mark.proves("proxskip", by="closed form: the optimum of a heterogeneous quadratic, to 1e-5")
def test_proxskip_reaches_it_in_rounds_of_any_length():
    assert long_run(fc.algorithms.proxskip(UNEVEN, LR, 0.5), steps=12) == pytest.approx(OPTIMUM, abs=1e-5)


@pytest.mark.proves(
    "fedexp",
    by="closed form: on orthogonal clients the error halves in each round, for any number of clients",
)
@pytest.mark.parametrize("clients", [2, 5, 20])
def test_fedexp_halves_the_error_on_orthogonal_clients(clients):
    """Client i's loss is w_i^2 / 2, and one step of size 1 ends at its minimum: the server's step is M /
    2."""
    task = fc.Task(
        lambda key: jnp.linspace(1.0, 2.0, clients),
        lambda w, batch, key: 0.5 * jnp.square((batch["e"] * w[None]).sum(1)),
    )
    data = fc.Clients.from_list([{"e": row[None]} for row in np.eye(clients, dtype=np.float32)])
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedexp(task, optax.sgd(1.0), eps=0.0)), data, batch_size=1, lanes=1
    )
    state = sim.init(jax.random.key(0))
    for _ in range(3):
        before, (state, _) = np.asarray(state.params), sim.run(state, range(clients))
        np.testing.assert_allclose(state.params, before / 2, rtol=1e-6)


@pytest.mark.proves("fedexp", by="identity: FedAvg where clients are alike")
def test_fedexp_is_fedavg_of_clients_alike():
    task = fc.Task(lambda key: jnp.ones(1), lambda w, batch, key: 0.5 * jnp.square(batch["x"] - w[0]))
    data = fc.Clients.from_list([{"x": np.full(1, 3.0, np.float32)}] * 3)
    ends = []
    for algorithm in (fc.algorithms.fedexp(task, SGD, eps=0.0), fedavg(task, SGD)):
        loops = fc.Loops(fc.compose(algorithm), data, batch_size=1)
        ends.append(float(loops.run(loops.init(jax.random.key(0)), [0, 1, 2])[0].params[0]))
    assert ends[0] == pytest.approx(ends[1], abs=1e-7)
