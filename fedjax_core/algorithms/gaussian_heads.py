"""Gaussian heads: a classifier on fixed features from counts, sums and second moments of classes, exactly as
if the data were pooled.

    n_c, s_c, M_c = sums over the client's examples of class c of 1, z, z z'            one message of each client
    m_c = s_c / n_c,   S_c = M_c / n_c - m_c m_c',   p_c = n_c / n
    score of class c = log p_c - (z - m_c)' V_c^-1 (z - m_c) / 2 - log det V_c / 2

with V_c = sum_c p_c S_c for all ("lda"), S_c ("qda"), or the diagonal of S_c ("nb", Gaussian naive Bayes), as
scikit-learn 1.9 has them.

Turazza, Picone and Mamei, "The Gaussian-Head OFL Family: One-Shot Federated Learning from Client Global
Statistics", ICLR 2026, whose closed forms these are. Let each client take part once, as the sums of all
rounds add.

>>> algorithm = gaussian_heads(lambda batch: batch["x"], width=3, classes=2, kind="lda")
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Exchange, Report, Seen, nothing, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.local_training import look
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Key, Own
from fedjax_core.work import ONCE


class Moments(NamedTuple):
    """Sums over examples of each class."""

    counts: Array  # [C]
    sums: Array  # [C, d]
    seconds: Array  # [C, d, d]


class Head(NamedTuple):
    """A quadratic score for each class: bias + slope' z - z' curve z / 2."""

    bias: Array  # [C]
    slope: Array  # [C, d]
    curve: Array  # [C, d, d]


class Global(NamedTuple):
    """The head, and the sums that it is computed from."""

    params: Head
    moments: Moments


@scheduled()
def gaussian_heads(
    features: Callable[[Batch], Array],
    width: int,
    classes: int,
    kind: Literal["lda", "qda", "nb"] = "lda",
    *,
    floor: float = 1e-6,
) -> Algorithm:
    """A one-message classifier on `features(batch)`, [B, width], with labels in the column `y`; `floor` is
    added to each variance.

    A class without examples is never chosen.
    """
    if kind not in ("lda", "qda", "nb"):
        raise ValueError(f'kind of gaussian_heads must be "lda", "qda" or "nb", got {kind!r}')

    def predict(params: Head, batch: Batch) -> Array:
        z = features(batch)
        return params.bias[None] + z @ params.slope.T - 0.5 * jnp.einsum("ni,cij,nj->nc", z, params.curve, z)

    def loss(params: Head, batch: Batch, key: Key) -> Array:
        scores = jax.nn.log_softmax(predict(params, batch))
        return -jnp.sum(jnp.where(jax.nn.one_hot(batch["y"], classes) > 0, scores, 0), axis=1)

    def metrics(params: Head, batch: Batch) -> dict[str, Array]:
        return {"accuracy": (predict(params, batch).argmax(-1) == batch["y"]).astype(jnp.float32)}

    def measure(params: Head, own: Own, batch: Batch, key: Key) -> Moments:
        z, one = (
            features(batch),
            jax.nn.one_hot(batch["y"], classes) * (batch.mask / jnp.maximum(jnp.sum(batch.mask), 1))[:, None],
        )
        return Moments(jnp.sum(one, axis=0), one.T @ z, jnp.einsum("nc,ni,nj->cij", one, z, z))

    def report(params: Head, own: Own, moments: Moments, seen: Seen) -> Report:
        return Report(tree.scale(seen.examples, moments), uniform(seen), own)

    def update(server: Global, reports: Aggregate) -> Global:
        moments = tree.add(server.moments, tree.scale(reports.clients, reports.value))
        return Global(head(moments, kind, floor), moments)

    none = Moments(jnp.zeros(classes), jnp.zeros((classes, width)), jnp.zeros((classes, width, width)))
    task = Task(lambda key: Head(*none), loss, metrics, predict, classes=classes)
    exchange = Exchange(
        lambda server: server.params,
        look(lambda params, own: none, measure, report),
        update,
        work=ONCE,
        reports="mean",
    )
    return Algorithm(task, task.init, lambda params: Global(params, none), nothing, (exchange,))


def head(moments: Moments, kind: str, floor: float) -> Head:
    """The scores of Gaussian classes with these moments."""
    here, counts = moments.counts > 0, jnp.maximum(moments.counts, 1)
    share = moments.counts / jnp.maximum(jnp.sum(moments.counts), 1)
    means = moments.sums / counts[:, None]
    spread = moments.seconds / counts[:, None, None] - means[:, :, None] * means[:, None, :]
    if kind == "lda":
        spread = jnp.broadcast_to(jnp.einsum("c,cij->ij", share, spread)[None], spread.shape)
    eye = jnp.eye(spread.shape[-1])[None]
    spread = (spread * eye if kind == "nb" else spread) + floor * eye
    spread = jnp.where(here[:, None, None], spread, eye)
    curve = jnp.linalg.inv(spread)
    slope = jnp.einsum("cij,cj->ci", curve, means)
    bias = (
        jnp.log(jnp.maximum(share, 1e-30))
        - 0.5 * jnp.sum(slope * means, axis=1)
        - 0.5 * jnp.linalg.slogdet(spread)[1]
    )
    return Head(jnp.where(here, bias, -1e30), slope, curve)
