"""Personal methods worked by hand in NumPy's float64: the global model, and what each client uses, who was
away among them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms as of
from tests.algorithms.test_by_hand import COHORTS, LR, SGD, N, T, mean, steps
from tests.quadratic import START2, UNEQUAL, UNEVEN, grad, on_unequal

# The same losses, of a model with two layers: w is (body, head).
LAYERS = fc.Task(
    lambda key: {"body": jnp.array(START2[:1], jnp.float32), "head": jnp.array(START2[1:], jnp.float32)},
    lambda p, batch, key: UNEVEN.loss({"w": jnp.concatenate([p["body"], p["head"]])}, batch, key),
)


def ditto(lam=0.6):
    x, v = START2, np.tile(START2, (N, 1))
    for cohort in COHORTS:
        for i in cohort:
            v[i] = steps(i, v[i], lambda w, g, x=x: g + lam * (w - x))
        x = mean(steps(i, x) for i in cohort)
    return x, v


def apfl(rate=0.05):
    x, v, a = START2, np.tile(START2, (N, 1)), np.full(N, 0.4)
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            y = x
            for _ in range(T):
                g = grad(i, a[i] * v[i] + (1 - a[i]) * y)
                y, v[i], a[i] = (
                    y - LR * grad(i, y),
                    v[i] - LR * a[i] * g,
                    np.clip(a[i] - rate * (v[i] - y) @ g, 0, 1),
                )
            ends.append(y)
        x = mean(ends)
    return x, a[:, None] * v + (1 - a[:, None]) * x


def pfedme(lam=2.0, inner=0.1, beta=0.7):
    x, t = START2, np.tile(START2, (N, 1))
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            w = x
            for _ in range(T):
                for _ in range(4):
                    t[i] = t[i] - inner * (grad(i, t[i]) + lam * (t[i] - w))
                w = w - LR * lam * (w - t[i])
            ends.append(w)
        x = (1 - beta) * x + beta * mean(ends)
    return x, t


def layered(head_first, personal):
    """FedRep, or FedPer and the like: (shared number, what clients use)."""
    x, own = START2.copy(), np.tile(START2, (N, 1))
    shared = 1 - personal
    only = np.eye(2)
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            w = np.where(only[personal] > 0, own[i], x)
            if head_first:
                w = steps(i, w, lambda w, g: g * only[personal], count=2)
                w = steps(i, w, lambda w, g: g * only[shared])
            else:
                w = steps(i, w)
            own[i] = w
            ends.append(w)
        x[shared] = mean(ends)[shared]
    own[:, shared] = x[shared]
    return x[shared], own


def fedala(rate=0.3):
    x, old, weights = START2, np.tile(START2, (N, 1)), np.ones((N, 2))
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            for _ in range(2):
                g = grad(i, old[i] + (x - old[i]) * weights[i])
                weights[i] = np.clip(weights[i] - rate * g * (x - old[i]), 0, 1)
            old[i] = steps(i, old[i] + (x - old[i]) * weights[i])
            ends.append(old[i])
        x = mean(ends)
    return x, old


BY_HAND = {
    "ditto": (lambda: of.ditto(UNEVEN, 0.6, SGD), ditto),
    "apfl": (lambda: of.apfl(UNEVEN, LR, 0.4, 0.05), apfl),
    "pfedme": (lambda: of.pfedme(UNEVEN, LR, 2.0, 0.1, 4, 0.7), pfedme),
    "fedrep": (lambda: of.fedrep(LAYERS, SGD, ["head"], 2), lambda: layered(True, 1)),
    "lgfedavg": (lambda: of.lgfedavg(LAYERS, SGD, ["head"]), lambda: layered(False, 0)),
    "fedala": (lambda: of.fedala(UNEVEN, SGD, ["w"], 0.3, 2), fedala),
}


def flat(params):
    return np.concatenate([np.asarray(x, np.float64) for x in jax.tree.leaves(params)])


@pytest.mark.proves(
    "ditto",
    "apfl",
    "pfedme",
    "fedrep",
    "lgfedavg",
    "fedala",
    by="independent implementation: the paper's rounds in NumPy, of both models",
)
@pytest.mark.parametrize("name", BY_HAND)
def test_both_models_are_those_of_the_paper(name):
    made, by_hand = BY_HAND[name]
    algorithm = made()
    _, state = on_unequal(algorithm, COHORTS, read=flat)
    shared, personal = by_hand()
    assert flat(state.params) == pytest.approx(np.ravel(shared), abs=3e-6)
    for i in range(N):
        mine = algorithm.personal(state.server, jax.tree.map(lambda x, i=i: x[i], state.clients.own))
        assert flat(mine) == pytest.approx(personal[i], abs=3e-6)


@pytest.mark.proves(
    "ditto", by="property: personal and global metrics side by side, of clients never seen too"
)
def test_personal_and_global_models_are_evaluated_side_by_side():
    """The third client is in no cohort: until it takes part, its own model is the one that all began with."""
    loops = fc.Loops(fc.compose(of.ditto(UNEVEN, 0.1, SGD)), UNEQUAL, batch_size=1, epochs=T)
    state = loops.init(jax.random.key(0))
    for _ in range(3):
        state, seen = loops.run(state, [0, 1])
    assert {"loss", "personal_loss"} <= set(seen)
    personal, shared = loops.evaluate(state), fc.evaluate(UNEVEN, state.params, UNEQUAL)
    assert (personal.clients["loss"][:2] < shared.clients["loss"][:2]).all()
    begun = fc.evaluate(UNEVEN, loops.init(jax.random.key(0)).params, UNEQUAL)
    assert personal.clients["loss"][2] == pytest.approx(begun.clients["loss"][2])
    tuned = fc.personalise(UNEVEN, state.params, UNEQUAL, SGD, batch_size=1, epochs=T)
    assert (
        fc.evaluate(UNEVEN, state.params, UNEQUAL, personal=tuned).clients["loss"][2]
        < shared.clients["loss"][2]
    )


PROTO = fc.Task(
    lambda key: {"w": jnp.array([[1.0, 0.5], [0.0, 1.0]])},
    lambda p, batch, key: jnp.square(batch["x"] @ p["w"]).sum(1) * 0.5,
    features=lambda p, batch, key: batch["x"] @ p["w"],
    classes=4,
)


def labelled():
    """Class 3 is nobody's, and class 2 the last client's alone."""
    rng, labels = np.random.default_rng(0), ([0, 1, 1], [0, 0], [2, 1, 2, 2])
    return fc.Clients.from_list(
        [{"x": rng.normal(size=(len(y), 2)).astype(np.float32), "y": np.array(y, np.int32)} for y in labels]
    )


@pytest.mark.proves(
    "fedproto", by="closed form: the pooled means of classes; independent implementation: rounds by jax.grad"
)
@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_prototypes_are_pooled_means_and_pull_each_clients_model(lam):
    data = labelled()
    loops = fc.Loops(fc.compose(of.fedproto(PROTO, lam, SGD, width=2)), data, batch_size=4, epochs=2)
    state = loops.init(jax.random.key(0))
    own, known, prototypes = [PROTO.init(None)["w"]] * 3, np.zeros(4), np.zeros((4, 2))

    def total(w, x, y, known, prototypes):
        z = x @ w
        return jnp.mean(0.5 * jnp.square(z).sum(1) + lam * known[y] * jnp.square(z - prototypes[y]).mean(1))

    for cohort in ([0, 1], [0, 2]):
        state, _ = loops.run(state, cohort)
        for i in cohort:
            for _ in range(2):
                at = (
                    data[i]["x"],
                    data[i]["y"],
                    jnp.asarray(known, jnp.float32),
                    jnp.asarray(prototypes, jnp.float32),
                )
                own[i] = own[i] - LR * jax.grad(total)(own[i], *at)
        x, y = (np.concatenate([z if z is not None else data[i]["y"] for i, z in found]) for found in (
            [(i, np.asarray(data[i]["x"] @ own[i])) for i in cohort], [(i, None) for i in cohort]))  # fmt: skip
        for c in set(y.tolist()):
            known[c], prototypes[c] = 1, x[y == c].mean(0)
        np.testing.assert_allclose(state.server.prototypes, prototypes, atol=1e-5)
        assert state.server.known.tolist() == known.tolist()
    assert known[3] == 0
    for i in range(3):
        np.testing.assert_allclose(state.clients.own["w"][i], own[i], atol=1e-5)


MISTAKES = {
    "lam must be at least 0": lambda: of.ditto(UNEVEN, -1.0, SGD),
    "from 0 to 1, got 2": lambda: of.apfl(UNEVEN, LR, 2.0),
    "pfedme needs lam > 0": lambda: of.pfedme(UNEVEN, LR, 0.0, 0.1),
    "task with features": lambda: of.fedproto(UNEVEN, 1.0, SGD, 2),
    "no leaf under 'tail'": lambda: of.lgfedavg(LAYERS, optax.sgd(0.1), ["tail"]),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_makes_no_sense_is_refused(said):
    with pytest.raises(ValueError, match=said):
        MISTAKES[said]()
