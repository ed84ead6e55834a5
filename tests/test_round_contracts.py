"""`fedjax_core.contracts`: what holds passes, and a piece that breaks one contract is told which one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.contracts import check_round
from tests.zoo import ZOO, clients, round_of

TASK = fc.models.mlp(features=3, hidden=(4,), classes=3)


def altered(**changes):
    """FedAvg with another begin, step or finish: each a function of the client's own."""
    algorithm = fc.algorithms.fedavg(TASK, optax.sgd(0.1))
    (exchange,) = algorithm.exchanges
    client = exchange.client
    client = client._replace(**{name: change(getattr(client, name)) for name, change in changes.items()})
    return fc.compose(algorithm._replace(exchanges=(exchange._replace(client=client),)))


def test_what_keeps_the_contracts_passes():
    composed = fc.compose(
        fc.algorithms.scaffold(fc.models.logistic(features=3, classes=3), 0.1, 5), uplink=fc.uplink.clip(0.5)
    )
    check_round(composed, clients(sizes=(5, 1, 0, 7, 3)), batch_size=4, rounds=2, lanes=(2,), strict=True)


@pytest.mark.slow  # a step as Python, value by value, takes long
@pytest.mark.parametrize("name", ["scaffold, clip, feedback", "ifca", "mime", "trimmed mean"])
def test_the_zoo_passes(name):
    check_round(round_of(name), clients(ZOO[name].data), batch_size=4, epochs=2)


def test_a_state_kept_in_python_is_found():
    calls = []

    def step(usual):
        def counting(message, carry, batch, key):
            calls.append(None)
            carry, metrics = usual(message, carry, batch, key)
            return carry._replace(params=fc.tree.scale(1 + 0.01 * len(calls), carry.params)), metrics

        return counting

    with pytest.raises(
        AssertionError, match=r"in 1 lane and as plain loops.*keep something in Python between calls"
    ):
        check_round(altered(step=step), clients(sizes=(5, 1, 7)), batch_size=4, rounds=1, lanes=(1,))


def test_draws_that_go_by_no_key_are_found():
    def begin(usual):
        def drawing(message, own, key):
            carry = usual(message, own, key)
            noise = np.float32(np.random.default_rng().normal())
            return carry._replace(params=jax.tree.map(lambda x: x + noise, carry.params))

        return drawing

    with pytest.raises(AssertionError, match="plain loops"):
        check_round(altered(begin=begin), clients(sizes=(5, 1, 7)), batch_size=4, rounds=1, lanes=(1,))


def test_padding_that_counts_is_found():
    def step(usual):
        def unmasked(message, carry, batch, key):
            return usual(message, carry, fc.Batch(batch.columns, jnp.ones_like(batch.mask)), key)

        return unmasked

    with pytest.raises(AssertionError, match="with other examples in the padding of batches"):
        check_round(altered(step=step), clients(sizes=(5, 1, 7)), batch_size=4, rounds=1, lanes=(1,))
