"""A task with only some leaves trained, kept and sent, for example the head of a pretrained model.

    the model's leaves = those that are trained, which are the parameters of the new task, + the others, as they were given

The parameters of the new task have None in place of every other leaf, so no algorithm, stage, message or
checkpoint ever sees one. The others are part of the task itself: sites have them from the study, and the
study's hash covers their values.

>>> import jax
>>> from fedjax_core.models.mlp import mlp
>>> pretrained = mlp(features=2, hidden=(3,), classes=2).init(jax.random.key(0))
>>> task = train_only(mlp(features=2, hidden=(3,), classes=2), pretrained, "1")
>>> jax.tree.map(lambda x: x.shape, task.init(jax.random.key(1)))
[{'b': None, 'w': None}, {'b': (2,), 'w': (3, 2)}]
>>> jax.tree.map(lambda x: x.shape, whole(pretrained, task.init(jax.random.key(1))))
[{'b': (3,), 'w': (2, 3)}, {'b': (2,), 'w': (3, 2)}]
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.constants import Constants
from fedjax_core.task import Task
from fedjax_core.types import Key, Params


def train_only(task: Task, params: Params, *names: str) -> Task:
    """The task that begins at `params` and trains the leaves under these names, such as "Dense_1",
    "Dense_1/kernel", or "1/w" in a list.

    `fc.models.whole(params, state.params)` is the whole model again. Messages, checkpoints, lanes and client
    state have the size of the trained leaves, and only these have gradients. The others are arguments of each
    compiled program, not part of its text (`fedjax_core.constants`), and the memory plan counts them. Put it
    around `remat`, `accumulate` and `bfloat16`, not within. Raises where a name fits no leaf.
    """
    if not names:
        raise ValueError(
            f"train_only() needs at least one name of what is trained: the leaves are {', '.join(tree.names(params))}"
        )
    if task.statistics.names:
        raise ValueError(
            "train_only() keeps what is not trained as it is, and this task has running statistics, which every batch moves: make it by "
            "from_flax(..., constants={'batch_stats': ...}), with the module told not to change them"
        )
    begin, rest = tree.partition(jax.tree.map(np.asarray, params), names)
    body = Constants(rest)

    def init(key: Key) -> Params:
        return jax.tree.map(jnp.asarray, begin)

    return task.reading(body, lambda trained: whole(body.now, trained), init)


def whole(params: Params, trained: Params) -> Params:
    """`params` with the leaves of `trained` that are not None."""
    return jax.tree.map(jnp.asarray, tree.combine(trained, params))
