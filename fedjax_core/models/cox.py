"""Cox proportional hazards: a linear log risk, fitted by the partial likelihood within a batch.

    l_i = event_i * log sum_{j at risk at time_i} exp(s_j - s_i)        s = x @ w + b

At risk are i itself, the examples with a longer time, and of those with the same time the ones before i in
the batch. So batches of the same examples in another order differ only through ties. The mean is over all
examples of the batch, the censored ones too.

Cox, "Regression models and life-tables", Journal of the Royal Statistical Society B, 1972; the variant is
FLamby's Fed-TCGA-BRCA.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.types import Batch
>>> task = cox(features=1)
>>> batch = Batch({"x": jnp.ones((3, 1)), "time": jnp.array([1.0, 3.0, 2.0]), "event": jnp.ones(3)}, mask=jnp.ones(3))
>>> [round(float(loss), 3) for loss in jnp.exp(task.loss(task.init(jax.random.key(0)), batch, jax.random.key(0)))]
[3.0, 1.0, 2.0]
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core.models.base import POSITIVE_LOSS, flat, like
from fedjax_core.task import Task
from fedjax_core.tree import wide
from fedjax_core.types import Array, Batch, Key, Params


def cox(features: int) -> Task:
    """Cox regression on columns `x`, `time` and `event` (1 seen, 0 censored); parameters {"w": [features],
    "b": []}.

    Nothing can be learned from censored examples alone. `predict` gives the log risk. The loss depends on
    which examples share a batch, so batches of one teach nothing; padding is in no risk set. `b` cancels in
    the loss and never moves. Real sites evaluate the loss of 512 examples at a time, a simulator of as many
    as the median client has, as a power of 2."""
    if features < 1:
        raise ValueError(f"cox() needs features of at least 1, got {features}")

    def init(key: Key) -> Params:
        return {"w": jnp.zeros(features), "b": jnp.zeros(())}

    def predict(params: Params, batch: Batch) -> Array:
        return wide(like(params, flat(batch["x"], features)) @ params["w"] + params["b"])

    def loss(params: Params, batch: Batch, key: Key) -> Array:
        return partial_likelihood(predict(params, batch), batch["time"], batch["event"], batch.mask)

    return Task(init, loss, predict=predict, check=_check_events, ranges=(POSITIVE_LOSS,))


def _check_events(clients: Any) -> None:
    """Raises where column `event` is not 0 or 1, for example with 1 for censored and 2 for seen."""
    if "event" not in clients.columns:  # the shapes are wrong
        return
    try:
        clients.check_labels("event", 2)
    except ValueError as error:
        problem = str(error).partition(", is not")[0].removeprefix("the label in ")
        raise ValueError(
            f"{problem}, must be 1 where the event was seen and 0 where the patient was censored: with 1 and 2, as "
            "other programs write them, take event - 1"
        ) from None


def partial_likelihood(scores: Array, time: Array, event: Array, mask: Array) -> Array:
    """-log of each example's share of the risk among those at risk with it, 0 for the censored and for
    padding; all [B]."""
    position = jnp.arange(scores.shape[0], dtype=jnp.int32)
    longer = time[None, :] > time[:, None]  # [B, B]: is j seen for longer than i
    earlier_tie = (time[None, :] == time[:, None]) & (position[None, :] < position[:, None])
    at_risk = (longer | earlier_tie) & (mask[None, :] > 0) | jnp.eye(scores.shape[0], dtype=bool)
    gaps = jnp.where(at_risk, scores[None, :] - scores[:, None], -jnp.inf)
    return event.astype(scores.dtype) * mask.astype(scores.dtype) * jax.nn.logsumexp(gaps, axis=1)
