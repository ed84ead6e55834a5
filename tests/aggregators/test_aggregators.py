import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fedjax_core import aggregators

ALL = [aggregators.mean(), aggregators.total(), aggregators.trimmed_mean(0.2), aggregators.median()]
REPORTS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def fold(aggregator, reports, weights, parts=1):
    """The value of reports added in several accumulators that merge."""
    K, accs = len(reports), []
    for places in np.array_split(np.arange(K), parts):
        acc = aggregator.zero(jax.ShapeDtypeStruct(reports.shape[1:], jnp.float32), K)
        here = jnp.asarray(weights[places] > 0)
        rows = jnp.where(here[:, None], jnp.asarray(reports[places]), 0)
        accs.append(
            aggregator.add(acc, rows, jnp.asarray(weights[places]), jnp.where(here, jnp.asarray(places), K))
        )
    merged = accs[0]
    for acc in accs[1:]:
        merged = aggregator.merge(merged, acc)
    state = aggregator.init(jax.ShapeDtypeStruct(reports.shape[1:], jnp.float32))
    return np.asarray(aggregator.value(merged, state, jax.random.key(0))[0])


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_mean_is_the_weighted_mean(parts):
    weights = np.arange(10, dtype=np.float32)
    assert np.allclose(
        fold(aggregators.mean(), REPORTS, weights, parts),
        np.average(REPORTS, axis=0, weights=weights),
        atol=1e-6,
    )


@pytest.mark.parametrize("parts", [1, 3, 10])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.49])
def test_trimmed_mean_is_scipys(fraction, parts):
    expected = scipy.stats.trim_mean(REPORTS, fraction, axis=0)
    assert np.allclose(
        fold(aggregators.trimmed_mean(fraction), REPORTS, np.ones(10, np.float32), parts), expected, atol=1e-6
    )


def test_trimmed_mean_counts_only_those_who_reported():
    weights = np.array([1, 0, 1, 1, 0, 1, 1, 0, 0, 1], np.float32)
    expected = scipy.stats.trim_mean(REPORTS[weights > 0], 0.2, axis=0)
    assert np.allclose(fold(aggregators.trimmed_mean(0.2), REPORTS, weights), expected, atol=1e-6)


@pytest.mark.parametrize("bad", [1e30, -1e30])
def test_trimmed_mean_withstands_wild_reports(bad):
    reports = REPORTS.copy()
    reports[:2] = bad
    got = fold(aggregators.trimmed_mean(0.2), reports, np.ones(10, np.float32))
    assert (got >= REPORTS[2:].min(axis=0)).all() and (got <= REPORTS[2:].max(axis=0)).all()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("clients", [1, 4, 7, 10])
def test_median_is_numpys(clients, parts):
    weights = np.zeros(10, np.float32)
    weights[np.random.default_rng(1).permutation(10)[:clients]] = np.arange(1, clients + 1)
    got = fold(aggregators.median(), REPORTS, weights, parts)
    np.testing.assert_allclose(got, np.median(REPORTS[weights > 0], axis=0), rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_total_adds_each_report_once_and_whole_numbers_in_their_ring(parts):
    weights = np.array([3, 0, 1, 1, 0, 7, 1, 0, 0, 1], np.float32)
    np.testing.assert_allclose(
        fold(aggregators.total(), REPORTS, weights, parts), REPORTS[weights > 0].sum(axis=0), rtol=1e-5
    )
    large = jnp.array([[2**32 - 1], [3]], jnp.uint32)
    assert aggregators.apply(aggregators.total(), large).tolist() == [2]


def test_a_rule_is_given_all_leaves_of_those_who_are_here():
    seen = {}

    def rule(rows, here, weights, key):
        seen.update(rows=rows, here=here, weights=weights, draw=jax.random.uniform(key))
        return rows[0]

    updates = {"a": jnp.arange(6.0).reshape(3, 2, 1), "b": jnp.array([7.0, 8.0, 9.0])}
    got = aggregators.apply(
        aggregators.of_reports("first", rule),
        updates,
        [2.0, 3.0, 4.0],
        here=[True, False, True],
        key=jax.random.key(3),
    )
    assert seen["rows"].tolist() == [[0, 1, 7], [0, 0, 0], [4, 5, 9]] and seen["here"].tolist() == [
        True,
        False,
        True,
    ]
    assert seen["weights"].tolist() == [2, 0, 4] and float(seen["draw"]) == float(
        jax.random.uniform(jax.random.key(3))
    )
    assert got["a"].tolist() == [[0.0], [1.0]] and float(got["b"]) == 7.0


@pytest.mark.parametrize("aggregator", ALL, ids=lambda a: a.name)
def test_nobody_gives_zeros(aggregator):
    assert fold(aggregator, REPORTS, np.zeros(10, np.float32)).tolist() == [0.0] * 4


@pytest.mark.parametrize("aggregator", [one for one in ALL if one.name != "total"], ids=lambda a: a.name)
def test_whole_numbers_are_not_averaged(aggregator):
    """Their mean would be cut to a whole number, 0 for most."""
    with pytest.raises(TypeError, match=r"a client reports \['n'\] as int32: report it with .astype"):
        aggregator.zero({"n": jax.ShapeDtypeStruct((2,), jnp.int32)}, 3)


def test_fraction_is_checked():
    with pytest.raises(ValueError, match=r"0 <= fraction < 0.5 .* got 0.5"):
        aggregators.trimmed_mean(0.5)
