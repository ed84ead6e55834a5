import jax
import numpy as np
import optax
import pytest

from fedjax_core import Simulator, Task, algorithms, compose, evaluate, models, predict
from tests.zoo import SIZES, clients


def by_hand(task, params, data):
    """Each client's mean loss, one whole batch at a time."""
    from fedjax_core import Batch

    means = []
    for i in range(len(data)):
        n = data.sizes[i]
        if n:
            columns = jax.tree.map(jax.numpy.asarray, data[i])
            means.append(float(task.evaluation(params, Batch(columns, jax.numpy.ones(n)))["loss"].mean()))
        else:
            means.append(np.nan)
    return np.array(means)


@pytest.mark.parametrize(("task", "kind"), [(models.logistic(features=3, classes=3), "classes"), (models.linear(features=3), "numbers")])
def test_pooled_and_per_client_metrics(task, kind):
    data = clients(kind)
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), task.init(jax.random.key(0)))
    found, expected = evaluate(task, params, data), by_hand(task, params, data)
    assert found.clients["loss"] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert np.isnan(found.clients["loss"][2]) and found.sizes.tolist() == list(SIZES)
    assert found.pooled["loss"] == pytest.approx(np.nansum(expected * SIZES) / sum(SIZES), rel=1e-5)


def test_predictions_are_in_the_order_stored():
    task, data = models.logistic(features=3, classes=3), clients()
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), task.init(jax.random.key(0)))
    expected = data.columns["x"] @ np.asarray(params["w"]) + np.asarray(params["b"])
    assert predict(task, params, data) == pytest.approx(expected, abs=1e-5)


def test_a_task_without_predictions_says_so():
    task = Task(lambda key: np.zeros(3, np.float32), lambda w, batch, key: batch["x"] @ w)
    with pytest.raises(ValueError, match=r"no predict="):
        predict(task, np.zeros(3, np.float32), clients())


def test_clients_with_a_model_of_their_own_are_evaluated_on_it():
    task, data = models.linear(features=3), clients("numbers")
    sim = Simulator(compose(algorithms.ifca(task, models=2, local=optax.sgd(0.05))), data, batch_size=4)
    state = sim.init(jax.random.key(0))
    apart = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), state.params)
    choice = np.arange(len(data), dtype=np.int32) % 2
    state = state._replace(server=state.server._replace(params=apart), clients=state.clients._replace(own=jax.numpy.asarray(choice)))
    found = sim.evaluate(state)
    for i in range(len(data)):
        mine = by_hand(task, jax.tree.map(lambda x, i=i: x[choice[i]], apart), data)
        assert found.clients["loss"][i] == pytest.approx(mine[i], rel=1e-5, nan_ok=True)
