import jax
import numpy as np
import optax
import pytest

from fedjax_core import Batch, Clients, Simulator, Task, algorithms, compose, evaluate, models, predict
from fedjax_core.lanes.evaluate import batch_sums
from tests.zoo import SIZES, clients


def by_hand(task, params, data):
    """Each client's mean loss, one whole batch at a time."""
    means = []
    for i in range(len(data)):
        n = data.sizes[i]
        if n:
            columns = jax.tree.map(jax.numpy.asarray, data[i])
            means.append(float(task.evaluation(params, Batch(columns, jax.numpy.ones(n)))["loss"].mean()))
        else:
            means.append(np.nan)
    return np.array(means)


@pytest.mark.parametrize(
    ("task", "kind"),
    [(models.logistic(features=3, classes=3), "classes"), (models.linear(features=3), "numbers")],
)
def test_pooled_and_per_client_metrics(task, kind):
    data = clients(kind)
    params = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(1), x.shape), task.init(jax.random.key(0))
    )
    found, expected = evaluate(task, params, data), by_hand(task, params, data)
    assert found.clients["loss"] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert np.isnan(found.clients["loss"][2]) and found.sizes.tolist() == list(SIZES)
    assert found.pooled["loss"] == pytest.approx(np.nansum(expected * SIZES) / sum(SIZES), rel=1e-5)


def test_predictions_are_in_the_order_stored():
    task, data = models.logistic(features=3, classes=3), clients()
    params = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(1), x.shape), task.init(jax.random.key(0))
    )
    expected = data.columns["x"] @ np.asarray(params["w"]) + np.asarray(params["b"])
    assert predict(task, params, data) == pytest.approx(expected, abs=1e-5)


def pooled(params, batch, key=None):
    """A convolution and a pool, for which batches go one after another on a CPU."""
    x = jax.lax.conv(batch["x"], params["k"], (1, 1), "SAME")
    x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return x.reshape(len(x), -1) @ params["w"]


def attended(params, batch, key=None):
    """A product of batches of matrices."""
    x = batch["x"][:, 0]
    return jax.nn.softmax(x @ x.swapaxes(1, 2)).reshape(len(x), -1) @ params["w"]


@pytest.mark.parametrize("outputs", [pooled, attended])
@pytest.mark.parametrize("personal", [False, True])
def test_a_model_whose_batches_go_one_after_another(outputs, personal):
    rng = np.random.default_rng(0)
    sizes = (3, 0, 17, 8)
    data = Clients.from_list([{"x": rng.normal(size=(n, 1, 4, 4)).astype(np.float32)} for n in sizes])
    width = {pooled: 8, attended: 16}[outputs]
    params = {
        "k": rng.normal(size=(4, 2, 1, 3, 3)).astype(np.float32),
        "w": rng.normal(size=(4, width)).astype(np.float32),
    }
    task = Task(lambda key: params, outputs)
    first = jax.tree.map(lambda x: x[0], params)
    program = str(
        jax.make_jaxpr(batch_sums(task))(
            first, Batch({"x": np.zeros((5, 2, 1, 4, 4), np.float32)}, np.ones((5, 2), np.float32))
        )
    )
    assert ("scan[" in program) == (jax.default_backend() == "cpu")
    found = evaluate(task, first, data, personal=params if personal else None)
    for i, n in enumerate(sizes):
        mine = jax.tree.map(lambda x, i=i: x[i if personal else 0], params)
        expected = np.mean(outputs(mine, Batch(data[i], np.ones(n)))) if n else np.nan
        assert found.clients["loss"][i] == pytest.approx(float(expected), rel=1e-5, nan_ok=True)


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
    state = state._replace(
        server=state.server._replace(params=apart),
        clients=state.clients._replace(own=jax.numpy.asarray(choice)),
    )
    found = sim.evaluate(state)
    for i in range(len(data)):
        mine = by_hand(task, jax.tree.map(lambda x, i=i: x[choice[i]], apart), data)
        assert found.clients["loss"][i] == pytest.approx(mine[i], rel=1e-5, nan_ok=True)
