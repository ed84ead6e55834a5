"""Rounds of each paper worked by hand, in NumPy's float64, on clients whose gradients are A_i (w - b_i);
cohorts are of two and three."""

import itertools

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms as of
from tests.quadratic import START2, UNEQUAL, UNEVEN, grad, on_unequal

LR, T, N = 0.1, 3, 3
SGD = optax.sgd(LR)
COHORTS = ([0, 1], [0, 1, 2], [1, 2])


def steps(i, w, change=lambda w, g: g, count=T):
    """Where gradient descent of client i ends: `change` makes of (w, its gradient there) what is gone
    down."""
    for _ in range(count):
        w = w - LR * change(w, grad(i, w))
    return w


def mean(values):
    return np.mean(list(values), axis=0)


def fedsgd():
    x = START2
    for cohort in COHORTS:
        x = x - LR * mean(grad(i, x) for i in cohort)
    return x


def fedavgm():
    x, v = START2, np.zeros(2)
    for cohort in COHORTS:
        v = 0.9 * v + mean(steps(i, x) - x for i in cohort)
        x = x + v
    return x


def feddyn(alpha=0.7):
    x, h, own = START2, np.zeros(2), np.zeros((N, 2))
    for cohort in COHORTS:
        ends = {i: steps(i, x, lambda w, g, i=i, x=x: g - own[i] + alpha * (w - x)) for i in cohort}
        for i, y in ends.items():
            own[i] = own[i] - alpha * (y - x)
        h = h - alpha / N * sum(y - x for y in ends.values())
        x = mean(ends.values()) - h / alpha
    return x


def fedadmm(rho=0.7, rate=0.5):
    x, w, u = START2, np.tile(START2, (N, 1)), np.zeros((N, 2))
    for cohort in COHORTS:
        change = []
        for i in cohort:
            before = w[i] + u[i] / rho
            w[i] = steps(i, w[i], lambda y, g, i=i, x=x: g + u[i] + rho * (y - x))
            u[i] = u[i] + rho * (w[i] - x)
            change.append(w[i] + u[i] / rho - before)
        x = x + rate * mean(change)
    return x


def fedpd(eta=1 / 0.7):
    """Algorithm 1 of FedPD, of clients who meet in every round: each goes on from its own copy of x, and
    these are averaged."""
    copies, w, duals = np.tile(START2, (N, 1)), np.tile(START2, (N, 1)), np.zeros((N, 2))
    for _ in COHORTS:
        for i in range(N):
            w[i] = steps(i, w[i], lambda y, g, i=i: g + duals[i] + (y - copies[i]) / eta)
            duals[i] = duals[i] + (w[i] - copies[i]) / eta
        copies[:] = mean(w[i] + eta * duals[i] for i in range(N))
    return copies[0]


def feddane(mu=0.0):
    x = START2
    for cohort in COHORTS:
        g = mean(grad(i, x) for i in cohort)
        x = mean(
            steps(i, x, lambda w, here, i=i, x=x, g=g: here - grad(i, x) + g + mu * (w - x)) for i in cohort
        )
    return x


def mimelite():
    x, s = START2, np.zeros(2)
    for cohort in COHORTS:
        c = mean(grad(i, x) for i in cohort)
        x, s = mean(steps(i, x, lambda w, g, s=s: g + 0.9 * s) for i in cohort), c + 0.9 * s
    return x


def fedexp(eps=1e-3):
    x = START2
    for cohort in COHORTS:
        d = [steps(i, x) - x for i in cohort]
        rate = max(1, sum(v @ v for v in d) / (2 * len(d) * (mean(d) @ mean(d) + eps)))
        x = x + rate * mean(d)
    return x


def fedcm(alpha=0.3):
    x, m = START2, np.zeros(2)
    for cohort in COHORTS:
        d = mean(steps(i, x, lambda w, g, m=m: alpha * g + (1 - alpha) * m) - x for i in cohort)
        x, m = x + d, -d / (LR * T)
    return x


def fedvarp():
    x, kept = START2, np.zeros((N, 2))
    for cohort in COHORTS:
        d = {i: steps(i, x) - x for i in cohort}
        x = x + mean(kept) + mean(d[i] - kept[i] for i in cohort)
        for i in cohort:
            kept[i] = d[i]
    return x


