"""Under secure aggregation: noise that sites add together (Skellam), each of a secret of its own, in sums of
enough sites; compression."""

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import keys
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Paused
from fedjax_core.sites.protocol import request
from fedjax_core.sites.protocol.kinds import MASK, REVEAL
from fedjax_core.sites.site.secure_attempt import Secure
from fedjax_core.sites.wire.envelope import header_of
from tests.sites.faulty import failed
from tests.sites.federations import NAMES, federation, simulator
from tests.zoo import task

PRIVATE = fc.privacy.distributed(
    clients=4, parameters=31, rounds=3, clip=0.5, noise=3.0, delta=1e-5, dropped=1
)
UNIFORM = fc.algorithms.fedavg(task(), optax.sgd(0.1), weighting=fc.algorithms.uniform)
NOISY = fc.compose(UNIFORM, uplink=PRIVATE.uplink, aggregator=PRIVATE.aggregator)


def begun(fed):
    return fed.init(jax.random.key(1))


def params(state):
    return jax.tree.map(np.asarray, state.params)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def losing(stage, *names):
    """A fault by which what is asked of these sites at this stage is lost."""
    return lambda send, site, asked, n: (
        failed() if header_of(asked).kind == stage and site in names else send(site, asked)
    )


@pytest.fixture(scope="module")
def lanes():
    return simulator(NOISY)


@pytest.fixture
def as_in_lanes(monkeypatch):
    """Sites whose secrets come of the run's key, as a simulation's do."""
    of_a_site = request.draws

    def draws(header, address, secret, of):
        found = of_a_site(header, address, secret, of)
        client = keys.client(found.run_key(), header.round, address)
        return found._replace(secret=np.asarray(jax.random.key_data(keys.secret(client, header.exchange))))

    monkeypatch.setattr(request, "draws", draws)


@pytest.fixture
def reports(monkeypatch):
    """What each site's report is before its masks, in the order in which they are made: a list of [length]
    uint32."""
    found, vector = [], Secure.vector

    def kept(self, sent):
        found.append(vector(self, sent).copy())
        return found[-1]

    monkeypatch.setattr(Secure, "vector", kept)
    return found


