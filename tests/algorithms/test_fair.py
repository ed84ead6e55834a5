"""Fair methods worked by hand in NumPy's float64, on clients whose gradients are A_i (w - b_i)."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from fedjax_core import algorithms as of
from fedjax_core.algorithms.fedmgda import shortest
from tests.algorithms.test_by_hand import COHORTS, LR, SGD, N, mean, steps
from tests.quadratic import START2, STEEP, TARGETS, UNEVEN, on_unequal


def loss(i, w):
    return 0.5 * (w - TARGETS[i]) @ STEEP[i] @ (w - TARGETS[i])


def qffl(q=0.7):
    x = START2
    for cohort in COHORTS:
        d = {i: (steps(i, x) - x) / LR for i in cohort}
        f = {i: loss(i, x) for i in cohort}
        h = sum(q * f[i] ** (q - 1) * d[i] @ d[i] + f[i] ** q / LR for i in cohort)
        x = x + sum(f[i] ** q * d[i] for i in cohort) / h
    return x


def term(tilt=0.3):
    x = START2
    for cohort in COHORTS:
        w = np.array([np.exp(tilt * loss(i, x)) for i in cohort])
        x = sum(a * steps(i, x) for a, i in zip(w / w.sum(), cohort, strict=True))
    return x


def projected(v):
    """On the simplex, by looking at every number of coordinates that may be left."""
    for count in range(len(v), 0, -1):
        kept = np.argsort(-v)[:count]
        shift = (v[kept].sum() - 1) / count
        if (v[kept] > shift).all():
            return np.where(np.isin(np.arange(len(v)), kept), v - shift, 0)


def afl(rate=0.02):
    x, shares = START2, np.full(N, 1 / N)
    for cohort in COHORTS:
        f = {i: loss(i, x) for i in cohort}
        x = sum(shares[i] * steps(i, x) for i in cohort) / sum(shares[i] for i in cohort)
        shares = projected(shares + rate * np.array([f.get(i, 0.0) for i in range(N)]))
    return x


def unit(v):
    return v / np.linalg.norm(v)


def fedmgda():
    x = START2
    for cohort in COHORTS:
        x = x + 0.3 * mean(unit(steps(i, x) - x) for i in cohort)
    return x


BY_HAND = {
    "qffl": (lambda: of.qffl(UNEVEN, LR, 0.7), qffl),
    "term": (lambda: of.term(UNEVEN, 0.3, SGD), term),
    "afl": (lambda: of.afl(UNEVEN, SGD, 0.02, N), afl),
    "fedmgda": (lambda: of.fedmgda(UNEVEN, SGD, 0.3, 0.0), fedmgda),
}


@pytest.mark.proves(
    "qffl", "term", "afl", "fedmgda", by="independent implementation: the paper's rounds in NumPy"
)
@pytest.mark.parametrize("name", BY_HAND)
def test_rounds_are_those_of_the_paper(name):
    algorithm, by_hand = BY_HAND[name]
    assert on_unequal(algorithm(), COHORTS)[0] == pytest.approx(by_hand(), abs=3e-6)


SAME = {
    "qffl, q=0": lambda: of.qffl(UNEVEN, LR, 0.0),
    "term, tilt=0": lambda: of.term(UNEVEN, 0.0, SGD),
    "afl, rate=0": lambda: of.afl(UNEVEN, SGD, 0.0, N),
}


@pytest.mark.proves("qffl", "term", "afl", by="identity: FedAvg")
@pytest.mark.parametrize("name", SAME)
def test_without_fairness_it_is_fedavg(name):
    assert on_unequal(SAME[name](), COHORTS)[0] == pytest.approx(
        on_unequal(of.fedavg(UNEVEN, SGD), COHORTS)[0], abs=1e-6
    )


@pytest.mark.proves(
    "fedmgda",
    by="independent implementation: the shortest mixture by SciPy's SLSQP, and that it is no client's way up",
)
@pytest.mark.parametrize("trust", [1.0, 0.15])
def test_the_shortest_mixture_is_scipys(trust):
    vectors = np.random.default_rng(0).normal(size=(5, 6))
    vectors[3] = 0  # an empty place
    here = np.arange(5) != 3
    shares = np.asarray(
        shortest(jnp.asarray(vectors @ vectors.T, jnp.float32), jnp.asarray(here), trust), np.float64
    )
    rows = vectors[here]
    bounds = [(max(0.25 - trust, 0), min(0.25 + trust, 1))] * 4
    found = minimize(lambda s: np.sum((s @ rows) ** 2), np.full(4, 0.25), bounds=bounds, method="SLSQP", tol=1e-12,
                     constraints={"type": "eq", "fun": lambda s: s.sum() - 1})  # fmt: skip
    assert shares[3] == 0 and shares[here] == pytest.approx(found.x, abs=2e-4)
    if trust == 1.0:
        way = shares @ vectors
        assert (rows @ way > way @ way - 1e-3).all()


MISTAKES = {
    "lr > 0": lambda: of.qffl(UNEVEN, 0.0, 1.0),
    "population >= 1": lambda: of.afl(UNEVEN, SGD, 0.1, 0),
    "trust must be from 0 to 1": lambda: of.fedmgda(UNEVEN, SGD, 0.1, 2.0),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_numbers_that_make_no_sense_are_refused(said):
    with pytest.raises(ValueError, match=said):
        MISTAKES[said]()
