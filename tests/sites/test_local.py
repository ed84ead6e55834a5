"""A client's work in one program, where it has few steps, and step by step, where it has many, is the same work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.lanes import convolutions
from fedjax_core.lanes.convolutions import Convolution
from fedjax_core.sites import local
from fedjax_core.sites.request import Draws
from fedjax_core.sites.study import Study


def visiting(task, data):
    """A call that visits the client with this data, in batches of 4, twice over: (what it brings back, the steps that were told)."""
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1)))
    clients, plan = fc.Clients.from_list([data], ids=["charite"]), Study(composed, 4, 2).plan(None)
    state = composed.init(jax.random.key(1), 1)
    message = composed.algorithm.exchanges[0].broadcast(state.server)
    kept = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
    draws = Draws(np.asarray(jax.random.key_data(state.key)), np.int32(3), clients.addresses[0], str(jax.random.key_impl(state.key)))

    def visit():
        told = []
        return local.visit(composed, 0, plan, clients, message, state.uplink[0], kept, draws, 3, told.append), told

    return visit


def test_in_one_program_as_step_by_step(monkeypatch):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(23, 1)).astype(np.float32), "y": rng.normal(size=23).astype(np.float32)}
    visit = visiting(fc.models.linear(features=1), data)
    whole, told = visit()
    assert told == [12]  # two passes over 23 examples in batches of 4
    monkeypatch.setattr(local, "_STEPS", 5)
    stepwise, told = visit()
    assert told[0] == 5 and told[-1] == 12
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), stepwise, whole)


def test_convolutions_have_the_form_that_is_fast_in_a_loop_and_nothing_is_measured(monkeypatch):
    def logits(kernel, batch):
        return jnp.tanh(jax.lax.conv(batch["x"], kernel, (1, 1), "SAME")).mean((1, 2, 3))

    task = fc.Task(init=lambda key: jnp.full((2, 1, 3, 3), 0.1), loss=lambda kernel, batch, key: (logits(kernel, batch) - batch["y"]) ** 2)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(9, 1, 5, 5)).astype(np.float32), "y": rng.normal(size=9).astype(np.float32)}
    taken, by = [], Convolution.by
    monkeypatch.setattr(convolutions, "_WORTH_MEASURING", 0)
    monkeypatch.setattr(convolutions, "_measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(Convolution, "by", lambda self, rule, x, k: taken.append(rule) or by(self, rule, x, k))
    found, _ = visiting(task, data)()
    assert len(taken) >= 2 and set(taken) == {"ordered"}  # forward, and the gradient of the kernel
    monkeypatch.setattr(local, "rewrite", lambda step, lanes, measure: step)
    plain, _ = visiting(task, data)()
    assert jnp.abs(plain.sent).max() > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, plain)