@pytest.mark.slow
def test_with_the_same_secrets_sites_end_bit_for_bit_where_lanes_do_of_the_plain_sum_of_whole_numbers(
    lanes, as_in_lanes, reports
):
    with federation(NOISY) as (fed, _, _):
        state, got = fed.run(begun(fed), [0, 1, 2, 3])
        assert float(got["clients"].total) == 4 and "loss" not in got
    expected, _ = lanes.run(begun(lanes), [0, 1, 2, 3])
    assert_same(params(state), params(expected))
    total = np.sum(np.stack(reports), axis=0, dtype=np.uint32)
    assert total[-1] == 4, "all count alike"
    mean = total[:-1].view(np.int32) * PRIVATE.step / 4
    moved = [
        np.ravel(np.subtract(a, b))
        for a, b in zip(*map(jax.tree.leaves, (state.params, begun(lanes).params)), strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(moved), mean, atol=1e-6)


@pytest.mark.slow
def test_a_site_that_may_drop_out_takes_its_share_of_the_noise_with_it_and_is_accounted_for(
    lanes, as_in_lanes, tmp_path
):
    with federation(NOISY, fault=losing(MASK, NAMES[1]), folder=tmp_path) as (fed, _, _):
        state, got = fed.run(begun(fed), [0, 1, 2, 3])
        assert float(got["clients"].total) == 3
    expected, _ = lanes.run(begun(lanes), [0, 2, 3])
    assert_same(params(state), params(expected))
    assert PRIVATE.local * np.sqrt(3) == pytest.approx(PRIVATE.noise * PRIVATE.clip), (
        "three have all of the noise"
    )
    told = [one.about for one in show(tmp_path / "coordinator" / "audit", what="round")]
    assert [one["epsilon"] for one in told] == [pytest.approx(PRIVATE.epsilon(1))] and told[0][
        "delta"
    ] == PRIVATE.delta


def test_a_sum_with_less_noise_than_is_promised_is_never_opened(tmp_path):
    """Of which `dropped=1` says that three of four must be in it: the coordinator ends the round, and each
    site refuses by itself."""
    whole = fc.privacy.distributed(clients=4, parameters=31, rounds=3, clip=0.5, noise=3.0, delta=1e-5)
    composed = fc.compose(UNIFORM, uplink=whole.uplink, aggregator=whole.aggregator)
    with federation(composed, fault=losing(MASK, NAMES[1])) as (fed, _, _):
        with pytest.raises(Paused, match="3 sites took part and 4 are needed"):
            fed.run(begun(fed), [0, 1, 2, 3])
        with pytest.raises(
            Paused,
            match=r"3 sites can be asked, and the noise that chain.* promises is in a sum of at least 4",
        ):
            fed.run(begun(fed), [0, 2, 3])
    with federation(composed, fault=losing(MASK, NAMES[1]), folder=tmp_path) as (fed, _, _):
        careless = composed.uplink.promises._replace(reports=0)
        fed._rounds._round = composed._replace(uplink=composed.uplink._replace(promises=careless))
        with pytest.raises(Paused, match=rf"{NAMES[0]}: .*demands at least 4"):
            fed.run(begun(fed), [0, 1, 2, 3])


def test_the_secret_is_the_sites_own_and_a_request_that_is_asked_again_gets_the_same_report(reports):
    """Two federations of one run's key: sites of other keys draw other noise. What is lost on its way is sent
    again as it was."""
    lost = {"now": True}

    def once(send, site, asked, n):
        return losing(REVEAL, *NAMES[:2])(send, site, asked, n) if lost["now"] else send(site, asked)

    with federation(NOISY, fault=once) as (fed, _, _):
        start = begun(fed)
        with pytest.raises(Paused):
            fed.run(start, [0, 1, 2, 3])
        lost["now"] = False
        first, _ = fed.run(start, [0, 1, 2, 3])
    before, again = np.stack(reports[:4]), np.stack(reports[4:])
    assert sorted(map(bytes, before)) == sorted(map(bytes, again))
    with federation(NOISY) as (fed, _, _):
        other, _ = fed.run(begun(fed), [0, 1, 2, 3])
    moved = np.concatenate(
        [
            np.ravel(np.subtract(a, b))
            for a, b in zip(*map(jax.tree.leaves, (first.params, other.params)), strict=True)
        ]
    )
    assert (moved != 0).mean() > 0.9


@pytest.mark.slow
def test_linear_compression_gives_at_sites_the_bits_of_lanes_which_are_those_of_the_plain_sum(reports):
    """Rotated alike, of which all send the same coordinates: the sum of whole numbers is of these alone."""
    stages = fc.uplink.clip(0.5), fc.uplink.rotated(fc.uplink.chain()), fc.uplink.randk(0.3, shared=True)
    hidden = fc.uplink.chain(*stages, fc.uplink.secure(bound=2.0, bits=16, weights=2**8))
    composed = fc.compose(
        fc.algorithms.fedavg(task(), optax.sgd(0.1)), uplink=hidden, aggregator=fc.aggregators.total()
    )
    with federation(composed) as (fed, _, _):
        state, _ = fed.run(begun(fed), [0, 1, 2, 3])
    sim = simulator(composed)
    assert_same(params(state), params(sim.run(begun(sim), [0, 1, 2, 3])[0]))
    total = np.sum(np.stack(reports), axis=0, dtype=np.uint32)
    assert len(total) == 10 + 1, "0.3 of 32 rotated numbers, and the weight"
    moved = [
        np.ravel(np.subtract(a, b))
        for a, b in zip(*map(jax.tree.leaves, (state.params, begun(sim).params)), strict=True)
    ]
    sent = total[:-1].view(np.int32) * (2.0 / (2**15 - 1)) / total[-1]
    assert np.linalg.norm(np.concatenate(moved)) <= np.linalg.norm(sent) * (1 + 1e-5), (
        "a rotation keeps norms, and padding is cut off"
    )
