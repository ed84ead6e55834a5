"""What one message of each client gives: the same as scikit-learn on the pooled data, or the optimum of the
sum of losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB

import fedjax_core as fc
from fedjax_core.algorithms import analytic, feddf, fedfisher, fedlc, gaussian_heads
from fedjax_core.algorithms.analytic import Sums, forget

SIZES, CLASSES, WIDTH = (9, 1, 30, 14), 3, 4
rng = np.random.default_rng(0)
Y = rng.permutation(np.arange(sum(SIZES)) % CLASSES).astype(np.int32)
X = (rng.normal(size=(len(Y), WIDTH)) * [1.0, 0.5, 2.0, 1.0] + np.eye(CLASSES, WIDTH)[Y]).astype(np.float32)
ENDS = np.cumsum([0, *SIZES])
DATA = fc.Clients.from_arrays({"x": X, "y": Y}, offsets=ENDS)
SGD = optax.sgd(0.1)


def features(batch):
    return batch["x"]


def once(algorithm, cohorts=(range(4),)):
    loops = fc.Loops(fc.compose(algorithm), DATA, batch_size=8)
    state = loops.init(jax.random.key(0))
    for cohort in cohorts:
        state, _ = loops.run(state, list(cohort))
    return state


@pytest.mark.proves(
    "analytic",
    by="independent implementation: pooled ridge regression of scikit-learn, to 1e-6, in one round or several",
)
@pytest.mark.parametrize("cohorts", [([0, 1, 2, 3],), ([2, 0], [1, 3])])
def test_the_head_is_pooled_ridge_regression(cohorts):
    pooled = Ridge(alpha=0.7, fit_intercept=False, solver="svd").fit(X.astype(np.float64), np.eye(CLASSES)[Y])
    state = once(analytic(features, WIDTH, CLASSES, 0.7), cohorts)
    np.testing.assert_allclose(state.params["w"], pooled.coef_.T, atol=1e-6)


@pytest.mark.proves("analytic", by="closed form: a client's sums taken away leave the head that never had it")
def test_a_client_is_forgotten():
    state, mine = once(analytic(features, WIDTH, CLASSES, 0.7)), slice(ENDS[2], ENDS[3])
    x = jnp.asarray(X[mine])
    left = forget(state.server, Sums(x.T @ x, x.T @ jax.nn.one_hot(Y[mine], CLASSES)), 0.7)
    without = once(analytic(features, WIDTH, CLASSES, 0.7), ([0, 1, 3],))
    np.testing.assert_allclose(left.params["w"], without.params["w"], atol=2e-6)


POOLED = {
    "lda": LinearDiscriminantAnalysis(solver="lsqr"),
    "qda": QuadraticDiscriminantAnalysis(),
    "nb": GaussianNB(var_smoothing=0),
}


@pytest.mark.proves(
    "gaussian_heads", by="independent implementation: pooled LDA, QDA and naive Bayes of scikit-learn"
)
@pytest.mark.parametrize("kind", POOLED)
def test_the_head_is_pooled_scikit_learn(kind):
    pooled = POOLED[kind].fit(X.astype(np.float64), Y)
    algorithm = gaussian_heads(features, WIDTH, CLASSES, kind, floor=0.0)
    state = once(algorithm, ([2, 0], [1, 3]))
    scores = jax.nn.softmax(algorithm.task.predict(state.params, {"x": jnp.asarray(X)}))
    np.testing.assert_allclose(scores, pooled.predict_proba(X.astype(np.float64)), atol=2e-6)


def test_a_class_that_nobody_has_is_never_chosen():
    algorithm = gaussian_heads(features, WIDTH, CLASSES + 1, "qda")
    state = once(algorithm)
    assert algorithm.task.predict(state.params, {"x": jnp.asarray(X)}).argmax(-1).max() < CLASSES
    assert fc.evaluate(algorithm.task, state.params, DATA).pooled["accuracy"] > 0.5


@pytest.mark.proves("fedfisher", by="closed form: the optimum of the sum of quadratics in one round")
def test_one_round_of_fedfisher_is_the_optimum_of_quadratics():
    """Client i's loss is sum_j a_ij (w_j - b_ij)^2 / 2, and its Fisher information a_i."""
    task = fc.Task(
        lambda key: jnp.zeros(3),
        lambda w, batch, key: 0.5 * jnp.sum(batch["a"] * jnp.square(w[None] - batch["b"]), axis=1),
    )
    a, b, sizes = rng.uniform(0.5, 2, (3, 3)), rng.normal(size=(3, 3)), (1, 2, 4)
    data = fc.Clients.from_list([{"a": np.tile(a[i], (n, 1)).astype(np.float32), "b": np.tile(b[i], (n, 1)).astype(np.float32)}
                                 for i, n in enumerate(sizes)])  # fmt: skip

    def information(task, params, batch, key):
        return jnp.sum(batch["a"] * batch.mask[:, None], axis=0) / jnp.sum(batch.mask)

    algorithm = fedfisher(task, optax.sgd(0.4), damping=0.0, fisher=information)
    loops = fc.Loops(fc.compose(algorithm), data, batch_size=4, epochs=80)
    state, _ = loops.run(loops.init(jax.random.key(0)), [0, 1, 2])
    n = np.array(sizes)[:, None]
    np.testing.assert_allclose(state.params, (n * a * b).sum(0) / (n * a).sum(0), atol=1e-5)


