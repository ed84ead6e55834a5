"""Secure aggregation: a message tells nothing by itself, the sum is exact, and the masks of who dropped out
are taken off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import uplink
from fedjax_core.round import Among
from fedjax_core.secure_aggregation.ring import Weighted
from fedjax_core.uplink.base import alone
from tests.contracts import assert_norm
from tests.zoo import clients, fedavg, task

K, BOUND, BITS, WEIGHTS = 5, 4.0, 20, 2**12
STAGE = uplink.secure(BOUND, BITS, WEIGHTS)
STEP = BOUND / (2 ** (BITS - 1) - 1)
SHAPES = {"w": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.float32)}
COMPOSED = fedavg(uplink=STAGE, aggregator=fc.aggregators.total())
HERE = np.array([True, True, False, True, True])  # an empty place is masked with nobody


@jax.jit
def encoded(place, here, round, update):
    """(what the client at this place sends, as what)."""
    address = jnp.asarray(np.random.default_rng(9).integers(0, 2**32, (K, 2), np.uint32))
    sender = COMPOSED.sender(0, jax.random.key(7), round, Among(address, here), place)
    return STAGE.encode((), (), update, sender._replace(weight=place.astype(jnp.float32) + 1))[0], sender


def sent(place, round=3):
    """What the client at this place sends, what it means, and as what."""
    rng = np.random.default_rng(place)
    update = {"w": rng.normal(size=3).astype(np.float32), "b": np.float32(rng.normal())}
    message, sender = encoded(jnp.int32(place), jnp.asarray(HERE), jnp.int32(round), update)
    return message, update, sender


def whole(place):
    """The whole numbers that stand for the report of the client at this place: without masks, as nobody else
    is there."""
    _, update, sender = sent(place)
    message = encode_alone(
        update, sender._replace(here=jnp.arange(K) == place, weight=jnp.float32(place + 1))
    )
    return {name: np.asarray(x).astype(np.int32).astype(np.int64) for name, x in message.ring.update.items()}


@jax.jit
def encode_alone(update, sender):
    return STAGE.encode((), (), update, sender)[0]


def added(messages):
    """All messages as the aggregator adds them."""
    return jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0, dtype=np.asarray(x[0]).dtype), *messages)


@pytest.mark.proves("secure", by="identity: the sum of integers, to the last bit")
def test_masks_cancel_to_the_last_bit():
    there = [k for k in range(K) if HERE[k]]
    total = added([sent(k)[0] for k in there])
    meant = {k: whole(k) for k in there}
    for name in SHAPES:
        expected = sum(meant[k][name] for k in there)
        np.testing.assert_array_equal(np.asarray(total.ring.update[name]), expected.astype(np.uint32))
    for k in there:  # each number to the step below or above, times the weight
        for name, x in sent(k)[1].items():
            assert np.all(np.abs(meant[k][name] / (k + 1) - x / STEP) < 1.01) and not np.any(
                meant[k][name] % (k + 1)
            )
    assert int(total.ring.weight) == sum(k + 1 for k in there) and float(total.fits) == 0


def test_a_message_by_itself_is_uniform_whatever_it_says():
    """Of the same report in many rounds every bit is set half of the time, and two messages are not near one
    another."""
    words = np.stack([np.asarray(sent(0, round=r)[0].ring.update["w"]) for r in range(400)])
    bits = np.unpackbits(words.view(np.uint8).reshape(400, -1), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize("dropped", [[0], [4], [1, 3]])
def test_those_who_reported_reveal_the_masks_of_those_who_dropped_out(dropped):
    reported = HERE & ~np.isin(np.arange(K), dropped)
    there = [k for k in range(K) if reported[k]]
    value = added([sent(k)[0] for k in there])
    recovered = np.zeros((K, K, 2), np.uint32)
    for k in there:
        recovered[k] = STAGE.recover((), (), sent(k)[2], jnp.asarray(reported))
        assert not recovered[k][reported | ~HERE].any()  # of nobody else is anything revealed
    one, key = jnp.float32(1), jax.random.key(0)
    info = uplink.Info(one, one, key, key, jnp.asarray(HERE), jnp.asarray(reported), jnp.asarray(recovered))
    got, _ = jax.jit(STAGE.finish)((), jax.tree.map(jnp.asarray, value), info, key)
    for name in SHAPES:
        total = sum(whole(k)[name] for k in there)
        np.testing.assert_allclose(got[name], total * STEP / sum(k + 1 for k in there), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, BOUND * 1.001, -BOUND * 1.001])
def test_what_does_not_fit_the_ring_is_refused_and_not_wrapped(bad):
    encode = jax.jit(STAGE.encode)
    here = jnp.ones(4, bool)
    sender = alone(jax.random.key(0))._replace(here=here, pairs=jax.random.split(jax.random.key(1), 4))
    message, _ = encode((), (), {"w": jnp.array([0.0, bad, 1.0], jnp.float32)}, sender)
    assert np.isnan(message.fits)
    fine, _ = encode((), (), {"w": jnp.array([0.0, BOUND, -BOUND], jnp.float32)}, sender)
    assert float(fine.fits) == 0


@pytest.mark.parametrize(
    ("weight", "fits"),
    [(0, True), (1024, True), (1025, False), (0.5, False), (-1, False), (np.nan, False), (3e9, False)],
)
def test_a_weight_is_whole_and_no_more_than_its_part_of_all(weight, fits):
    """Four clients share 2^12."""
    sender = alone(jax.random.key(0))._replace(
        here=jnp.ones(4, bool), pairs=jax.random.split(jax.random.key(1), 4)
    )
    message = encode_alone({"w": jnp.ones(3, jnp.float32)}, sender._replace(weight=jnp.float32(weight)))
    assert bool(np.isnan(message.fits)) is not fits


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_round_is_the_mean_by_weight_also_where_a_client_is_refused(lanes):
    """The model is that of plain averaging, to the steps of the ring."""
    data = clients("classes")
    columns = [dict(data[i]) for i in range(len(data))]
    # from which training diverges
    columns[5]["x"] = np.random.default_rng(0).choice(np.float32([1e18, -1e18]), columns[5]["x"].shape)
    data, settings = fc.Clients.from_list(columns), {"batch_size": 4, "epochs": 2, "lanes": lanes}
    hidden = fedavg(uplink=uplink.secure(bound=2.0, bits=24, weights=2**8), aggregator=fc.aggregators.total())
    found = []
    for composed in (hidden, fedavg()):
        sim = fc.Simulator(composed, data, **settings)
        state, seen = sim.run(sim.init(jax.random.key(1)), [3, 5, 7])
        assert float(seen["refused"]) == 1
        found.append(state.params)
    assert_norm(*found, 1e-6)


def test_what_does_not_fit_a_hidden_report_is_named():
    algorithm = fc.algorithms.fedavg(task(), optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"median\(\) needs every client's update, but 'secure' only reveals their sum"
    ):
        fc.compose(algorithm, uplink=uplink.secure(1.0), aggregator=fc.aggregators.median())
    with pytest.raises(
        ValueError, match=r"fednova reports the stats steps in exchange 0, .* but 'secure' only reveals sums"
    ):
        fc.compose(
            fc.algorithms.fednova(task(), 0.1), uplink=uplink.secure(1.0), aggregator=fc.aggregators.total()
        )
    with pytest.raises(
        TypeError, match=r"mean\(\) averages numbers with a point, and a client reports .* as uint32"
    ):
        fc.compose(algorithm, uplink=uplink.secure(1.0))
    for order in ((uplink.quantize(8), uplink.secure(1.0)), (uplink.secure(1.0), uplink.quantize(8))):
        with pytest.raises(
            ValueError, match="stage 'quantize' reads each message by itself, and 'secure' lets the server"
        ):
            uplink.chain(*order)
    with pytest.raises(
        ValueError, match=r"feedback\(\) keeps what the server does not read .* secure lets it read none"
    ):
        uplink.feedback(uplink.secure(1.0))
    with pytest.raises(ValueError, match="the ring needs a bound > 0"):
        uplink.secure(bound=-1.0)
    with pytest.raises(
        ValueError,
        match="numbers of 17 bits with weights of 65536 in sum need 33 bits, and the ring has 32: take bits=16",
    ):
        uplink.secure(bound=1.0, bits=17)
    sim = fc.Simulator(COMPOSED, clients("classes"), batch_size=4, epochs=1, lanes=2)
    with pytest.raises(
        ValueError, match="a client of this cohort was drawn 2 times, and secure hides its report"
    ):
        sim.run(sim.init(jax.random.key(0)), fc.Cohort(np.array([3, 5]), np.array([2, 1])))


def test_where_there_is_no_cohort_with_keys_it_is_refused():
    data = {"batch_size": 4, "epochs": 1}
    with pytest.raises(ValueError, match=r"secure goes by who else is in the cohort \(here, pairs, place\)"):
        fc.AsynchronousSimulator(COMPOSED, clients("classes"), fc.Buffer(3), lanes=2, **data)
    from fedjax_core.sites.study import Study

    for departments in (False, True):  # a site adds its departments' whole numbers before it hides the sum
        assert Study(COMPOSED, departments=departments, **data).secure(0) is COMPOSED.uplink.ring is not None


def test_the_weight_and_the_update_are_one_ring():
    assert isinstance(uplink.message_shapes(STAGE, SHAPES).ring, Weighted)
