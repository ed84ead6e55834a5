"""A site's update may be larger than the others', and not absurdly so: it is set aside by name, and the round
is that of the others."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core import tree
from fedjax_core.algorithms.base import Seen, by_examples
from fedjax_core.sites.coordinator import exchange, server
from fedjax_core.sites.coordinator.outlying import outlying
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.coordinator.weighing import counters, weigher
from tests.sites.faulty import failed
from tests.sites.federations import NAMES, federation
from tests.zoo import SGD, fedavg, round_of, task


@pytest.mark.parametrize(
    ("norms", "work", "model", "found"),
    [
        ([1, 1.1, 0.9], [1, 1, 1], 1, []),
        ([1, 1.1, 99], [1, 1, 1], 1, []),
        ([1, 1.1, 120], [1, 1, 1], 1, [2]),
        ([1e20, 1, 1.1], [1, 1, 1], 1, [0]),
        ([math.inf, 1, 1.1, 2], [1, 1, 1, 1], 1, [0]),
        ([1e20, 1e20, 1, 2], [1, 1, 1, 1], 1, [0, 1]),  # half of them lie
        ([1, 1, 1, 100 * 10_000], [1, 1, 1, 10_000], 0, []),  # one hospital with many more steps
        # all others have converged, and beside the model it is nothing
        (
            [1e-6, 1e-6, 1e-6, 1e-3],
            [1, 1, 1, 1],
            1,
            [],
        ),
        ([1e-6, 1e-6, 1e-6, 1.0], [1, 1, 1, 1], 1, [3]),
        ([0, 0, 0, 5.0], [1, 1, 1, 1], 0, []),  # of which the norms above zero are too few to go by
        ([0, 0, 0, 1e20], [1, 1, 1, 1], 0, [3]),
        ([0, 0, 0], [1, 1, 1], 0, []),
        ([1e5], [1], 0, []),
        ([1e20], [1], 1, [0]),
        ([1, 1e9], [1, 1], 0, [1]),
        ([1e9, 1e9], [1, 1], 1e5, []),  # of a model that large
        ([], [], 1, []),
    ],
)
def test_which_norms_are_absurd(norms, work, model, found):
    order = np.random.default_rng(len(norms)).permutation(len(norms)).tolist()
    assert outlying(norms, work, lambda: model) == found
    mixed = outlying([norms[i] for i in order], [work[i] for i in order], lambda: model)
    assert sorted(order[i] for i in mixed) == found


def huge(site, factor=1e20):
    def lie(name, said):
        if name == site and said.header.kind == "update":
            larger = {
                n: (x * factor).astype(x.dtype)
                for n, x in said.tensors.items()
                if jnp.issubdtype(x.dtype, jnp.floating)
            }
            return {}, dict(said.tensors) | larger
        return None

    return lie


def silent(site):
    """The same round without the site."""
    return lambda send, name, request, n: failed() if name == site and n > 0 else send(name, request)


def after(composed, rounds=2, **settings):
    with federation(composed, rules=settings.pop("rules", Rules()), **settings) as (fed, _, _):
        state = fed.init(jax.random.key(0))
        for _ in range(rounds):
            state, metrics = fed.run(state, range(4))
        return state, metrics


@pytest.mark.parametrize("site", [NAMES[0], NAMES[3]])
def test_the_round_is_that_of_the_others_to_the_last_bit(site, tmp_path, caplog):
    composed = fedavg(uplink=fc.uplink.half())
    lied, metrics = after(composed, lie=huge(site, 1e10), folder=tmp_path / "a")
    without, _ = after(composed, fault=silent(site), folder=tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, lied.params, without.params)
    np.testing.assert_array_equal(lied.clients.version, without.clients.version)
    assert (
        float(metrics["refused"].total) == 1
        and f"{site}: its report was set aside: the norm of the update" in caplog.text
    )


def test_reports_too_large_to_be_held_are_brought_again(monkeypatch):
    monkeypatch.setattr(exchange, "HELD", 0)
    monkeypatch.setattr(exchange, "HELD_BYTES", 0)
    monkeypatch.setattr(server, "SMALL_BYTES", 0)
    server.server_half.cache_clear()
    try:
        lied, _ = after(fedavg(), 1, lie=huge(NAMES[1]))
        without, _ = after(fedavg(), 1, fault=silent(NAMES[1]))
    finally:
        server.server_half.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, lied.params, without.params)


@pytest.mark.parametrize(
    "name", ["quantize", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scaffold", "mime"))]
)
def test_a_scale_a_control_variate_and_a_gradient_are_measured_too(name):
    state, metrics = after(round_of(name, len(NAMES)), 1, lie=huge(NAMES[2], 1e9))
    assert float(metrics["refused"].total) >= 1
    assert all(float(jnp.abs(x).max()) < 100 for x in jax.tree.leaves(state.params))


def other_stats(site, value):
    def lie(name, said):
        if name == site and said.header.kind == "update":
            return {}, {n: np.full_like(x, value) if "stats" in n else x for n, x in said.tensors.items()}
        return None

    return lie


@pytest.mark.parametrize(
    ("algorithm", "value", "said"),
    [
        (
            fc.algorithms.fednova,
            1e20,
            "(bad-stats): the report says 1e+20 as .stats['steps'], and the site's examples and steps give 12",
        ),
        (fc.algorithms.fednova, 13, "the report says 13 as .stats['steps']"),
        (fc.algorithms.fednova, -12, "the report says -12 as .stats['steps']"),
        (fc.algorithms.fedexp, 1e20, "the size of its stats 'moved' is more than 10000 times the median"),
    ],
)
def test_numbers_beside_the_update_are_those_of_its_steps_or_not_absurd(
    algorithm, value, said, tmp_path, caplog
):
    composed = fc.compose(algorithm(task(), 0.1 if algorithm is fc.algorithms.fednova else SGD))
    lied, metrics = after(composed, 1, lie=other_stats(NAMES[0], value), folder=tmp_path / "a")
    without, _ = after(composed, 1, fault=silent(NAMES[0]), folder=tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, lied.params, without.params)
    assert float(metrics["refused"].total) == 1 and said in caplog.text


def test_a_bound_that_was_set_is_the_only_one():
    large, metrics = after(fedavg(), 1, lie=huge(NAMES[0], 1e6), rules=Rules(max_norm=math.inf))
    assert (
        float(metrics["refused"].total) == 0
        and max(float(jnp.abs(x).max()) for x in jax.tree.leaves(large.params)) > 1e3
    )
    _, metrics = after(fedavg(), 1, lie=huge(NAMES[0], 1e6), rules=Rules(max_norm=100.0))
    assert float(metrics["refused"].total) == 1
    with pytest.raises(
        ValueError, match="max_norm is 'absolute'; it should be \"relative\", or the largest norm"
    ):
        Rules(max_norm="absolute")


@pytest.mark.parametrize("site", NAMES)
def test_an_asynchronous_federation_sets_it_aside_whenever_it_comes(site):
    with federation(fedavg(), lie=huge(site), buffer=fc.Buffer(size=3)) as (fed, _, _):
        state, refused = fed.init(jax.random.key(0)), 0.0
        for _ in range(2):
            state, metrics = fed.run(state, range(4))
            refused += float(metrics["refused"].total)
    assert refused >= 1 and all(float(jnp.abs(x).max()) < 100 for x in jax.tree.leaves(state.params))


def weighed(weighting):
    return fc.compose(fc.algorithms.scaffold(task(), 0.1, 4, weighting=weighting))


@pytest.mark.parametrize(
    ("weighting", "most"),
    [
        (by_examples, 23.0),
        (lambda seen: seen.steps, 12.0),  # two passes in batches of 4
        (lambda seen: jnp.sqrt(seen.examples), math.sqrt(23)),
        (lambda seen: jnp.ones_like(seen.examples), 1.0),
        (lambda seen: seen.steps * 1000, 12_000.0),
    ],
)
def test_what_a_report_weighs_is_known(weighting, most):
    found = weigher(weighed(weighting), 0)
    assert found is not None
    assert found(np.array([23.0], np.float32), np.array([12.0], np.float32)).item() == pytest.approx(
        most, rel=1e-6
    )


def test_a_number_beside_the_update_is_known_where_it_follows_from_examples_and_steps():
    one = np.float32(0)
    assert counters(fc.compose(fc.algorithms.fedexp(task(), SGD)), 0, {"moved": one}) == {}
    found = counters(fc.compose(fc.algorithms.fednova(task(), 0.1)), 0, {"steps": one, "rows": np.zeros(3)})
    assert (
        found["steps"](np.array([23.0], np.float32), np.array([12.0], np.float32)).item() == 12
        and len(found) == 1
    )


def test_a_site_cannot_count_for_more_than_the_algorithm_gives_it():
    def lie(name, said):
        if name == NAMES[0] and said.header.kind == "update":
            return {"weight": said.header.fields["weight"] * 1.5}, None  # far below its 23 examples

    composed = weighed(lambda seen: seen.steps / 10)
    assert [float(after(composed, 1, lie=lie)[1]["refused"].total) for lie in (None, lie)] == [0, 1]


def test_a_weight_that_depends_on_more_than_the_examples_is_bounded_by_them():
    algorithm = fc.algorithms.fedavg(task(), SGD)
    (only,) = algorithm.exchanges

    def finish(message, carry, seen: Seen):
        report = only.client.finish(message, carry, seen)
        return report._replace(weight=report.weight / (1 + tree.norm(report.update)))

    odd = algorithm._replace(exchanges=(only._replace(client=only.client._replace(finish=finish)),))
    odd = fc.compose(odd)
    assert weigher(odd, 0) is None and weigher(fc.compose(algorithm), 0) is not None
    _, metrics = after(odd, 1)
    assert float(metrics["refused"].total) == 0