@pytest.mark.proves("fedfisher", by="independent implementation: squared gradients in NumPy")
def test_the_information_is_the_mean_square_of_gradients():
    """Of (x - w)^2 / 2 that is the mean of (x - y_i)^2, y_i being where the local step ends."""
    from tests.quadratic import CLIENTS, MEANS, START, TASK, VALUES

    loops = fc.Loops(fc.compose(fedfisher(TASK, SGD)), CLIENTS, batch_size=3, epochs=2)
    state, _ = loops.run(loops.init(jax.random.key(0)), [0, 1, 2])
    y = MEANS + 0.9**2 * (START - MEANS)
    f = np.array([np.mean((np.array(v) - at) ** 2) for v, at in zip(VALUES, y, strict=True)]) * [2, 1, 3]
    assert float(state.params[0]) == pytest.approx((f * y).sum() / f.sum(), abs=1e-5)


@pytest.mark.proves("fedlc", by="independent implementation: jax.grad of the paper's pairwise loss")
@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_logits_are_calibrated_by_each_clients_counts(tau):
    task = fc.models.logistic(features=WIDTH, classes=CLASSES)
    loops = fc.Loops(fc.compose(fedlc(task, tau, SGD)), DATA, batch_size=30, epochs=2)
    state, _ = loops.run(loops.init(jax.random.key(0)), range(4))

    def total(w, x, y, counts):
        """-log of 1 / sum over the client's classes of exp((z_c - t n_c^(-1/4)) - (z_y - t n_y^(-1/4)))."""
        lowered = x @ w["w"] + (w["b"] - tau * jnp.maximum(counts, 1) ** -0.25)[None]
        mine = jnp.take_along_axis(lowered, y[:, None], axis=1)
        return jnp.mean(jnp.log(jnp.sum(jnp.where(counts[None] > 0, jnp.exp(lowered - mine), 0), axis=1)))

    ends = []
    for i in range(4):
        x, y = jnp.asarray(DATA[i]["x"]), jnp.asarray(DATA[i]["y"])
        counts, w = jnp.asarray(np.bincount(y, minlength=CLASSES), jnp.float32), task.init(None)
        for _ in range(2):
            w = jax.tree.map(lambda p, g: p - 0.1 * g, w, jax.jit(jax.grad(total))(w, x, y, counts))
        ends.append(w)
    for name in ("w", "b"):
        expected = sum(n * np.asarray(w[name], np.float64) for n, w in zip(SIZES, ends, strict=True)) / sum(
            SIZES
        )
        np.testing.assert_allclose(state.params[name], expected, atol=1e-6)


@pytest.mark.proves(
    "feddf",
    by="independent implementation: distillation written out in NumPy; identity: FedAvg without steps",
)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_mean_is_taught_by_the_ensemble(steps):
    task = fc.models.logistic(features=WIDTH, classes=CLASSES)
    seen, unseen = [], X[:6]
    algorithm = feddf(task, SGD, {"x": jnp.asarray(unseen)}, optax.sgd(0.5), steps)
    loops = fc.Loops(fc.compose(algorithm), DATA, batch_size=30)
    state, _ = loops.run(loops.init(jax.random.key(0)), [0, 2, 3], each=seen.append)
    models = [{name: np.asarray(visit.update[name], np.float64) for name in ("w", "b")} for visit in seen]
    sizes = np.array([SIZES[i] for i in (0, 2, 3)]) / sum(SIZES[i] for i in (0, 2, 3))

    def softmax(z):
        z = np.exp(z - z.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    taught = softmax(np.mean([unseen @ m["w"] + m["b"] for m in models], axis=0))
    mean = {name: sum(s * m[name] for s, m in zip(sizes, models, strict=True)) for name in ("w", "b")}
    for _ in range(steps):
        error = (softmax(unseen @ mean["w"] + mean["b"]) - taught) / len(unseen)
        mean = {"w": mean["w"] - 0.5 * unseen.T @ error, "b": mean["b"] - 0.5 * error.sum(0)}
    for name in ("w", "b"):
        np.testing.assert_allclose(state.params[name], mean[name], atol=1e-6)


MISTAKES = {
    "lowers a classifier's logits": lambda: fedlc(fc.Task(lambda key: jnp.zeros(1), None), 1.0, SGD),
    "compares a classifier's logits": lambda: feddf(fc.Task(lambda key: jnp.zeros(1), None), SGD, {}, SGD, 1),
    '"lda", "qda" or "nb"': lambda: gaussian_heads(features, 2, 2, "svm"),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_does_not_fit_is_refused(said):
    with pytest.raises(ValueError, match=said):
        MISTAKES[said]()
