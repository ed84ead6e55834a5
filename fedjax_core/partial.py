"""Partial aggregation: the reports of some clients to one message as one value, to be combined with other
parts later.

    partial_round(composed)      server = (what was sent, value, weight, clients)      update = keep what was gathered
    combine(parts)               the mean of the parts' means, by their weights, is the mean of all; likewise totals (`Aggregator.linear`)

Asynchronous runs gather clients that began from one version of the model, and a large site gathers its
departments. A part is a `Round` of its own, so it runs wherever rounds run. What a stage does to the sum
(noise) is left to the conclusion of the round.

>>> import jax, numpy as np, optax
>>> from fedjax_core import algorithms, compose, models
>>> composed = compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1)))
>>> gathered = begin(partial_round(composed), jax.random.key(0), 3, composed.algorithm.task.init(jax.random.key(1)))
>>> int(gathered.round), float(gathered.server.weight)
(3, 0.0)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Aggregate, nothing
from fedjax_core.constants import remembered
from fedjax_core.downlink import Remembering
from fedjax_core.round import Kept, Round, State, reports_of, state_shapes
from fedjax_core.types import Array, Key, Message, Own, Params, Update
from fedjax_core.uplink.base import Sender, by_itself, chain


class Gathered(NamedTuple):
    """A message as it was sent, and the aggregated reports to it."""

    params: Any
    value: Update  # of the reports; zeros where there are none
    weight: Array
    clients: Array


def incompatibility(composed: Round, masked: bool = False) -> str | None:
    """The reason why reports of this round cannot be gathered in parts and combined later; None where they
    can.

    `masked`: the gathered value is masked as one report, so reports whose sum alone may be seen can be
    gathered too."""
    algorithm, state = composed.algorithm, state_shapes(composed)
    if len(algorithm.exchanges) > 1:
        return (
            f"a round of {algorithm.name} has {len(algorithm.exchanges)} exchanges, of which the later need "
            "what came of the earlier ones"
        )
    if isinstance(state.server, Remembering):
        return (
            f"{composed.downlink.name} sends differences from what clients received before, which have no order here: "
            "use a downlink= that keeps nothing, such as the bare stage"
        )
    if jax.tree.leaves(state.clients.own):
        return (
            f"clients of {algorithm.name} keep state between rounds, which has no address here: "
            "use one whose clients keep nothing (fedavg)"
        )
    if jax.tree.leaves(state.clients.uplink):
        return f"{composed.uplink.name} keeps state at each client between rounds, which has no address here: leave that stage out"
    if jax.tree.leaves(state.uplink):
        return (
            f"{composed.uplink.name} keeps state at the server that later rounds change: leave that stage out"
        )
    (exchange,) = algorithm.exchanges
    if exchange.address is not None:
        return f"{algorithm.name} tells each client something of its own (address), and these have no position here"
    if exchange.slots > 1:
        return f"clients of {algorithm.name} name the slot of their report, and a mean of them is of no slot"
    if stats := reports_of(composed)[0].stats:
        return f"its server reads numbers of each client ({', '.join(stats)}), which are not in a mean: use one whose reports have no stats"
    if jax.tree.leaves(state.downlink):
        return f"{composed.downlink.name} keeps state at the server from message to message: use a downlink= that keeps nothing"
    if jax.tree.leaves(state.aggregator):
        return f"{composed.aggregator.name}() keeps state at the server that later rounds change: use aggregator=fc.aggregators.mean()"
    if not (masked and composed.uplink.hides) and (
        needed := sorted(composed.uses(0) & {"here", "pairs", "place"})
    ):
        return f"{composed.uplink.name} goes by who else is in the cohort ({', '.join(needed)}): leave that stage out"
    if not composed.aggregator.linear:
        return f"{composed.aggregator.name}() of parts does not add up to that of all reports: use aggregator=fc.aggregators.mean()"
    return None


@remembered(maxsize=32)
def partial_round(composed: Round, masked: bool = False) -> Round:
    """The round whose server is the gathered value; raises, with the reason, where that cannot be.

    `masked` is that of `incompatibility`: whole numbers are gathered, with no masks between the gathered
    clients."""
    if (reason := incompatibility(composed, masked)) is not None:
        raise ValueError(f"the reports of this round cannot be gathered apart: {reason}")
    algorithm = composed.algorithm
    (exchange,) = algorithm.exchanges
    server = jax.eval_shape(lambda key: algorithm.init(algorithm.init_params(key)), keys.shape())
    shapes = composed.received(composed.report_shapes(0, server, ()).update)

    def init_params(key: Key) -> Params:
        return composed.broadcast(0, composed.init(key, 1))[0]

    def init(sent: Any) -> Gathered:
        return Gathered(sent, tree.zeros_like(shapes), jnp.float32(0), jnp.float32(0))

    def update(server: Gathered, reports: Aggregate) -> Gathered:
        return Gathered(server.params, reports.value, reports.weight, reports.clients)

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        return composed.uplink.encode(state, own, update, by_itself(sender))

    hidden: dict[str, Any] = {"encode": encode, "recover": None} if composed.uplink.hides else {}
    gathers: Any = exchange._replace(
        broadcast=lambda server: composed.listen(0, server.params), update=update
    )
    inner = algorithm._replace(
        init_params=init_params, init=init, init_client=nothing, exchanges=(gathers,), personal=None
    )
    return composed._replace(
        algorithm=inner,
        uplink=composed.uplink._replace(finish=lambda state, value, info, key: (value, state), **hidden),
        downlink=chain(),
    )


def begin(gathers: Round, key: Key, round: int, sent: Any) -> State:
    """The state from which a simulator of `gathers` gathers the reports to `sent`, with the draws of this
    round."""
    state = state_shapes(gathers)
    return state._replace(
        server=gathers.algorithm.init(sent),
        clients=Kept((), state.clients.uplink),
        round=jnp.int32(round),
        key=key,
    )


def combine(composed: Round, state: State, parts: list[tuple[Gathered, float]]) -> State:
    """Concludes the round from the parts, each multiplied by its factor, at its weight."""
    values = [(part.value, part.weight, part.clients, jnp.float32(factor)) for part, factor in parts]
    return _combine(composed)(state._replace(clients=()), values)  # type: ignore[arg-type]


@remembered(maxsize=32)
def _combine(composed: Round) -> Any:
    def conclude(state: State, parts: list[Any]) -> State:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parts[0][0])
        acc, weight, clients = composed.aggregator.zero(shapes, len(parts)), jnp.float32(0), jnp.float32(0)
        for place, (value, part_weight, here, factor) in enumerate(parts):
            scaled = jax.tree.map(lambda x, f=factor: (x * f.astype(x.dtype))[None], value)
            acc = composed.aggregator.add(acc, scaled, part_weight[None], jnp.array([place], jnp.int32))
            weight, clients = weight + part_weight, clients + here
        all_of_them = jnp.ones(len(parts), bool)
        return composed.conclude(0, state, acc, weight, clients, all_of_them, all_of_them)

    return jax.jit(conclude)
