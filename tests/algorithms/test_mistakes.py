"""What a new algorithm gets wrong first is said by name, with the way out."""

import jax.numpy as jnp
import optax
import pytest

import fedjax_core as fc
from fedjax_core.algorithms import Client, Report
from fedjax_core.composition import check_metrics

COLUMNS = {"x": jnp.ones((2, 2)), "y": jnp.ones(2)}


def changed(init_client=None, **client):
    """FedAvg with other functions of a client."""
    algorithm = fc.algorithms.fedavg(fc.models.linear(features=2), optax.sgd(0.1))
    (exchange,) = algorithm.exchanges
    algorithm = algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(**client)),))
    return algorithm if init_client is None else algorithm._replace(init_client=init_client)


def finish(**other):
    return lambda params, carry, seen: Report(carry.params, seen.examples, ())._replace(**other)


MISTAKES = {
    "a tuple": (
        changed(finish=lambda params, carry, seen: (params, 1.0, ())),
        r"finish of exchange 0 of fedavg must return a Report, got tuple",
    ),
    "nothing": (
        changed(finish=lambda params, carry, seen: None),
        "must return a Report, got NoneType: write Report",
    ),
    "no weight": (
        changed(finish=finish(weight=None)),
        "weighs its report by None, which must be a number: seen.examples",
    ),
    "a number kept": (
        changed(finish=finish(own=0.0)),
        r"finish of exchange 0 .* keep 0.0, a float, .*: write jnp.asarray\(0.0\)",
    ),
    "a number kept first": (
        changed(init_client=lambda params: 0.0),
        r"init_client of fedavg .* write jnp.asarray\(0.0\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_where_the_pieces_are_joined(name):
    algorithm, message = MISTAKES[name]
    with pytest.raises(TypeError, match=message):
        fc.compose(algorithm)


def stepping(algorithm):
    (exchange,) = algorithm.exchanges
    return exchange.client


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda client: lambda *of: client.step(*of)[0].params, r"must return \(carry, metrics\), got dict"),
        (lambda client: lambda *of: client.step(*of)[0], r"must return \(carry, metrics\), got Local"),
        (
            lambda client: lambda *of: (client.step(*of)[0]._replace(opt=jnp.ones(3)), {}),
            "the carry of the algorithm's step changed its structure",
        ),
    ],
)
def test_a_step_without_metrics_or_with_another_carry_is_told_before_it_is_looped_over(step, message):
    client: Client = stepping(changed())
    composed = fc.compose(changed(step=step(client)))
    with pytest.raises((TypeError, ValueError), match=message):
        check_metrics(composed, COLUMNS, 2)
