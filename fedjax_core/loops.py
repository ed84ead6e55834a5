"""A round as plain Python loops: one client after another, one step after another, one report after another.

No lanes, no schedule, no scan, no mask arithmetic of the engine. Whatever the engine does must end where this ends.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Seen
from fedjax_core.data.batches import Plan, in_order
from fedjax_core.data.clients import Clients
from fedjax_core.round import Kept, Round, State
from fedjax_core.types import Batch, Key, Params


class Loops:
    """`init` and `run` as a simulator has them."""

    def __init__(self, composed: Round, clients: Clients, jit: bool = True, **plan: Any) -> None:
        self.round, self.clients, self.plan = composed, clients, Plan(**plan)
        compiled: Any = jax.jit if jit else lambda f: f
        self.steps = [compiled(exchange.client.step) for exchange in composed.algorithm.exchanges]

    def init(self, key: Key, params: Params | None = None) -> State:
        return self.round.init(key, len(self.clients), params)

    def run(self, state: State, cohort: Any, counts: Any = None) -> tuple[State, list[dict[str, Any]]]:
        """One round: (state, the metrics of every step that counted)."""
        number, seen, refused = int(state.round), list[dict[str, Any]](), set[int]()
        counts = [1.0] * len(cohort) if counts is None else counts
        for e, exchange in enumerate(self.round.algorithm.exchanges):
            sent_down, state = self.round.broadcast(e, state)
            message, acc, weight, number_of = self.round.listen(e, sent_down), None, 0.0, 0.0
            for place, (i, count) in enumerate(zip(cohort, counts, strict=True)):
                visit = None if int(i) in refused else self.visit(e, state, message, int(i), number)
                if visit is None:
                    continue
                sent, its_weight, kept, metrics = visit
                update, usable = self.round.receive(e, state.uplink[e], sent, its_weight)
                if not (bool(usable) and bool(tree.finite(kept))):
                    refused.add(int(i))
                    continue
                seen += metrics
                if exchange.update is not None:
                    acc = self.round.aggregator.zero(update, len(cohort)) if acc is None else acc
                    one = jax.tree.map(lambda x: x[None], update)
                    acc = self.round.aggregator.add(acc, one, jnp.array([its_weight * count]), jnp.array([place]))
                    weight, number_of = weight + its_weight * count, number_of + count
                clients = jax.tree.map(lambda all_, mine, i=i: all_.at[int(i)].set(mine), state.clients, kept)
                state = state._replace(clients=clients)
            if exchange.update is not None:
                if acc is None:  # nobody reported: an empty accumulator, of the shape of any client's report
                    visit = self.visit(e, state, message, int(np.argmax(self.clients.sizes)), number)
                    assert visit is not None
                    sent, its_weight, _, _ = visit
                    acc = self.round.aggregator.zero(self.round.receive(e, state.uplink[e], sent, its_weight)[0], 1)
                state = self.round.conclude(e, state, acc, jnp.float32(weight), jnp.float32(number_of))
        return state._replace(round=state.round + 1), seen

    def visit(self, e: int, state: State, message: Any, i: int, number: int) -> tuple[Any, Any, Kept, list[dict[str, Any]]] | None:
        """What client i brings back from exchange e: (sent, weight, kept, metrics); None from a client with no examples."""
        exchange, clients = self.round.algorithm.exchanges[e], self.clients
        who = np.array([i])
        if exchange.work == "train":
            rows, _ = self.plan.batches(who, clients.offsets, clients.addresses, number)
        else:
            rows, _ = in_order(who, clients.offsets, self.plan.batch_size)
        if not len(rows):
            return None
        key = keys.client(state.key, number, clients.addresses[i])
        kept = jax.tree.map(lambda x: x[i], state.clients)
        carry = exchange.client.begin(message, kept.own, keys.begin(key, e))
        metrics = []
        for t, places in enumerate(rows):
            columns = jax.tree.map(lambda x, places=places: jnp.asarray(x[np.where(places < 0, ~places, places)]), clients.columns)
            batch = Batch(columns, jnp.asarray(places >= 0, jnp.float32))
            carry, found = self.steps[e](message, carry, batch, keys.step(key, e, t))
            metrics.append(found)
        seen = Seen(jnp.float32(clients.sizes[i]), jnp.float32(len(rows)))
        sent, weight, kept = self.round.report(e, message, state.uplink[e], Kept(*kept), carry, seen, key)
        return sent, weight, kept, metrics
