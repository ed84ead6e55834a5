"""A client's work in one program, where it has few steps, and step by step, where it has many, is the same work."""

from functools import partial

import jax
import numpy as np
import optax

import fedjax_core as fc
from fedjax_core.sites import local
from fedjax_core.sites.request import Draws
from fedjax_core.sites.study import Study


def test_in_one_program_as_step_by_step(monkeypatch):
    composed = fc.compose(fc.algorithms.fedavg(fc.models.linear(features=1), optax.sgd(0.1)))
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(23, 1)).astype(np.float32), "y": rng.normal(size=23).astype(np.float32)}
    clients, plan = fc.Clients.from_list([data], ids=["charite"]), Study(composed, 4, 2).plan(None)
    state = composed.init(jax.random.key(1), 1)
    message = composed.algorithm.exchanges[0].broadcast(state.server)
    kept = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
    draws = Draws(np.asarray(jax.random.key_data(state.key)), np.int32(3), clients.addresses[0], str(jax.random.key_impl(state.key)))

    def visit():
        told = []
        return local.visit(composed, 0, plan, clients, message, state.uplink[0], kept, draws, 3, told.append), told

    whole, told = visit()
    assert told == [12]  # two passes over 23 examples in batches of 4
    monkeypatch.setattr(local, "_STEPS", 5)
    stepwise, told = visit()
    assert told[0] == 5 and told[-1] == 12
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), stepwise, whole)
