"""Personal models of clients who were in no round: those that they would have by taking part in a federation
that stands still."""

import jax
import numpy as np
import optax
import pytest
from sklearn.neighbors import KNeighborsClassifier

import fedjax_core as fc
from fedjax_core import algorithms as of
from tests.algorithms.test_personal import LAYERS, LR, SGD, T, flat, steps
from tests.quadratic import UNEQUAL, UNEVEN, on_unequal


@pytest.mark.proves(
    "ditto", by="independent implementation: what a client keeps that never took part, in NumPy"
)
def test_a_newcomer_of_ditto_is_drawn_to_the_global_model():
    algorithm = of.ditto(UNEVEN, 0.6, SGD)
    x, state = on_unequal(algorithm, [[0, 1], [0, 1]])
    own = fc.newcomers(algorithm, state, UNEQUAL, batch_size=1, epochs=T, rounds=2)
    v = x
    for _ in range(2):
        v = steps(2, v, lambda w, g: g + 0.6 * (w - x))
    assert flat(jax.tree.map(lambda leaf: leaf[2], own)) == pytest.approx(v, abs=3e-6)


@pytest.mark.proves(
    "fedper", by="independent implementation: the head of a client that never took part, in NumPy"
)
def test_a_newcomer_of_fedper_trains_a_head_of_its_own():
    """Begun as the task begins it; the shared layer that it trained beside is not what it uses."""
    algorithm = of.fedper(LAYERS, optax.sgd(LR), ["head"])
    _, state = on_unequal(algorithm, [[0, 1]], read=flat)
    own = fc.newcomers(algorithm, state, UNEQUAL, batch_size=1, epochs=T)
    shared = float(state.params["body"][0])
    expected = steps(2, np.array([shared, -0.2]))
    assert flat(jax.tree.map(lambda leaf: leaf[2], own)) == pytest.approx([shared, expected[1]], abs=3e-6)


def test_an_algorithm_without_personal_models_says_what_to_use():
    algorithm = of.fedavg(UNEVEN, SGD)
    _, state = on_unequal(algorithm, [])
    with pytest.raises(ValueError, match=r"fedavg gives clients no models of their own: fc\.personalise"):
        fc.newcomers(algorithm, state, UNEQUAL, batch_size=1)


TASK = fc.models.logistic(features=2, classes=3)._replace(features=lambda params, batch, key: batch["x"])


def halves():
    rng, sizes = np.random.default_rng(0), ((7, 4), (5, 3), (0, 2))
    made = [
        [
            {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.integers(0, 3, n).astype(np.int32)}
            for n in pair
        ]
        for pair in sizes
    ]
    return (fc.Clients.from_list([pair[i] for pair in made]) for i in (0, 1))


@pytest.mark.proves("knn-per", by="independent implementation: k nearest neighbours of scikit-learn")
@pytest.mark.parametrize("mix", [0.0, 0.7])
def test_the_memory_is_scikit_learns_neighbours(mix):
    train, test = halves()
    params = {
        "w": np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32),
        "b": np.zeros(3, np.float32),
    }
    found = fc.knn_per(TASK, params, train, test, k=4, mix=mix, bandwidth=0.8)
    for i in range(3):
        z = test[i]["x"] @ params["w"]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        if len(train[i]["y"]):
            neighbours = KNeighborsClassifier(4, weights=lambda d: np.exp(-d / 0.8)).fit(
                train[i]["x"], train[i]["y"]
            )
            p[:, neighbours.classes_] += mix * (
                neighbours.predict_proba(test[i]["x"]) - p[:, neighbours.classes_]
            )
            absent = np.setdiff1d(np.arange(3), neighbours.classes_)
            p[:, absent] *= 1 - mix
        assert found.clients["loss"][i] == pytest.approx(
            -np.log(p[np.arange(len(p)), test[i]["y"]]).mean(), rel=1e-5
        )
    if mix == 0:
        assert found.pooled["loss"] == pytest.approx(fc.evaluate(TASK, params, test).pooled["loss"], rel=1e-5)


def test_what_knn_per_lacks_is_said():
    train, test = halves()
    params = TASK.init(jax.random.key(0))
    with pytest.raises(ValueError, match="needs a classifier with features"):
        fc.knn_per(TASK._replace(features=None), params, train, test)
    with pytest.raises(ValueError, match="mix from 0 to 1"):
        fc.knn_per(TASK, params, train, test, mix=2.0)
