"""Operations are counted as one counts them by hand, and MFU is a division."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import fedjax_core as fc
from fedjax_core.xla import flops
from tests.contracts import COHORTS, simulator


def counted(task, examples):
    return flops.operations(fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.1))), examples)


def images(*shape):
    return {"x": jax.ShapeDtypeStruct((20, *shape), "float32"), "y": jax.ShapeDtypeStruct((20,), "int32")}


def test_a_perceptron_by_hand():
    forward = 20 * (784 * 200 + 200 * 10)
    backward = 20 * (784 * 200 + 200 * 10) + 20 * 200 * 10  # both weights, and the hidden layer
    task = fc.models.mlp(features=784, hidden=(200,), classes=10)
    assert counted(task, images(784)) == {"float32": 2 * (forward + backward)}


def test_a_loop_counts_as_often_as_it_runs():
    def loss(params, batch, key):
        x, _ = lax.scan(lambda x, _: (jnp.tanh(x @ params), None), batch.columns["x"], length=7)
        return jnp.sum(x, axis=1)

    task = fc.Task(init=lambda key: jnp.eye(5), loss=loss)
    assert counted(task, {"x": jax.ShapeDtypeStruct((20, 5), "float32")}) == {
        "float32": 2 * 3 * 7 * 20 * 5 * 5
    }


def test_convolutions_count_what_they_multiply():
    def loss(params, batch, key):
        return jnp.sum(
            lax.conv_general_dilated(
                batch.columns["x"], params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            (1, 2, 3),
        )

    task = fc.Task(init=lambda key: jnp.ones((3, 3, 2, 4)), loss=loss)
    assert counted(task, {"x": jax.ShapeDtypeStruct((20, 10, 10, 2), "float32")}) == {
        "float32": 2 * 2 * 20 * 8 * 8 * 9 * 2 * 4
    }


def test_the_share_of_peak_where_it_is_known(monkeypatch):
    sim = simulator("fedavg")
    sim.reserve(9)
    state, _ = sim.run(sim.init(jax.random.key(0)), COHORTS[0])
    sim.run(state, COHORTS[1])
    assert "MFU" not in sim.meter.report()
    monkeypatch.setitem(flops.PEAK_FLOPS, jax.devices()[0].device_kind, {"float32": 1e9})
    known = simulator("fedavg")
    known.reserve(9)
    state, _ = known.run(known.init(jax.random.key(0)), COHORTS[0])
    known.run(state, COHORTS[1])
    found = known.meter.report()
    assert found["operations/s"] > 0 and found["MFU"] == pytest.approx(found["operations/s"] / 1e9)
