"""kNN-Per: each client mixes the global model's prediction with the labels of its own most similar examples.

    p(c | z) = mix p_near(c | z) + (1 - mix) softmax(model)_c
    p_near(c | z) ~ sum over the k nearest z' of the client's own examples of [y' = c] exp(-|z - z'| / bandwidth)

with z the features of an example by the global model. Nothing is trained, and nothing leaves the client; so
it serves clients who never took part as well.

Marfoq, Neglia, Kameni and Vidal, "Personalized Federated Learning through Local Memorization", ICML 2022, eq.
7 and 8.

>>> import numpy as np
>>> from fedjax_core import models
>>> task = models.logistic(features=1, classes=2)._replace(features=lambda params, batch, key: batch["x"])
>>> data = Clients.from_list([{"x": np.float32([[0], [1], [5]]), "y": np.array([1, 1, 0])}])
>>> params = task.init(jax.random.key(0))  # which knows nothing: both classes are as likely
>>> knn_per(task, params, data, data, k=2, mix=0.5).pooled["accuracy"]
1.0
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.evaluation import Evaluation, pool
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Params


def knn_per(
    task: Task,
    params: Params,
    train: Clients,
    test: Clients,
    *,
    k: int = 10,
    mix: float = 0.5,
    bandwidth: float = 1.0,
) -> Evaluation:
    """Loss and accuracy of the mixture on each client's examples in `test`, with those of the same client in
    `train` as its memory.

    `mix` is the share of the memory, from 0 (the global model) to 1. The task needs `predict`, `features` and
    `classes`, and labels in the column `y`. A client without examples in `train` uses the global model.
    """
    predict, features, classes = task.predict, task.features, task.classes
    if predict is None or features is None or classes is None:
        raise ValueError(
            "knn_per() needs a classifier with features: give from_flax(..., features=) and Task(predict=, classes=)"
        )
    if not 0 <= mix <= 1 or k < 1 or bandwidth <= 0 or len(train) != len(test):
        raise ValueError(
            f"knn_per() needs mix from 0 to 1, k >= 1, bandwidth > 0 and the same clients in train and test, got mix={mix}, k={k}, "
            f"bandwidth={bandwidth}, {len(train)} and {len(test)} clients"
        )

    @jax.jit
    def seen(columns: dict[str, Array]) -> tuple[Array, Array]:
        batch = Batch(columns, jnp.ones(len(columns["y"])))
        return features(params, batch, jax.random.key(0)), jax.nn.softmax(predict(params, batch))

    z_all, p_all = (np.asarray(x, np.float64) for x in seen(jax.tree.map(jnp.asarray, test.columns)))
    memory = np.asarray(seen(jax.tree.map(jnp.asarray, train.columns))[0], np.float64)
    losses, hits = np.zeros(len(test)), np.zeros(len(test))
    for i, size in enumerate(test.sizes):
        memory_rows, theirs = (
            slice(train.offsets[i], train.offsets[i + 1]),
            slice(test.offsets[i], test.offsets[i + 1]),
        )
        p, y = p_all[theirs], np.asarray(test.columns["y"][theirs], int)
        if train.sizes[i] and size:
            near = _near(
                z_all[theirs],
                memory[memory_rows],
                np.asarray(train.columns["y"][memory_rows], int),
                classes,
                k,
                bandwidth,
            )
            p = mix * near + (1 - mix) * p
        losses[i], hits[i] = -np.log(np.maximum(p[np.arange(size), y], 1e-30)).sum(), (p.argmax(1) == y).sum()
    sums = {"loss": losses, "accuracy": hits}
    each = {
        name: np.divide(total, test.sizes, out=np.full(len(test), np.nan), where=test.sizes > 0)
        for name, total in sums.items()
    }
    return Evaluation(
        {name: pool(test.ids, test.sizes, total)[0] for name, total in sums.items()}, each, test.sizes
    )


def _near(
    z: np.ndarray, memory: np.ndarray, labels: np.ndarray, classes: int, k: int, bandwidth: float
) -> np.ndarray:
    """[n, C]: the classes of the nearest in memory, weighed by how near they are."""
    distance = np.linalg.norm(z[:, None] - memory[None], axis=2)
    chosen = np.argsort(distance, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(distance, chosen, axis=1)
    weight = np.exp(-(nearest - nearest[:, :1]) / bandwidth)
    votes = np.einsum("nk,nkc->nc", weight, np.eye(classes)[labels[chosen]])
    return votes / votes.sum(1, keepdims=True)
