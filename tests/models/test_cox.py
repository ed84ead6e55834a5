"""Cox's partial likelihood against a double loop over the sorted batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import Clients, models
from fedjax_core.data.task_check import check_data
from fedjax_core.types import Batch

KEY = jax.random.key(0)
rng = np.random.default_rng(3)
X = rng.normal(size=(9, 4)).astype(np.float32)
TIME = np.array([5, 2, 2, 8, 1, 5, 9, 2, 7], np.float32)  # with ties
EVENT = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], np.int32)
WEIGHT = rng.normal(size=4).astype(np.float32)


def mean_loss_by_loops(x: np.ndarray, time: np.ndarray, event: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(-time, kind="stable")
    scores, events = (x @ weight.astype(np.float64))[order], event[order]
    total = 0.0
    for i in range(1, len(scores)):
        at_risk = sum(np.exp(scores[j] - scores[i]) for j in range(i + 1))
        total += events[i] * np.log(at_risk)
    return total / len(scores)


def padded(real: int) -> Batch:
    """The first `real` examples, then copies of the first one that are padding."""
    rows = np.r_[np.arange(real), np.zeros(9 - real, int)]
    columns = {"x": X[rows], "time": TIME[rows], "event": EVENT[rows]}
    return Batch(jax.tree.map(jnp.asarray, columns), jnp.array([1.0] * real + [0.0] * (9 - real)))


def test_loss_is_the_double_loop_and_padding_is_in_no_risk_set():
    task = models.cox(features=4)
    params = {"w": jnp.array(WEIGHT), "b": jnp.float32(0.3)}
    for real in (9, 6, 1):
        expected = mean_loss_by_loops(X[:real], TIME[:real], EVENT[:real], WEIGHT)
        np.testing.assert_allclose(jax.jit(task.mean_loss)(params, padded(real), KEY), expected, rtol=1e-5)


@pytest.mark.parametrize("event", [EVENT + 1, -EVENT, EVENT * 0.5], ids=["1 and 2", "-1", "0.5"])
def test_events_are_0_and_1(event):
    task = models.cox(features=4)
    for dtype in (bool, np.int32, np.float32, np.float64):
        check_data(
            task, Clients.from_list([{"x": X, "time": TIME, "event": EVENT.astype(dtype)}]), batch_size=4
        )
    wrong = Clients.from_list([{"x": X, "time": TIME, "event": event}], ids=["icu"])
    with pytest.raises(
        ValueError,
        match=r"column 'event' at client 0 \(id 'icu'\), its row [0-8], must be 1 where the event was seen",
    ):
        check_data(task, wrong, batch_size=4)


def test_patients_who_are_all_censored_teach_nothing_and_that_is_said(caplog):
    columns = [
        {"x": X, "time": TIME, "event": event}
        for event in (np.zeros(9, np.float32), EVENT.astype(np.float32))
    ]
    check_data(models.cox(features=4), Clients.from_list(columns), batch_size=4)
    assert not caplog.records
    check_data(models.cox(features=4), Clients.from_list(columns[:1]), batch_size=4)
    assert ["nothing can be learned" in record.message for record in caplog.records] == [True]


def test_gradient_is_the_difference_quotient_of_the_double_loop():
    task = models.cox(features=4)
    grads = jax.grad(task.mean_loss)({"w": jnp.array(WEIGHT), "b": jnp.float32(0.0)}, padded(6), KEY)
    step = 1e-5 * np.eye(4)
    up, down = (
        [mean_loss_by_loops(X[:6], TIME[:6], EVENT[:6], WEIGHT + sign * s) for s in step] for sign in (1, -1)
    )
    np.testing.assert_allclose(grads["w"], (np.array(up) - np.array(down)) / 2e-5, atol=1e-5)
    np.testing.assert_allclose(grads["b"], 0, atol=1e-6)