def fedsam(rho=0.3):
    x = START2
    for cohort in COHORTS:
        x = mean(steps(i, x, lambda w, g, i=i: grad(i, w + rho * g / np.linalg.norm(g))) for i in cohort)
    return x


def fedlesam(rho=0.3):
    x, last = START2, np.tile(START2, (N, 1))
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            way = last[i] - x
            away = rho * way / np.linalg.norm(way) if way.any() else way
            ends.append(steps(i, x, lambda w, g, i=i, away=away: grad(i, w + away)))
            last[i] = x
        x = mean(ends)
    return x


def scaffold_one():
    x, c, own = START2, np.zeros(2), np.zeros((N, 2))
    for cohort in COHORTS:
        ends = [steps(i, x, lambda w, g, i=i, c=c: g + c - own[i]) for i in cohort]
        c = c + sum(grad(i, x) - own[i] for i in cohort) / N
        for i in cohort:
            own[i] = grad(i, x)
        x = mean(ends)
    return x


def fednar(decay=0.5, bound=1.5):
    def clipped(w, g):
        u = g + decay * w
        return u * min(1, bound / np.linalg.norm(u))

    x = START2
    for cohort in COHORTS:
        x = mean(steps(i, x, clipped) for i in cohort)
    return x


def reptile(rate=0.4):
    x = START2
    for cohort in COHORTS:
        x = x + rate * mean(steps(i, x) - x for i in cohort)
    return x


def diloco():
    """Momentum within, kept by each worker; Nesterov momentum without."""
    x, inner, outer = START2, np.zeros((N, 2)), np.zeros(2)
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            y = x
            for _ in range(T):
                inner[i] = grad(i, y) + 0.5 * inner[i]
                y = y - LR * inner[i]
            ends.append(y)
        g = x - mean(ends)
        outer = g + 0.9 * outer
        x = x - 0.7 * (g + 0.9 * outer)
    return x


def sparseloco(decay=0.8):
    x, error = START2, np.zeros((N, 2))
    for cohort in COHORTS:
        sent = []
        for i in cohort:
            wanted = decay * error[i] + steps(i, x) - x
            largest = np.where(np.arange(2) == np.abs(wanted).argmax(), wanted, 0)
            error[i] = wanted - largest
            sent.append(largest)
        x = x + mean(sent)
    return x


def fedadamw(alpha=0.5, decay=0.1, b1=0.9, b2=0.999, eps=1e-8):
    x, way, second, t = START2, np.zeros(2), 0.0, 0
    for cohort in COHORTS:
        ends, blocks = [], []
        for i in cohort:
            y, m, v = x, np.zeros(2), np.full(2, second)
            for k in range(1, T + 1):
                g = grad(i, y)
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                adam = m / (1 - b1**k) / (np.sqrt(v / (1 - b2 ** (t + k))) + eps)
                y = y - LR * (adam + alpha * way + decay * y)
            ends.append(y)
            blocks.append(v.mean())
        way, second, t, x = (x - mean(ends)) / (LR * T), np.mean(blocks), t + T, mean(ends)
    return x


def fedmuon():
    """With the sign for the direction, which is what the nearest orthogonal matrix is of a diagonal one."""
    x, c, own = START2, np.zeros(2), np.zeros((N, 2))
    for cohort in COHORTS:
        ends, change = [], []
        for i in cohort:
            y, seen = x, []
            for _ in range(T):
                seen.append(grad(i, y))
                y = y - LR * np.sign(seen[-1] + c - own[i])
            ends.append(y)
            change.append(mean(seen) - own[i])
            own[i] = mean(seen)
        x, c = mean(ends), c + sum(change) / N
    return x


def fedmuon_aligned(gamma=0.3):
    """Along the signs of the momenta, which all clients begin with the same."""
    x, d, m = START2, np.zeros(2), np.zeros(2)
    for cohort in COHORTS:
        ends, momenta = [], []
        for i in cohort:
            y, own = x, m
            for _ in range(T):
                own = grad(i, y) + 0.8 * own
                y = y - (1 - gamma) * LR * np.sign(own) + gamma * d
            ends.append(y)
            momenta.append(own)
        x, d, m = mean(ends), (mean(ends) - x) / T, mean(momenta)
    return x


