"""Clusters that split themselves: by brute force over all bipartitions, round by round."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.algorithms.cfl import bipartition

TARGETS = np.array([[2.0, 0.1], [2.2, -0.1], [-1.0, 1.9], [-1.2, -2.1], [-0.8, 2.0], [-1.0, -2.0]])
LR, STILL, APART, ROUNDS = 0.2, 0.05, 0.1, 60


def halves(d):
    """One of the two parts whose largest cosine across is least, of all there are."""
    unit = d / np.linalg.norm(d, axis=1, keepdims=True)
    parts = [np.array(part) for part in product([False, True], repeat=len(d)) if 0 < sum(part) < len(d)]
    return min(parts, key=lambda part: (unit[part] @ unit[~part].T).max())


def by_hand():
    """(each client's cluster's model, all clusters) after the rounds, in NumPy."""
    groups, models = [np.arange(6)], [np.zeros(2)]
    for _ in range(ROUNDS):
        for g in range(len(groups)):
            d = LR * (TARGETS[groups[g]] - models[g])
            models[g] = models[g] + d.mean(axis=0)
            if (
                np.linalg.norm(d.mean(axis=0)) < STILL
                and np.linalg.norm(d, axis=1).max() > APART
                and len(groups) < 4
            ):
                part = halves(d)
                groups.append(groups[g][part])
                models.append(models[g])
                groups[g] = groups[g][~part]
    return np.array([next(m for m, g in zip(models, groups, strict=True) if i in g) for i in range(6)]), {
        frozenset(g.tolist()) for g in groups
    }


@pytest.mark.proves("cfl", by="independent implementation: brute force over all bipartitions in NumPy")
def test_clusters_split_as_the_best_of_all_bipartitions_says():
    task = fc.Task(
        lambda key: jnp.zeros(2),
        lambda w, batch, key: 0.5 * jnp.sum(jnp.square(batch["b"] - w[None]), axis=1),
    )
    clients = fc.Clients.from_list([{"b": b[None].astype(np.float32)} for b in TARGETS])
    algorithm = fc.algorithms.cfl(task, optax.sgd(LR), population=6, clusters=4, still=STILL, apart=APART)
    sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=1, lanes=1, mesh=None)
    state, _ = sim.run_many(sim.init(jax.random.key(0)), [list(range(6))] * ROUNDS)
    models, groups = by_hand()
    cluster = np.asarray(state.server.cluster)
    assert {frozenset(np.flatnonzero(cluster == c).tolist()) for c in set(cluster)} == groups == {
        frozenset({0, 1}), frozenset({2, 4}), frozenset({3, 5})}  # fmt: skip
    np.testing.assert_allclose(np.asarray(state.server.models)[cluster], models, atol=1e-5)
    assert int(state.server.made) == 3


def test_the_bipartition_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for size in (2, 5, 7):
        d, here = rng.normal(size=(size, 3)), np.arange(size + 1) < size
        unit = d / np.linalg.norm(d, axis=1, keepdims=True)
        alike = np.ones((size + 1, size + 1), np.float32)
        alike[:size, :size] = unit @ unit.T
        found = np.asarray(bipartition(jnp.asarray(alike), jnp.asarray(here)))[:size]
        wanted = halves(d)
        assert found.tolist() in (wanted.tolist(), (~wanted).tolist())


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match=r"0 < still < apart, got 0.5 and 0.1"):
        fc.algorithms.cfl(fc.models.linear(features=1), optax.sgd(0.1), 3, 2, 0.5, 0.1)
