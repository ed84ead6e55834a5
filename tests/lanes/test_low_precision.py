"""A model in 16 bits: sums of reports, their weights and what the server keeps are in 32: the mean of equal
updates is that update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import fedjax_core as fc
from fedjax_core.sites.site_file import SiteFile
from tests.cluster.in_process import InProcess

SIZE, CLIENTS, LR = 3, 300, 0.1
ALL = fc.Clients.from_list([{"x": np.ones((SIZE, 2), np.float32)} for _ in range(CLIENTS)])


def task(dtype, gradient=1.0):
    """Every step of every client moves each parameter by the learning rate."""
    scaled = np.float32(gradient)

    def loss(w, batch, key):
        return -scaled * (batch["x"] * w[None, :].astype(jnp.float32)).sum(1)

    return fc.Task(lambda key: jnp.zeros(2, dtype), loss)


def composed(dtype, aggregator=None, uplink=None, server=None, gradient=1.0):
    algorithm = fc.algorithms.fedavg(task(dtype, gradient), optax.sgd(LR), server)
    algorithm = (
        fc.algorithms.unweighted(algorithm) if aggregator is not None and aggregator.alike else algorithm
    )
    return fc.compose(algorithm, aggregator=aggregator, uplink=uplink)


def one_round(sim, clients=CLIENTS):
    state, metrics = sim.run(sim.init(jax.random.key(0)), np.arange(clients))
    assert float(metrics["refused"]) == 0
    return state


def backends(round, monkeypatch):
    monkeypatch.setattr("fedjax_core.cluster.pool.connect", lambda address, cpus: None)
    monkeypatch.setattr("fedjax_core.cluster.pool.WorkerPool", InProcess)
    mesh = Mesh(np.array(jax.devices()[:2]), ("lanes",))
    return {
        "lanes": lambda: fc.Simulator(round, ALL, batch_size=SIZE, lanes=7),
        "shares": lambda: fc.ClusterSimulator(round, ALL, shares=3, batch_size=SIZE, lanes=2),
        "mesh": lambda: fc.Simulator(round, ALL, batch_size=SIZE, lanes=4, mesh=mesh),
    }


MEAN, TRIMMED = fc.aggregators.mean(), fc.aggregators.trimmed_mean(0.1)
CASES = [
    ("lanes", jnp.bfloat16, MEAN), ("lanes", jnp.float16, MEAN), ("lanes", jnp.bfloat16, TRIMMED), ("shares", jnp.bfloat16, MEAN),
    pytest.param("shares", jnp.float16, TRIMMED, marks=pytest.mark.slow), pytest.param("mesh", jnp.bfloat16, MEAN, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("backend", "dtype", "aggregator"), CASES)
def test_the_mean_of_equal_updates_is_that_update_to_the_last_bit(backend, dtype, aggregator, monkeypatch):
    params = one_round(backends(composed(dtype, aggregator), monkeypatch)[backend]()).params
    assert params.dtype == dtype and (params == jnp.asarray(LR, dtype)).all()


def test_sites_and_asynchronous_runs_too():
    round = composed(jnp.float16)
    columns = {"x": np.ones((40_000, 2), np.float32)}  # whose number a float16 does not hold
    sites = [SiteFile(name=name, data=columns) for name in "abc"]
    with fc.Federation(round, sites, batch_size=40_000, transport="in-process") as fed:
        assert (one_round(fed, 3).params == jnp.float16(LR)).all()
    simulator = fc.AsynchronousSimulator(round, ALL, fc.Buffer(size=CLIENTS), batch_size=SIZE, lanes=4)
    assert (one_round(simulator).params == jnp.float16(LR)).all()


@pytest.mark.parametrize(
    "stage",
    [fc.uplink.quantize(8), fc.uplink.half(), fc.uplink.feedback(fc.uplink.quantize(8))],
    ids=lambda s: s.name,
)
def test_stages_take_models_in_16_bits(stage):
    params = one_round(
        fc.Simulator(composed(jnp.bfloat16, uplink=stage), ALL, batch_size=SIZE, lanes=2)
    ).params
    assert np.allclose(np.asarray(params, np.float32), LR, rtol=2**-8)


def test_what_the_server_keeps_adds_up_in_32_bits_and_the_model_stays_in_its_own():
    simulator = fc.Simulator(
        composed(jnp.bfloat16, server=optax.chain(optax.trace(0.999), optax.scale(0.0))),
        ALL.select([0, 1]),
        batch_size=SIZE,
        lanes=1,
    )
    state = simulator.init(jax.random.key(0))
    dtypes = jax.tree.map(lambda x: x.dtype, state)
    for _ in range(20):
        state, _ = simulator.run(state, [0, 1])
    assert jax.tree.map(lambda x: x.dtype, state) == dtypes and state.params.dtype == jnp.bfloat16
    (momentum,) = jax.tree.leaves(state.server.opt)
    assert momentum.dtype == jnp.float32
    assert np.isclose(
        momentum[0], -np.float32(jnp.bfloat16(LR)) * sum(0.999**i for i in range(20)), rtol=1e-5
    )


def test_float32_models_keep_the_very_algorithm_they_were_given():
    algorithm = fc.algorithms.fedavg(task(jnp.float32), optax.sgd(LR))
    assert fc.compose(algorithm).algorithm is algorithm


def test_a_loss_in_16_bits_has_its_mean_taken_in_32():
    columns, many = {"x": jnp.full((30_000, 1), 3.0)}, jnp.ones(30_000)  # their sum is beyond float16
    half = fc.Task(lambda key: jnp.zeros(1), lambda w, batch, key: batch["x"][:, 0].astype(jnp.float16))
    assert float(half.mean_loss(jnp.zeros(1), fc.Batch(columns, many), jax.random.key(0))) == 3.0