MOMENTUM = optax.sgd(LR, momentum=0.9)
SIGNS = optax.chain(optax.trace(0.8), optax.scale_by_sign(), optax.scale(-LR))
BY_HAND = {
    "fedsgd": (lambda: of.fedsgd(UNEVEN, SGD), fedsgd),
    "fedavgm": (lambda: of.fedavg(UNEVEN, SGD, optax.sgd(1.0, momentum=0.9)), fedavgm),
    "feddyn": (lambda: of.feddyn(UNEVEN, 0.7, SGD, N), feddyn),
    "fedadmm": (lambda: of.fedadmm(UNEVEN, 0.7, SGD, 0.5), fedadmm),
    "fedlin": (lambda: of.fedlin(UNEVEN, SGD), feddane),
    "feddane": (lambda: of.feddane(UNEVEN, 0.4, SGD), lambda: feddane(0.4)),
    "mimelite": (lambda: of.mimelite(UNEVEN, MOMENTUM), mimelite),
    "fedexp": (lambda: of.fedexp(UNEVEN, SGD), fedexp),
    "fedcm": (lambda: of.fedcm(UNEVEN, LR, 0.3), fedcm),
    "fedvarp": (lambda: of.fedvarp(UNEVEN, SGD, N), fedvarp),
    "fedsam": (lambda: of.fedsam(UNEVEN, 0.3, SGD), fedsam),
    "fedlesam": (lambda: of.fedlesam(UNEVEN, 0.3, SGD), fedlesam),
    "scaffold_one": (lambda: of.scaffold_one(UNEVEN, LR, N), scaffold_one),
    "fednar": (lambda: of.fednar(UNEVEN, 0.5, 1.5, SGD), fednar),
    "reptile": (lambda: of.reptile(UNEVEN, 0.4, SGD), reptile),
    "diloco": (lambda: of.diloco(UNEVEN, optax.sgd(LR, momentum=0.5)), diloco),
    "sparseloco": (lambda: of.sparseloco(UNEVEN, SGD, 0.5, 0.8), sparseloco),
    "fedadamw": (lambda: of.fedadamw(UNEVEN, LR, 0.5, 0.1), fedadamw),
    "fedmuon": (lambda: of.fedmuon(UNEVEN, optax.sign_sgd(LR), N), fedmuon),
    "fedmuon_aligned": (lambda: of.fedmuon_aligned(UNEVEN, SIGNS, 0.3), fedmuon_aligned),
}


@pytest.mark.proves(
    "fedsgd", "fedavgm", "feddyn", "fedadmm", "fedlin", "feddane", "mimelite", "fedexp", "fedcm", "fedvarp", "fedsam", "fedlesam",
    "scaffold_one", "fednar", "reptile", "diloco", "sparseloco", "fedadamw", "fedmuon",
    "fedmuon_aligned",
    by="independent implementation: the paper's rounds in NumPy",
)  # fmt: skip
@pytest.mark.parametrize("name", BY_HAND)
def test_rounds_are_those_of_the_paper(name):
    algorithm, by_hand = BY_HAND[name]
    assert on_unequal(algorithm(), COHORTS)[0] == pytest.approx(by_hand(), abs=3e-6)


@pytest.mark.proves("fedpd", by="independent implementation: the paper's rounds in NumPy")
def test_fedadmm_of_all_clients_is_fedpd():
    assert on_unequal(of.fedadmm(UNEVEN, 0.7, SGD), [range(N)] * len(COHORTS))[0] == pytest.approx(
        fedpd(), abs=3e-6
    )


SAME = {
    "fedcm, alpha=1": lambda: of.fedcm(UNEVEN, LR, 1.0),
    "fedsam, rho=0": lambda: of.fedsam(UNEVEN, 0.0, SGD),
    "fedlesam, rho=0": lambda: of.fedlesam(UNEVEN, 0.0, SGD),
    "fednar, no bound": lambda: of.fednar(UNEVEN, 0.0, 1e9, SGD),
    "mimelite, no momentum": lambda: of.mimelite(UNEVEN, SGD),
    "diloco, no momentum": lambda: of.diloco(UNEVEN, SGD, optax.sgd(1.0)),
    "sparseloco, density=1": lambda: of.sparseloco(UNEVEN, SGD, 1.0, 0.0),
    "reptile, rate=1": lambda: of.reptile(UNEVEN, 1.0, SGD),
    "fedmuon_aligned, gamma=0": lambda: of.fedmuon_aligned(UNEVEN, SGD, 0.0),
}


