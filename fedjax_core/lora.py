"""LoRA: matrices of a pretrained model change by products of two thin ones, and only these are trained and
sent.

    W' = W + scale a b        a [in, rank], b [rank, out] = 0 at first; scale = alpha / rank, or alpha / sqrt(rank)

The parameters of a task by `lora` are the factors and the weights that they adapt: a server can then move the
error of averaged factors into the weights (`fc.algorithms.fedex`, `flora`). With any other algorithm train
the factors only:

    begun = task.init(key)
    fedavg(train_only(task, begun, "a", "b"), ...)        FedIT: the factors are averaged, each by itself
    fedavg(train_only(task, begun, "b"), ...)             FFA-LoRA: a stays as it began, so that the mean of b is exact

With `full=("Dense_1",)` a layer is trained whole beside the factors, as a new head is; it is averaged by any of
these.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; with the square root
Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.

>>> from fedjax_core import models
>>> inner = models.mlp(features=8, hidden=(6,), classes=3)
>>> task = lora(inner, inner.init(jax.random.key(0)), "0/w", rank=2, alpha=4.0)
>>> params = task.init(jax.random.key(1))
>>> params.a[0]["w"].shape, params.b[0]["w"].shape, float(params.scale)
((8, 2), (2, 6), 2.0)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.constants import Constants
from fedjax_core.task import Task
from fedjax_core.types import Array, Key, Params


class LowRank(NamedTuple):
    """Weights of a model, and the factors of their change; None for all leaves that are not adapted."""

    base: Params
    a: Params  # leaves [in, rank], where a weight is [..., out] and `in` the product of all axes but the last
    b: Params  # leaves [rank, out]
    scale: Array
    full: Params = None  # the leaves that are trained themselves

    @property
    def weights(self) -> Params:
        """The weights that the model uses, base + scale a b."""
        return jax.tree.map(
            lambda w, a, b: w + self.scale.astype(w.dtype) * (a @ b).reshape(w.shape),
            self.base,
            self.a,
            self.b,
        )


def lora(
    task: Task,
    params: Params,
    *names: str,
    rank: int,
    alpha: float | None = None,
    rank_stabilised: bool = False,
    full: Sequence[str] = (),
) -> Task:
    """The task that adapts the leaves of `params` under these names, such as "Dense_1/kernel", by factors of
    this rank.

    Leaves have two axes or more; the last one is the output. `alpha` is by default `rank`, for a scale of 1.
    The leaves under the names in `full`, such as a new head, are trained themselves, and are parameters too:
    `train_only(task, begun, "a", "b", "full")`. All others stay as they are in `params`, and are arguments of
    each compiled program, as with `train_only`."""
    if not names or rank < 1:
        known = ", ".join(map(repr, tree.names(params)))
        raise ValueError(
            f"lora() needs a name of what is adapted and rank >= 1, got {names} and rank={rank}; the leaves are {known}"
        )
    params = jax.tree.map(np.asarray, params)
    base, rest = tree.partition(params, names)
    if isinstance(full, str):
        raise TypeError(f"lora(full=) takes several names, got {full!r}: write full=({full!r},)")
    trained, rest = tree.partition(rest, full) if full else (None, rest)
    others = Constants(rest)
    for name, leaf in zip(tree.names(base), jax.tree.leaves(base), strict=True):
        if leaf.ndim < 2:
            raise ValueError(
                f"lora() adapts matrices, and {name!r} has shape {list(leaf.shape)}: name kernels, such as 'Dense_0/kernel'"
            )
    scale = (rank if alpha is None else alpha) / (math.sqrt(rank) if rank_stabilised else rank)

    def init(key: Key) -> LowRank:
        weights = jax.tree.map(jnp.asarray, base)
        adapted = LowRank(weights, weights, weights, jnp.float32(scale), jax.tree.map(jnp.asarray, trained))
        return begin(key, adapted, rank)

    def whole(adapted: LowRank) -> Params:
        body = others.now if adapted.full is None else tree.combine(adapted.full, others.now)
        return tree.combine(adapted.weights, body)

    return task.reading(others, whole, init)


def begin(key: Key, adapted: LowRank, rank: int) -> LowRank:
    """The same weights with new factors: a uniform within +-1 / sqrt(in), and b zero, so that the model
    equals its base."""
    leaves, structure = jax.tree.flatten(adapted.base)
    drawn: list[Any] = []
    for one, w in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        inputs = math.prod(w.shape[:-1])
        drawn.append(
            jax.random.uniform(one, (inputs, rank), w.dtype, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        )
    b = [jnp.zeros((rank, w.shape[-1]), w.dtype) for w in leaves]
    return adapted._replace(a=jax.tree.unflatten(structure, drawn), b=jax.tree.unflatten(structure, b))
