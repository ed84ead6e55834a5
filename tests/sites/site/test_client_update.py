"""A client's work in one program, where it has few steps, and step by step, where it has many, is the same
work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.site import client_update
from fedjax_core.sites.study import Study
from fedjax_core.work import ONCE
from fedjax_core.xla import convolutions, timing
from fedjax_core.xla.convolutions import Convolution
from tests.sites.federations import drawing


def visiting(task, data):
    """A call that visits the client with this data, in batches of 4, twice over: (what it brings back, the
    steps that were told)."""
    return visiting_of(fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))), data)


def visiting_of(composed, data):
    """The same of a `Round`."""
    clients, plan = fc.Clients.from_list([data], ids=["charite"]), Study(composed, 4, 2).plan(None)
    state = composed.init(jax.random.key(1), 1)
    message, _ = composed.broadcast(0, state)
    kept = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
    draws = drawing(state.key, 3, clients.addresses[0])

    def visit():
        told = []
        return client_update.client_update(
            composed, 0, plan, clients, message, state.uplink[0], kept, draws, 3, told.append
        ), told

    return visit


def test_in_one_program_as_step_by_step(monkeypatch):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(23, 1)).astype(np.float32), "y": rng.normal(size=23).astype(np.float32)}
    visit = visiting(fc.models.linear(features=1), data)
    whole, told = visit()
    assert told == [12]  # two passes over 23 examples in batches of 4
    monkeypatch.setattr(client_update, "_STEPS", 5)
    stepwise, told = visit()
    assert told[0] == 5 and told[-1] == 12
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), stepwise, whole)


def test_work_over_all_examples_is_given_them_once_and_other_examples_anew(monkeypatch):
    composed = fc.compose(fc.algorithms.mime(fc.models.linear(features=1), optax.sgd(0.1, momentum=0.9)))
    e = next(e for e, exchange in enumerate(composed.algorithm.exchanges) if exchange.work == ONCE)
    state, plan = composed.init(jax.random.key(1), 1), Study(composed, 4, 2).plan(None)
    message, _ = composed.broadcast(e, state)
    gathered, chunk = [], client_update._chunk
    monkeypatch.setattr(client_update, "_chunk", lambda *of: gathered.append(of) or chunk(*of))

    def gradient(clients):
        draws = drawing(state.key, 3, clients.addresses[0])
        kept = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
        return client_update.client_update(
            composed, e, plan, clients, message, state.uplink[e], kept, draws, 3
        )

    rng = np.random.default_rng(0)
    one, two = (
        fc.Clients.from_list([{"x": rng.normal(size=(n, 1)).astype(np.float32), "y": np.ones(n, np.float32)}])
        for n in (23, 23)
    )
    first, again, other = gradient(one), gradient(one), gradient(two)
    assert len(gathered) == 2
    jax.tree.map(np.testing.assert_array_equal, again, first)
    monkeypatch.setattr(client_update, "_STEPS", 0)  # so that it goes step by step, and nothing is kept
    for clients, found in ((one, first), (two, other)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), gradient(clients), found)


def test_numbers_that_a_float32_cannot_hold_come_as_they_are():
    odd = 2**24 + 1
    task = fc.models.linear(features=1)
    algorithm = fc.algorithms.fedavg(task, optax.sgd(0.1))
    exchange = algorithm.exchanges[0]
    counting = exchange.client._replace(
        step=lambda params, carry, batch, key: (carry, {"seen": fc.metrics.Sum(jnp.int32(odd))})
    )
    composed = fc.compose(algorithm._replace(exchanges=(exchange._replace(client=counting),)))
    found, _ = visiting_of(composed, {"x": np.ones((3, 1), np.float32), "y": np.ones(3, np.float32)})()
    # two passes, each a batch
    assert int(found.metrics["seen"].total) == 2 * odd and float(found.weight) == 3


def test_convolutions_have_the_form_that_is_fast_in_a_loop_and_nothing_is_measured(monkeypatch):
    def logits(kernel, batch):
        return jnp.tanh(jax.lax.conv(batch["x"], kernel, (1, 1), "SAME")).mean((1, 2, 3))

    task = fc.Task(
        init=lambda key: jnp.full((2, 1, 3, 3), 0.1),
        loss=lambda kernel, batch, key: (logits(kernel, batch) - batch["y"]) ** 2,
    )
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(9, 1, 5, 5)).astype(np.float32), "y": rng.normal(size=9).astype(np.float32)}
    taken, by = [], Convolution.by
    monkeypatch.setattr(convolutions, "WORTH_MEASURING", 0)
    monkeypatch.setattr(timing, "_measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(
        Convolution, "by", lambda self, rule, x, k: taken.append(rule) or by(self, rule, x, k)
    )
    found, _ = visiting(task, data)()
    assert len(taken) >= 2 and set(taken) == {"ordered"}  # forward, and the gradient of the kernel
    monkeypatch.setattr(client_update, "rewrite", lambda step, lanes, measure: step)
    plain, _ = visiting(task, data)()
    assert jnp.abs(plain.sent).max() > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, plain)
