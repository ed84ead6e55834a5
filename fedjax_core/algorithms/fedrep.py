"""FedRep: each client first fits a head of its own on the shared layers, then trains these under that head.

    exchange 1 (silent)    v_i <- local steps on the head alone, for some epochs; it stays with the client
    exchange 2             w_i <- local steps on the shared layers alone, from the broadcast w
    server                 w   <- w + mean(w_i - w)

Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, algorithm 1.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = fedrep(models.mlp(features=3, hidden=(4,), classes=2), optax.sgd(0.1), head=["1"], head_epochs=5)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedper import fedper
from fedjax_core.algorithms.local_training import Local, check_optimizer, keep
from fedjax_core.task import Task
from fedjax_core.types import Params
from fedjax_core.work import Work


@scheduled("task", "local", "server")
def fedrep(
    task: Task, local: optax.GradientTransformation, head: Sequence[str], head_epochs: int = 1, **rest: Any
) -> Algorithm:
    """`fedper` in two parts: the leaves under the names `head` for `head_epochs`, then all others for the
    run's epochs or steps."""
    check_optimizer(local, "local")
    fit, train = (
        fedper(task, optax.chain(local, only(head, moves)), head, **rest) for moves in (True, False)
    )
    (fitting,), (training,) = fit.exchanges, train.exchanges
    client = fitting.client

    def finish(shared: Params, carry: Local, seen: Seen) -> Report:
        return keep(client.finish(shared, carry, seen).own)

    first = fitting._replace(
        client=Client(client.begin, client.step, finish), update=None, work=Work(epochs=head_epochs)
    )
    return train._replace(exchanges=(first, training))


def only(names: Sequence[str], moves: bool) -> optax.GradientTransformation:
    """Lets only the leaves under these names move, or with `moves` false only the others."""

    def part(updates: Any, params: Any = None) -> Any:
        under, others = tree.partition(updates, names)
        still = jax.tree.map(jnp.zeros_like, others if moves else under)
        return tree.combine(under, still) if moves else tree.combine(others, still)

    return optax.stateless(part)
