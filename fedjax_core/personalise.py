"""Fine-tuning: a model for each client, from a given one by local steps on the client's own examples.

    v_i <- local steps from x on the examples of client i;    nothing is sent, and nothing is averaged

It is the use of a model such as Per-FedAvg's, and the baseline that any personal algorithm has to beat.
Evaluate on examples that were not trained on:

>>> import jax, numpy as np, optax
>>> from fedjax_core import models
>>> from fedjax_core.lanes import evaluate
>>> data = [{"x": np.full((4, 1), n, np.float32), "y": np.full(4, 2 * n * n, np.float32)} for n in (1, 2)]
>>> train, test = Clients.from_list(data).split(0.5)
>>> task = models.linear(features=1)
>>> params = task.init(jax.random.key(0))
>>> own = personalise(task, params, train, optax.sgd(0.1), batch_size=2, steps=50)
>>> before, after = evaluate(task, params, test), evaluate(task, params, test, personal=own)
>>> before.pooled["loss"], bool(after.pooled["loss"] < 1e-3), own["w"].shape
(34.0, True, (2, 1))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_core.algorithms.base import Algorithm, Client, Exchange, Report, Seen
from fedjax_core.algorithms.local_training import Local, local_training
from fedjax_core.composition import compose
from fedjax_core.data.batches import Amount
from fedjax_core.data.clients import Clients
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.task import Task
from fedjax_core.types import Key, Params


class Global(NamedTuple):
    """The model that every client begins with."""

    params: Params


def personalise(
    task: Task,
    params: Params,
    clients: Clients,
    local: optax.GradientTransformation,
    *,
    batch_size: int,
    epochs: Amount | None = None,
    steps: Amount | None = None,
    seed: int = 0,
    key: Key | None = None,
) -> Params:
    """Each client's own model, leaves [N, ...]: `params` after the steps of `local` on its examples.

    `epochs` or `steps` say how much, `seed` draws the batches, and `key` dropout, as for `Simulator`. A
    client without examples keeps `params`. Give the result to `fc.evaluate(task, params, held_out,
    personal=...)`."""
    begin, step = local_training(task, local)

    def finish(message: Params, carry: Local, seen: Seen) -> Report:
        return Report((), jnp.float32(0), own=carry.params)

    exchange = Exchange(lambda server: server.params, Client(begin, step, finish), update=None)
    algorithm = Algorithm(task, task.init, Global, lambda params: params, (exchange,), name="personalise")
    simulator = Simulator(
        compose(algorithm), clients, batch_size=batch_size, epochs=epochs, steps=steps, seed=seed
    )
    state = simulator.init(jax.random.key(0) if key is None else key, params)
    return simulator.run(state, np.arange(len(clients)), donate=True)[0].clients.own
