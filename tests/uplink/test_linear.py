"""Linear stages before secure aggregation: the server reads the sum of all messages, which is the message of
the mean of updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core import uplink
from fedjax_core.uplink.base import alone, message_shapes, roundtrip

SHAPES = {"w": jax.ShapeDtypeStruct((8, 3), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
LINEAR = {
    "random coordinates": (lambda: uplink.randk(0.3, shared=True), 9),
    "sketch": (lambda: uplink.count_sketch(3, 5), 15),
    "rotation": (lambda: uplink.rotated(uplink.chain()), 32),
    "what is left comes later": (lambda: uplink.feedback(uplink.randk(0.3, unbiased=False, shared=True)), 9),
    "rotation, sketch": (lambda: uplink.rotated(uplink.count_sketch(3, 5)), 15),
}
KEY = jax.random.key(3)


def updates(count):
    rng = np.random.default_rng(0)
    return [
        {name: rng.normal(size=x.shape).astype(np.float32) for name, x in SHAPES.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", LINEAR)
def test_the_sum_of_masked_messages_is_read_as_the_stage_alone_reads_the_weighted_mean(name):
    """By the stage itself, of one update that is the mean: no numbers of the masks, the ring or the order are
    in it."""
    stage, numbers = LINEAR[name][0](), LINEAR[name][1]
    both = uplink.chain(stage, uplink.secure(bound=64.0, bits=24, weights=2**8))
    sent = message_shapes(both, SHAPES)
    assert sum(x.size for x in jax.tree.leaves(sent.ring.update)) == numbers, "no seeds under masks"
    shared, places, weights = jax.random.fold_in(KEY, 1), jnp.ones(3, bool), (1.0, 2.0, 5.0)
    pairs = jax.vmap(lambda a: jax.vmap(lambda b: jax.random.fold_in(KEY, a * b))(jnp.arange(1, 4)))(
        jnp.arange(1, 4)
    )
    state, three = both.init(SHAPES), updates(3)

    def encoded(k):
        own = uplink.Sender(
            jax.random.fold_in(KEY, 10 + k),
            shared,
            KEY,
            pairs[k],
            jnp.int32(k),
            places,
            jnp.float32(weights[k]),
        )
        return both.encode(state, both.init_client(SHAPES), three[k], own)[0]

    total = jax.tree.map(lambda *x: sum(x[1:], x[0]), *(encoded(k) for k in range(3)))
    nobody = jnp.zeros((3, 3, 2), jnp.uint32)
    info = uplink.Info(jnp.float32(8), jnp.float32(3), shared, KEY, places, places, ((), nobody), SHAPES)
    value, _ = both.finish(state, total, info, KEY)
    mean = jax.tree.map(lambda *x: sum(w * one for w, one in zip(weights, x, strict=True)) / 8, *three)
    inner = jax.random.fold_in(shared, 0)  # of the first of two stages
    own = alone(inner)._replace(shared=inner)
    expected = stage.expand(
        stage.init(SHAPES), stage.encode((), stage.init_client(SHAPES), mean, own)[0], SHAPES
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), value, expected)


def test_a_rotation_of_nothing_else_changes_nothing_and_shared_places_are_the_same_for_all():
    (one,) = updates(1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        roundtrip(uplink.rotated(uplink.chain()), one, KEY),
        one,
    )
    stage = uplink.randk(0.3, shared=True)
    senders = [alone(jax.random.key(i))._replace(shared=KEY) for i in (1, 2)]
    seeds = [stage.encode((), (), one, sender)[0][0].seed for sender in senders]
    own = [uplink.randk(0.3).encode((), (), one, sender)[0][0].seed for sender in senders]
    assert seeds[0] == seeds[1] and own[0] != own[1]


@pytest.mark.parametrize(
    "stage", [lambda: uplink.randk(0.3), lambda: uplink.feedback(uplink.topk(0.3)), lambda: uplink.qsgd(4)]
)
def test_what_is_not_linear_or_not_the_same_for_all_is_refused_by_name(stage):
    with pytest.raises(
        ValueError,
        match=r"reads each message by itself.*or before it one that is linear.*randk\(shared=True\)",
    ):
        uplink.chain(stage(), uplink.secure(1.0))


def test_a_linear_stage_after_noise_that_the_server_adds_is_refused():
    noise = fc.privacy.gaussian(1.0, noise=1.0, cohort=8)
    with pytest.raises(ValueError, match="changes the sum of reports before"):
        uplink.chain(noise, uplink.count_sketch(3, 5), uplink.secure(1.0))
