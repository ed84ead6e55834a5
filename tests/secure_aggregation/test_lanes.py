"""A round in lanes ends bit for bit where the protocol between sites does, of the same reports."""

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_core as fc
from fedjax_core.round import Among
from fedjax_core.secure_aggregation.ring import dequantize, ring
from fedjax_core.uplink.base import Info
from tests.secure_aggregation.parties import NAMES, aggregate, party, terms
from tests.zoo import fedavg

K, SHAPES = 5, {"w": (4, 3), "b": (3,)}
STAGE = fc.uplink.secure(bound=2.0, bits=20, weights=2**12)
COMPOSED = fedavg(uplink=STAGE, aggregator=fc.aggregators.total())
EVERYONE = np.ones(K, bool)


@jax.jit
def encoded(place, here, update):
    """What a client sends among those that are `here` [K]; where it is alone, its report in the ring without
    a mask."""
    address = jnp.asarray(np.random.default_rng(9).integers(0, 2**32, (K, 2), np.uint32))
    sender = COMPOSED.sender(0, jax.random.key(7), jnp.int32(3), Among(address, jnp.asarray(EVERYONE)), place)
    sender = sender._replace(here=here, weight=(100 * (place + 1)).astype(jnp.float32))
    return STAGE.encode((), (), update, sender)[0]


def test_lanes_and_the_protocol_give_the_same_bits():
    rng = np.random.default_rng(0)
    updates = [
        {name: rng.uniform(-2, 2, shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(K)
    ]

    masked = [encoded(jnp.int32(k), jnp.asarray(EVERYONE), updates[k]) for k in range(K)]
    total = jax.tree.map(lambda *x: jnp.sum(jnp.stack(x), axis=0, dtype=x[0].dtype), *masked)
    one, key, here = jnp.float32(1), jax.random.key(0), jnp.asarray(EVERYONE)
    info = Info(one, one, key, key, here, here, jnp.zeros((K, K, 2), jnp.uint32))
    in_lanes, _ = jax.jit(STAGE.finish)((), total, info, key)

    plain = [encoded(jnp.int32(k), jnp.arange(K) == k, updates[k]).ring for k in range(K)]
    # the weight is one coordinate
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(report)]) for report in plain]
    names = NAMES[:K]
    clients, server = party(names, terms(length=len(flat[0])))
    summed, _ = aggregate(clients, server, dict(zip(names, flat, strict=True)), {names[2]: 3})
    np.testing.assert_array_equal(
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(total.ring)]), summed
    )

    weight = summed[-1]
    assert weight == 1500
    exact = ring(bound=2.0, bits=20, weights=2**12)
    by_protocol = np.asarray(jax.jit(lambda x, w: dequantize(exact, x, w))(summed[:-1], weight))
    np.testing.assert_array_equal(
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(in_lanes)]), by_protocol
    )
    mean = sum(
        (k + 1)
        / 15
        * np.concatenate([np.ravel(updates[k][name]).astype(np.float64) for name in sorted(SHAPES)])
        for k in range(K)
    )
    assert np.abs(by_protocol - mean).max() < exact.step
