"""What the page for users of other libraries shows of this one runs as printed, and is what NumPy makes of
the same equations."""

import re

import jax
import numpy as np
import pytest

import fedjax_core as fc
from tests.conftest import REPOSITORY

PARTS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "coming-from.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What is defined once all of the page's parts in fedjax_core have run."""
    defined: dict = {}
    for part in PARTS:
        exec(compile(part, "coming-from.md", "exec"), defined)
    return defined


def test_fedavg_finds_the_coefficients(names):
    assert int(names["state"].round) == 20
    fit = np.linalg.lstsq(np.c_[names["x"], np.ones(300)], names["y"], rcond=None)[0]
    np.testing.assert_allclose(names["state"].params["w"], fit[:4], atol=0.25)


def test_the_clients_of_the_algorithm_of_ones_own_count_by_the_root_of_their_examples(names):
    visits, sizes = names["visits"], names["clients"].sizes[[0, 1, 2, 3]]
    np.testing.assert_allclose(visits.weight, np.sqrt(sizes), rtol=1e-6)
    mean = np.average(visits.update["w"], axis=0, weights=np.sqrt(sizes))
    np.testing.assert_allclose(names["ended"].params["w"] - names["began"].params["w"], mean, atol=1e-6)


def test_its_local_steps_are_those_of_numpy(names):
    """Three steps on all examples of a client, from a model that is not zero."""
    draw, visits = np.random.default_rng(1), []
    x, y, start = draw.normal(size=(5, 4)), draw.normal(size=5), draw.normal(size=4)
    clients = fc.Clients.from_list([{"x": x.astype(np.float32), "y": y.astype(np.float32)}])
    loops = fc.Loops(
        fc.compose(names["pulled"](names["task"], lr=0.1, mu=0.5)), clients, batch_size=5, epochs=3
    )
    params = {"w": start.astype(np.float32), "b": np.zeros((), np.float32)}
    loops.run(loops.init(jax.random.key(0), jax.tree.map(jax.numpy.asarray, params)), [0], each=visits.append)
    w, b = start, 0.0
    for _ in range(3):
        away = 2 * (x @ w + b - y) / len(y)
        w, b = w - 0.1 * (away @ x + 0.5 * (w - start)), b - 0.1 * (away.sum() + 0.5 * b)
    np.testing.assert_allclose(visits[0].update["w"], w - start, atol=1e-5)
    assert float(visits[0].update["b"]) == pytest.approx(b, abs=1e-5)