@pytest.mark.proves(
    "fedcm",
    "fedsam",
    "fedlesam",
    "fednar",
    "mimelite",
    "diloco",
    "sparseloco",
    "reptile",
    "fedmuon_aligned",
    by="identity: FedAvg",
)
@pytest.mark.parametrize("name", SAME)
def test_without_what_it_adds_it_is_fedavg(name):
    assert on_unequal(SAME[name](), COHORTS)[0] == pytest.approx(
        on_unequal(of.fedavg(UNEVEN, SGD), COHORTS)[0], abs=1e-6
    )


@pytest.mark.proves("diloco", by="identity: with one step, data-parallel SGD")
def test_diloco_of_one_step_is_gradient_descent():
    x = START2
    for cohort in COHORTS:
        x = x - LR * mean(grad(i, x) for i in cohort)
    assert on_unequal(of.diloco(UNEVEN, SGD, optax.sgd(1.0)), COHORTS, steps=1)[0] == pytest.approx(
        x, abs=1e-6
    )


@pytest.mark.proves("fedvarp", by="closed form: the average over all cohorts is the full mean")
def test_the_average_over_all_cohorts_is_the_full_mean():
    """Whatever clients did last, which was another amount of each."""
    loops = fc.Loops(fc.compose(of.fedvarp(UNEVEN, SGD, N)), UNEQUAL, batch_size=1, epochs=T)
    state = loops.init(jax.random.key(0))
    for cohort in ([0], [0, 1], [2]):
        state, _ = loops.run(state, cohort)
    before = np.asarray(state.params["w"], np.float64)
    moved = [
        np.asarray(loops.run(state, list(pair))[0].params["w"]) - before
        for pair in itertools.combinations(range(N), 2)
    ]
    assert mean(moved) == pytest.approx(mean(steps(i, before) - before for i in range(N)), abs=1e-6)


def test_errors_are_kept_and_conserve_the_sum():
    """SparseLoCo: what was sent and what is kept are, without decay, all that a worker wanted to send."""
    model, state = on_unequal(of.sparseloco(UNEVEN, SGD, 0.5, 1.0), [[0]] * 3)
    x, total = START2, np.zeros(2)
    for _ in range(3):
        total = total + steps(0, x) - x
        wanted = total - (x - START2)
        x = x + np.where(np.arange(2) == np.abs(wanted).argmax(), wanted, 0)
    assert model == pytest.approx(x, abs=3e-6)
    assert model - START2 + np.asarray(state.clients.own.error["w"][0]) == pytest.approx(total, abs=3e-6)


MISTAKES = {
    "alpha > 0": lambda: of.feddyn(UNEVEN, 0.0, SGD, N),
    "rho > 0": lambda: of.fedadmm(UNEVEN, -1.0, SGD),
    "mu must be at least 0": lambda: of.feddane(UNEVEN, -1.0, SGD),
    "0 < alpha <= 1": lambda: of.fedcm(UNEVEN, LR, 0.0),
    "population >= 1": lambda: of.fedvarp(UNEVEN, SGD, 0),
    "rho must be at least 0": lambda: of.fedsam(UNEVEN, -1.0, SGD),
    "rho must be at least 0, got -2": lambda: of.fedlesam(UNEVEN, -2.0, SGD),
    'must be "global" or "sum"': lambda: of.fedlesam(UNEVEN, 1.0, SGD, norm="l2"),
    "bound > 0": lambda: of.fednar(UNEVEN, 0.1, 0.0, SGD),
    "above 0 and at most 1, got 2": lambda: of.sparseloco(UNEVEN, SGD, 2.0),
    "fedmuon needs population": lambda: of.fedmuon(UNEVEN, SGD, 0),
    "0 <= gamma <= 1, got 2": lambda: of.fedmuon_aligned(UNEVEN, SGD, 2.0),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_numbers_that_make_no_sense_are_refused(said):
    with pytest.raises(ValueError, match=said):
        MISTAKES[said]()
