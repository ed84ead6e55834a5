"""DiLoCo: workers train for many steps with an optimiser that keeps its state, and the server moves with
Nesterov momentum.

    y <- y - inner(g(y); s_i)               H local steps from y = x; the optimiser's state s_i stays with the worker
    x <- x + outer(mean(y_i - x))           workers count alike

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, algorithm 1:
AdamW within, and without Nesterov momentum of 0.9 with step 0.7.

>>> import optax
>>> from fedjax_core import models
>>> algorithm = diloco(models.linear(features=3), inner=optax.adamw(1e-3))
"""

from typing import Any

import optax

from fedjax_core.algorithms.base import Algorithm, Client, Report, Seen, uniform
from fedjax_core.algorithms.by_round import scheduled
from fedjax_core.algorithms.fedavg import fedavg
from fedjax_core.algorithms.local_training import Local
from fedjax_core.task import Task
from fedjax_core.types import Key, Own, Params


@scheduled("task", "outer")
def diloco(
    task: Task,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation | None = None,
    **rest: Any,
) -> Algorithm:
    """`fedavg` with clients that keep the state of their optimiser `inner`; the other arguments are fedavg's.
    `steps=` of the simulator is H.

    A schedule within `inner` goes on over the rounds, as its state does. `outer`: `optax.sgd(0.7, 0.9,
    nesterov=True)` where not given."""
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True) if outer is None else outer
    averaging = fedavg(task, inner, server=outer, **{"weighting": uniform, **rest})
    (exchange,) = averaging.exchanges
    client = exchange.client

    def begin(params: Params, own: Own, key: Key) -> Local:
        return Local(params, own, own=())

    def finish(params: Params, carry: Local, seen: Seen) -> Report:
        return client.finish(params, carry, seen)._replace(own=carry.opt)

    kept = exchange._replace(client=Client(begin, client.step, finish))
    return averaging._replace(init_client=inner.init, exchanges=(kept,))
