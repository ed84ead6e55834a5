"""Tallies: the bits of an exchange against a count by hand."""

import optax

import fedjax_core as fc
from fedjax_core import tallies

NUMBERS = 3  # of a linear model: two weights and a bias
CLIENTS = 7


def counted(algorithm, e, reports, messages):
    composed = fc.compose(algorithm, uplink=fc.uplink.clip(1.0), downlink=fc.uplink.half())
    found = tallies.on_the_wire(composed, e, reports, messages)
    return float(found["bits_up"]), float(found["bits_down"])


def test_a_message_to_all_counts_once_for_each_who_takes_part():
    algorithm = fc.algorithms.fedavg(fc.models.linear(features=2), optax.sgd(0.1))
    assert counted(algorithm, 0, reports=4, messages=5) == (4 * 32 * NUMBERS, 5 * 16 * NUMBERS)


def test_what_the_server_tells_a_client_alone_counts_beside_the_message():
    """AFL: each client finds its loss on the model, and then trains, told the one float32 that is its
    share."""
    algorithm = fc.algorithms.afl(fc.models.linear(features=2), optax.sgd(0.1), rate=0.1, population=CLIENTS)
    find, train = counted(algorithm, 0, reports=4, messages=5), counted(algorithm, 1, reports=4, messages=5)
    assert find == (0, 5 * 16 * NUMBERS)
    assert train == (4 * 32 * NUMBERS, 5 * (16 * NUMBERS + 32))
