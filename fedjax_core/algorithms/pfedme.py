"""pFedMe: clients use models near a local one, and the local one follows them, which are steps on a smoothed
loss.

    t_i <- argmin_t f_i(t; batch) + lam/2 |t - w|^2        by some steps of size inner_lr; stays with the client, which uses it
    w   <- w - lr lam (w - t_i)                            each local step, from w = x
    x   <- (1 - beta) x + beta mean of w_i

Dinh, Tran and Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, algorithm 1.

>>> from fedjax_core import models
>>> algorithm = pfedme(models.linear(features=3), lr=0.05, lam=15.0, inner_lr=0.05)
"""

from typing import NamedTuple

import jax
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen, gradient, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.metrics import Mean
from fedjax_core.task import Task
from fedjax_core.types import Batch, Key, Own, Params, known


class Local(NamedTuple):
    """A client's carry: the local model w (`params`), and the one that it uses, t_i (`personal`)."""

    params: Params
    personal: Params


@scheduled("task", "lr", "lam", "inner_lr", "beta")
def pfedme(
    task: Task, lr: float, lam: float, inner_lr: float, inner_steps: int = 5, beta: float = 1.0
) -> Algorithm:
    """pFedMe with clients weighted alike; each local step has `inner_steps` gradients. The metric `loss` is
    at the end of these."""
    if known(lam) and lam <= 0:
        raise ValueError(
            f"pfedme needs lam > 0, got {lam}: without a pull clients would have nothing to do with one another"
        )
    # FedAvg with other local steps
    averaging = fedavg(task, optax.identity(), server=optax.sgd(beta), weighting=uniform)
    (exchange,) = averaging.exchanges

    def begin(params: Params, own: Own, key: Key) -> Local:
        return Local(params, own)

    def step(params: Params, carry: Local, batch: Batch, key: Key) -> tuple[Local, dict[str, Mean]]:
        def nearer(_: int, t: Params) -> Params:
            grads, _metrics = gradient(task, t, batch, key)
            return jax.tree.map(lambda t, g, w: t - inner_lr * (g + lam * (t - w)), t, grads, carry.params)

        personal = jax.lax.fori_loop(0, inner_steps, nearer, carry.personal)
        _, metrics = gradient(task, personal, batch, key)
        return Local(
            jax.tree.map(lambda w, t: w - lr * lam * (w - t), carry.params, personal), personal
        ), metrics

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return Report(tree.sub(carry.params, params), uniform(seen), own=carry.personal)

    return averaging._replace(
        init_client=lambda params: params,
        exchanges=(exchange._replace(client=Client(begin, step, finish)),),
        personal=lambda server, own: own,
    )
