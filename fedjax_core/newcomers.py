"""The models that a personal algorithm gives to clients who never took part, while the federation goes on
without them.

    v_i <- what client i keeps after some rounds by itself, with the server as it is;    the server does not move

For Ditto that is a model beside the global one, for FedPer a head on the shared layers, for FedALA a mixture.
Evaluate it on examples that were not trained on, and compare it with the global model and with clients who
took part:

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, models
>>> from fedjax_core.lanes import evaluate
>>> data = [{"x": np.full((4, 1), n, np.float32), "y": np.full(4, 2 * n * n, np.float32)} for n in (1, 2, 3)]
>>> train, test = Clients.from_list(data).split(0.5)
>>> task = models.linear(features=1)
>>> algorithm = algorithms.ditto(task, 0.1, optax.sgd(0.05))
>>> simulator = Simulator(compose(algorithm), Clients.from_list([train[0], train[1]]), batch_size=2, steps=20)
>>> state, _ = simulator.run(simulator.init(jax.random.key(0)), [0, 1])
>>> own = newcomers(algorithm, state, train, batch_size=2, steps=50)
>>> shared = evaluate(task, state.params, test).clients["loss"][2]
>>> bool(evaluate(task, state.params, test, personal=own).clients["loss"][2] < shared / 2)
True
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import tree
from fedjax_core.algorithms.base import Algorithm, Client, Exchange, Report, Seen
from fedjax_core.composition import compose
from fedjax_core.data.batches import Amount
from fedjax_core.data.clients import Clients
from fedjax_core.downlink import Remembering
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.round import State
from fedjax_core.types import Carry, Key, Message, Params


def newcomers(
    algorithm: Algorithm,
    state: State,
    clients: Clients,
    *,
    batch_size: int,
    epochs: Amount | None = None,
    steps: Amount | None = None,
    rounds: int = 1,
    seed: int = 0,
    key: Key | None = None,
) -> Params:
    """The models, leaves [N, ...], of `clients` who were in no round, after `rounds` by themselves under the
    server of `state`.

    Their client state begins as any client's; layers that the server does not have begin from `key`. The
    other arguments are those of `fc.Simulator`. Raises where the algorithm gives clients no models of their
    own: `fc.personalise` fits the global one to each."""
    personal = algorithm.personal
    if personal is None:
        raise ValueError(
            f"{algorithm.name} gives clients no models of their own: fc.personalise fits the global model to each client"
        )
    if isinstance(state.server, Remembering):  # they have no memory, and are given the message as it is
        state = state._replace(server=state.server.server)
    key = jax.random.key(0) if key is None else key
    begun, params = algorithm.init_params(key), state.params
    structure: Any = jax.tree.structure(params)
    whole = tree.combine(params, begun) if structure != jax.tree.structure(begun) else params
    still = algorithm._replace(
        init=lambda params: state.server,
        exchanges=tuple(_silent(exchange) for exchange in algorithm.exchanges),
        population=None,
        name=f"newcomers to {algorithm.name}",
    )
    simulator = Simulator(
        compose(still), clients, batch_size=batch_size, epochs=epochs, steps=steps, seed=seed
    )
    after = simulator.init(key, whole)
    for _ in range(rounds):
        after, _ = simulator.run(after, np.arange(len(clients)), donate=False)
    return jax.vmap(lambda own: personal(state.server, own))(after.clients.own)


def _silent(exchange: Exchange) -> Exchange:
    """The exchange with nothing sent up: clients do the same, and keep the same."""

    def finish(message: Message, carry: Carry, seen: Seen) -> Report:
        return Report((), jnp.float32(0), own=exchange.client.finish(message, carry, seen).own)

    client = Client(exchange.client.begin, exchange.client.step, finish)
    return exchange._replace(client=client, update=None, reports="any", slots=1)
