"""Robust rules against plain loops in float64, with liars, with clients who are absent, and with numbers that
are not finite."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import aggregators as agg

N, F, P = 11, 2, 7
ROWS = np.random.default_rng(3).normal(size=(N, P)) + np.linspace(0, 1, P)
ROWS[:F] += np.random.default_rng(4).normal(size=(F, P)) * 20


def squared(rows):
    return np.array([[float(((a - b) ** 2).sum()) for b in rows] for a in rows])


def krum_scores(rows, f, fewer):
    d, n = squared(rows), len(rows)
    return [sum(sorted(np.delete(d[i], i))[: n - f - fewer]) for i in range(n)]


def krum(rows, f=F, fewer=2):
    return rows[int(np.argmin(krum_scores(rows, f, fewer)))]


def multi_krum(rows, f=F, fewer=2):
    return rows[np.argsort(krum_scores(rows, f, fewer))[: len(rows) - f]].mean(0)


def trimmed(rows, f=F):
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(0)


def near_median(rows, keep):
    return np.array(
        [
            np.mean(sorted(x, key=lambda one, middle=m: abs(one - middle))[:keep])
            for x, m in zip(rows.T, np.median(rows, 0), strict=True)
        ]
    )


def bulyan(rows, f=F):
    left, chosen = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        chosen.append(left.pop(int(np.argmin(krum_scores(rows[left], f, 2)))))
    return near_median(rows[chosen], len(rows) - 4 * f)


def weiszfeld(rows, z, steps, floor, weights=None):
    weights = np.ones(len(rows)) if weights is None else weights
    for _ in range(steps):
        w = weights / np.maximum(np.linalg.norm(rows - z, axis=1), floor)
        z = (w[:, None] * rows).sum(0) / w.sum()
    return z


def mda(rows, f=F):
    d = squared(rows)
    best = min(combinations(range(len(rows)), len(rows) - f), key=lambda s: d[np.ix_(s, s)].max())
    return rows[list(best)].mean(0)


def mixed(rows, f=F):
    d = squared(rows)
    return np.stack([rows[np.argsort(d[i])[: len(rows) - f]].mean(0) for i in range(len(rows))])


def clipped(rows, bound):
    return np.stack([r * min(1, bound / np.linalg.norm(r)) for r in rows])


def arc(rows, f=F):
    n = len(rows)
    return clipped(rows, np.sort(np.linalg.norm(rows, axis=1))[n - 2 * f * (n - f) // n - 1])


def centered(rows, tau=2.0, steps=3):
    v = np.zeros(rows.shape[1])
    for _ in range(steps):
        v = v + clipped(rows - v, tau).mean(0)
    return v


def fltrust(rows):
    root, norm = rows[0], np.linalg.norm
    trust = np.array([max(0.0, r @ root / norm(r) / norm(root)) for r in rows[1:]])
    return sum(t * r * norm(root) / norm(r) for t, r in zip(trust, rows[1:], strict=True)) / trust.sum()


def foolsgold(rows):
    n = len(rows)
    cos = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in rows])
    np.fill_diagonal(cos, -1)
    v, out = cos.max(1), cos.copy()
    for i in range(n):
        for j in range(n):
            if i != j and v[j] > v[i] and v[j] > 0:
                out[i, j] = cos[i, j] * v[i] / v[j]
    a = np.clip(1 - out.max(1), 0, 1)
    a = a / a.max()
    with np.errstate(divide="ignore"):
        a = np.clip(np.log(a / (1 - a)) + 0.5, 0, 1)
    return a @ rows / a.sum()


def dnc(rows, f=F):
    centred = rows - rows.mean(0)
    s = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    return rows[np.argsort(s)[: len(rows) - f]].mean(0)


RULES = {
    "median": (agg.median(), lambda rows: np.median(rows, axis=0)),
    "trimmed mean": (agg.trimmed_mean(f=F), trimmed),
    "trimmed fraction": (agg.trimmed_mean(0.2), lambda rows: trimmed(rows, int(0.2 * len(rows)))),
    "krum": (agg.krum(F), krum),
    "krum byzfl": (agg.krum(F, "byzfl"), lambda rows: krum(rows, fewer=1)),
    "multi-krum": (agg.multi_krum(F), multi_krum),
    "multi-krum byzfl": (agg.multi_krum(F, "byzfl"), lambda rows: multi_krum(rows, fewer=1)),
    "geometric median": (
        agg.geometric_median(),
        lambda rows: weiszfeld(rows, np.median(rows, axis=0), 3000, 1e-12),
    ),
    "rfa": (agg.rfa(steps=4, floor=1e-3), lambda rows: weiszfeld(rows, rows.mean(0), 4, 1e-3)),
    "byzfl's geometric median": (agg.rfa(3, 0.1, "zero"), lambda rows: weiszfeld(rows, np.zeros(P), 3, 0.1)),
    "bulyan": (agg.bulyan(F), bulyan),
    "centered clipping": (agg.centered_clipping(tau=2.0, steps=3), centered),
    "meamed": (agg.meamed(F), lambda rows: near_median(rows, len(rows) - F)),
    "mda": (agg.mda(F), mda),
    "nnm, trimmed mean": (agg.nnm(F, agg.trimmed_mean(f=F)), lambda rows: trimmed(mixed(rows))),
    "nnm, krum": (agg.nnm(F, agg.krum(F)), lambda rows: krum(mixed(rows))),
    "norm bound": (agg.norm_bound(2.0, agg.mean()), lambda rows: clipped(rows, 2.0).mean(0)),
    "arc": (agg.arc(F, agg.mean()), lambda rows: arc(rows).mean(0)),
    "fltrust": (agg.fltrust(), fltrust),
    "foolsgold": (agg.foolsgold(), foolsgold),
    "dnc": (agg.dnc(F), dnc),
    "zeroing": (agg.zeroing(agg.mean(), start=3.0), lambda rows: rows[np.abs(rows).max(1) <= 7].mean(0)),
    "adaptive clip": (agg.adaptive_clip(agg.mean()), lambda rows: clipped(rows, 1.0).mean(0)),
}
ANYWHERE = [name for name in RULES if name != "fltrust"]  # which goes by a place
ABSENT = np.array([True] * 3 + [False] + [True] * 5 + [False] + [True] * 3)  # two empty places among N + 2


@pytest.fixture(scope="module")
def compiled():
    """{rule: compiled, of a matrix and who is here}."""
    return {
        name: jax.jit(lambda rows, here, rule=rule: agg.apply(rule, rows, here=here))
        for name, (rule, _) in RULES.items()
    }


@pytest.mark.proves(
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
    "rfa",
    "bulyan",
    "centered_clipping",
    "meamed",
    "mda",
    "nnm",
    "norm_bound",
    "arc",
    "fltrust",
    "foolsgold",
    "dnc",
    "zeroing",
    "adaptive_clip",
    by="independent implementation: plain loops in float64, to 1e-6",
)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_its_plain_loops_in_64_bits(name):
    rule, loops = RULES[name]
    with jax.enable_x64(True):
        got = jax.jit(lambda rows: agg.apply(rule, rows))(jnp.asarray(ROWS, jnp.float64))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, loops(ROWS), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_in_32_bits_with_absent_clients_it_is_that_of_those_who_are_here(name, compiled):
    loops = RULES[name][1]
    rows = np.full((N + 2, P), 1e6, np.float32)
    rows[ABSENT] = ROWS
    got = compiled[name](jnp.asarray(rows), jnp.asarray(ABSENT))
    np.testing.assert_allclose(got, loops(ROWS), rtol=1e-4, atol=1e-5)
    if name == "bulyan":  # of fewer than 11 it means nothing
        return
    few = np.array([0, *range(3, N)])  # one liar did not come, and another
    here = np.zeros(N + 2, bool)
    here[few] = True
    rows[:N] = ROWS
    np.testing.assert_allclose(
        compiled[name](jnp.asarray(rows), jnp.asarray(here)), loops(ROWS[few]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ANYWHERE)
def test_the_order_of_clients_changes_nothing_and_many_cohorts_at_once_neither(name):
    rule, loops = RULES[name]
    orders = np.stack([np.random.default_rng(i).permutation(N) for i in range(3)])
    got = jax.jit(jax.vmap(lambda rows: agg.apply(rule, rows)))(jnp.asarray(ROWS[orders], jnp.float32))
    # two in which there are ties by rights
    expected = [loops(ROWS[order] if name in ("bulyan", "mda") else ROWS) for order in orders]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ANYWHERE)
def test_numbers_that_are_not_finite_are_left_out(name, bad, compiled):
    """Who sent one is one of the f: the rest is as if it had never come, with one liar fewer to find."""
    rows = np.zeros((N + 2, P), np.float32)
    rows[:N], here = ROWS, np.arange(N + 2) < N
    rows[:F, 1] = bad
    got = np.asarray(compiled[name](jnp.asarray(rows), jnp.asarray(here)))
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - ROWS[F:].mean(0)) <= np.linalg.norm(ROWS[F:] - ROWS[F:].mean(0), axis=1).max()


def test_without_liars_trimmed_mean_and_multi_krum_are_the_mean():
    for rule in (agg.trimmed_mean(f=0), agg.multi_krum(0), agg.meamed(0), agg.nnm(0, agg.mean())):
        np.testing.assert_allclose(
            agg.apply(rule, jnp.asarray(ROWS, jnp.float32)), ROWS.mean(0), rtol=1e-5, atol=1e-6
        )


KAPPA = {  # of q = f / (n - 2f), Allouah et al. 2023
    "trimmed mean": lambda q: 6 * q * (1 + q),
    "krum byzfl": lambda q: 6 * (1 + q),
    "geometric median": lambda q: 4 * (1 + q) ** 2,
    "median": lambda q: 4 * (1 + q) ** 2,
}


def worst(values, rows, f):
    """The largest |F - mean_S|^2 / mean_S |x_i - mean_S|^2 over all subsets S of n - f reports."""
    found = 0.0
    for s in combinations(range(len(rows)), len(rows) - f):
        mean = rows[list(s)].mean(0)
        found = max(found, ((values - mean) ** 2).sum() / ((rows[list(s)] - mean) ** 2).sum(1).mean())
    return found


@pytest.mark.proves(
    "trimmed_mean",
    "krum",
    "geometric_median",
    "median",
    "nnm",
    by="closed form: the robustness coefficient of Allouah et al. 2023",
)
@pytest.mark.parametrize("name", [*KAPPA, "nnm, trimmed mean"])
def test_robustness_stays_under_its_coefficient(name):
    """On 200 random cohorts, whichever f are the liars; the plain mean goes far beyond."""
    rng, n, f = np.random.default_rng(8), 8, 2
    rows = rng.normal(size=(200, n, 3)) * rng.choice([0.1, 1, 30], (200, n, 1)) + rng.normal(size=(200, 1, 3))
    q = f / (n - 2 * f)
    rule, bound = (
        RULES[name][0],
        (KAPPA.get(name) or (lambda q: 8 * f / (n - f) * (KAPPA["trimmed mean"](q) + 1)))(q),
    )
    got = np.asarray(jax.jit(jax.vmap(lambda x: agg.apply(rule, x)))(jnp.asarray(rows, jnp.float32)))
    assert max(worst(value, x, f) for value, x in zip(got, rows, strict=True)) <= bound * (1 + 1e-4)
    if name == "trimmed mean":
        assert max(worst(x.mean(0), x, f) for x in rows) > 2 * bound


def test_a_weight_that_would_be_dropped_is_refused_and_one_that_counts_is_used():
    rows, weights = jnp.asarray(ROWS, jnp.float32), np.arange(1.0, N + 1)
    with pytest.raises(
        ValueError,
        match=r"krum\(\) counts all clients alike.*weights from 1 to 11: leave weights= out.*weighted=True",
    ):
        agg.apply(agg.krum(F), rows, weights)
    np.testing.assert_allclose(agg.apply(agg.krum(F), rows, np.full(N, 5.0)), krum(ROWS), rtol=1e-5)
    repeated = np.repeat(ROWS, np.arange(1, N + 1), axis=0)  # a client of weight w as w clients
    np.testing.assert_allclose(
        agg.apply(agg.median(weighted=True), rows, weights), np.median(repeated, axis=0), rtol=1e-5
    )
    n = len(repeated)
    got = agg.apply(agg.trimmed_mean(f=2, weighted=True), rows, weights)
    # 2 / 11 of 66 at each end
    np.testing.assert_allclose(got, np.sort(repeated, axis=0)[12 : n - 12].mean(0), rtol=1e-4)
    same = agg.apply(agg.trimmed_mean(f=2, weighted=True), rows)
    np.testing.assert_allclose(same, trimmed(ROWS), rtol=1e-4, atol=1e-5)
    got = agg.apply(agg.rfa(steps=4, floor=1e-3), rows, weights)
    np.testing.assert_allclose(
        got, weiszfeld(ROWS, weights @ ROWS / weights.sum(), 4, 1e-3, weights), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (agg.trimmed_mean(f=2), 5),
        (agg.krum(2), 5),
        (agg.multi_krum(2), 5),
        (agg.meamed(2), 5),
        (agg.mda(2), 5),
        (agg.nnm(2, agg.median()), 5),
        (agg.bulyan(1), 7),
        (agg.bucketing(2, agg.trimmed_mean(f=1)), 5),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_more_liars_than_a_rule_bears_are_refused(rule, least):
    with pytest.raises(
        ValueError,
        match=rf"{rule.name.split('(')[0]}.* needs a cohort of at least {least} clients, and this one has {least - 1}",
    ):
        agg.apply(rule, jnp.zeros((9, 2)), here=np.arange(9) < least - 1)
    assert np.isfinite(agg.apply(rule, jnp.ones((9, 2)), here=np.arange(9) < least)).all()


def kept(rule, rows, here=None):
    """Whose reports a rule keeps."""
    rows = jnp.asarray(rows, jnp.float32)
    acc = rule.add(
        rule.zero(rows[0], len(rows)), rows, jnp.ones(len(rows)), jnp.arange(len(rows), dtype=jnp.int32)
    )
    return np.asarray(rule.kept(acc, rule.init(rows[0]), jax.random.key(0)))


@pytest.mark.parametrize(
    "rule",
    [agg.multi_krum(F), agg.bulyan(F), agg.mda(F), agg.dnc(F), agg.nnm(F, agg.multi_krum(F))],
    ids=lambda r: r.name,
)
def test_a_rule_tells_whom_it_kept(rule):
    found = kept(rule, ROWS)
    assert not found[:F].any() and found.sum() in (N - F, N - 2 * F)
    assert agg.median().kept is None


def test_the_two_counts_of_neighbours_may_choose_another_report():
    for seed in range(100):
        rows = np.random.default_rng(seed).normal(size=(9, 3))
        one, two = (int(np.flatnonzero(kept(agg.krum(2, how), rows))[0]) for how in ("paper", "byzfl"))
        assert one == np.argmin(krum_scores(rows, 2, 2)) and two == np.argmin(krum_scores(rows, 2, 1))
        if one != two:
            return
    raise AssertionError("the two counts always agree")


def test_centered_clipping_goes_on_from_its_last_value():
    rule, rows = agg.centered_clipping(tau=1.0), jnp.asarray(ROWS, jnp.float32)
    acc = rule.add(rule.zero(rows[0], N), rows, jnp.ones(N), jnp.arange(N, dtype=jnp.int32))
    v, state = np.zeros(P), rule.init(rows[0])
    for _ in range(3):
        value, state = rule.value(acc, state, jax.random.key(0))
        v = v + clipped(ROWS - v, 1.0).mean(0)
        np.testing.assert_allclose(value, v, rtol=1e-5, atol=1e-6)


def test_bounds_follow_their_quantile():
    rule, rows = agg.adaptive_clip(agg.mean(), quantile=0.8, start=100.0), jnp.asarray(ROWS, jnp.float32)
    acc = rule.add(rule.zero(rows[0], N), rows, jnp.ones(N), jnp.arange(N, dtype=jnp.int32))
    state, step = rule.init(rows[0]), jax.jit(rule.value)
    _, state = step(acc, state, jax.random.key(0))
    assert float(state[0]) == pytest.approx(100 * np.exp(-0.2 * (1 - 0.8)), rel=1e-5)  # all are under it
    for _ in range(200):
        _, state = step(acc, state, jax.random.key(0))
    norms = np.sort(np.linalg.norm(ROWS, axis=1))
    # at rest between those whose share is nearest to 0.8
    assert norms[N - F - 1] * 0.9 <= float(state[0]) <= norms[N - F] * 1.1


@pytest.mark.proves(
    "bucketing", by="identity: the mean of buckets is the mean, and who is absent changes no draw"
)
def test_bucketing_takes_each_report_once_and_draws_alike_whoever_is_absent():
    rows = np.arange(10.0)[:, None]
    taken = agg.of_reports(
        "buckets",
        lambda rows, here, weights, key: jnp.sort(jnp.where(here[:, None], rows, 99), axis=0)[:1].reshape(-1),
    )
    first = [
        float(agg.apply(agg.bucketing(2, taken), jnp.asarray(rows, jnp.float32), key=jax.random.key(i))[0])
        for i in range(20)
    ]
    assert min(first) >= 0.5 and len(set(first)) > 3
    mean = agg.apply(agg.bucketing(2, agg.mean()), jnp.asarray(rows, jnp.float32))
    assert float(mean[0]) == pytest.approx(4.5)
    wide, here = np.full((13, 1), 1e6, np.float32), np.ones(13, bool)
    here[[0, 4, 9]] = False
    wide[here] = rows
    for i in range(5):
        got = agg.apply(agg.bucketing(3, agg.median()), jnp.asarray(wide), here=here, key=jax.random.key(i))
        alone = agg.apply(
            agg.bucketing(3, agg.median()), jnp.asarray(rows, jnp.float32), key=jax.random.key(i)
        )
        assert float(got[0]) == pytest.approx(float(alone[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: agg.krum(-1), "krum needs f >= 0.*got -1"),
        (lambda: agg.krum(1, "some"), "neighbours as 'paper'.*got 'some'"),
        (lambda: agg.trimmed_mean(), "fraction= or f=, one of the two"),
        (lambda: agg.rfa(floor=0.0), "rfa needs a floor > 0"),
        (lambda: agg.centered_clipping(tau=0.0), "radius tau > 0, got 0"),
        (lambda: agg.bucketing(0, agg.mean()), "bucketing needs a size >= 1"),
        (lambda: agg.norm_bound(0.0, agg.mean()), "norm_bound needs a bound > 0"),
        (lambda: agg.zeroing(agg.mean(), quantile=1.0), "zeroing follows a quantile between 0 and 1"),
        (lambda: agg.apply(agg.mda(8), jnp.zeros((40, 2))), "mda.* looks at .* subsets of 40 reports"),
    ],
)
def test_settings_of_robust_rules_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match=r"nnm\(then=\) takes an aggregator, got str"):
        agg.nnm(1, "median")
