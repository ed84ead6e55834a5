"""The interface of attacks, and a round in which chosen clients carry one out, to see what a rule withstands.

    alone      (update, key) -> update                       what a liar reports, knowing its own update
    together   (rows [K, P], liars [K], here [K], key) -> rows   what all liars report, knowing every report

`mark` adds a column to the data that says who lies, so it is the same on every backend. A lie made alone goes
through the uplink's stages, as an honest report does. A lie that liars agree on replaces their reports after
the stages: liars know what the stages do.

>>> import numpy as np, optax
>>> from fedjax_core import algorithms, models
>>> from fedjax_core.attacks.simple import sign_flip
>>> clients = Clients.from_list([{"x": np.ones((2, 1), np.float32), "y": np.ones(2, np.float32)}] * 3)
>>> algorithm = algorithms.fedavg(models.linear(features=1), optax.sgd(0.1))
>>> attacked(compose(algorithm), sign_flip())
Round(fedavg under sign_flip, uplink chain(), aggregator mean)
>>> mark(clients, [2]).columns["attacker"].tolist()
[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator, of_reports, rows_of
from fedjax_core.algorithms.base import Aggregate, Exchange, Report, Seen
from fedjax_core.composition import compose
from fedjax_core.data.clients import Clients
from fedjax_core.round import Round
from fedjax_core.settings import Settings
from fedjax_core.types import Array, Batch, Key, Update
from fedjax_core.uplink.base import Info, Sender, Stage

COLUMN = "attacker"


class Attack(NamedTuple):
    """An attack: what liars report alone, together, or both."""

    name: str
    alone: Callable[[Update, Key], Update] | None = None
    together: Callable[[Array, Array, Array, Key], Array] | None = None
    settings: Settings = Settings()


class Marked(NamedTuple):
    """A report, and whether a liar sent it."""

    update: Update
    liar: Array  # float32 scalar, or [K]


class _Local(NamedTuple):
    carry: Any
    liar: Array
    key: Key


def mark(clients: Clients, liars: Any) -> Clients:
    """The clients with one more column: 1 for the examples of the liars, who are at these positions, and else
    0."""
    chosen = np.zeros(len(clients), np.float32)
    chosen[np.asarray(liars, np.int64)] = 1
    columns = {**clients.columns, COLUMN: np.repeat(chosen, clients.sizes)}
    return Clients.from_arrays(columns, clients.offsets, clients.ids, features=clients.features)


def attacked(composed: Round, attack: Attack) -> Round:
    """The round in which the clients chosen by `mark` report what `attack` says; all else is unchanged.

    A liar is known by its data, so it lies only in exchanges that look at data.
    """
    algorithm, uplink = composed.algorithm, composed.uplink
    made = algorithm._replace(
        name=f"{algorithm.name} under {attack.name}",
        exchanges=tuple(_exchange(one, attack) for one in algorithm.exchanges),
    )
    return compose(made, _past(uplink), _met(composed.aggregator, attack), composed.downlink)


def _exchange(exchange: Exchange, attack: Attack) -> Exchange:
    if exchange.update is None:
        return exchange
    client, conclude = exchange.client, exchange.update

    def begin(message: Any, own: Any, key: Key) -> _Local:
        inner_key, other = jax.random.split(key)
        return _Local(client.begin(message, own, inner_key), jnp.float32(0), other)

    def step(message: Any, local: _Local, batch: Batch, key: Key) -> tuple[_Local, dict[str, Any]]:
        carry, metrics = client.step(message, local.carry, batch, key)
        return _Local(carry, jnp.maximum(local.liar, jnp.max(batch[COLUMN] * batch.mask)), local.key), metrics

    def finish(message: Any, local: _Local, seen: Seen) -> Report:
        report = client.finish(message, local.carry, seen)
        update = report.update
        if attack.alone is not None:
            lie = tree.like(attack.alone(update, local.key), update)
            update = jax.tree.map(lambda x, y: jnp.where(local.liar > 0, x, y), lie, update)
        return report._replace(update=Marked(update, local.liar))

    def update(server: Any, reports: Aggregate) -> Any:
        return conclude(server, reports._replace(value=reports.value.update))

    return exchange._replace(client=client._replace(begin=begin, step=step, finish=finish), update=update)


def _past(inner: Stage) -> Stage:
    """The stage for marked reports: it encodes the update and leaves the mark alone."""

    def encode(state: Any, own: Any, marked: Marked, sender: Sender) -> tuple[Marked, Any]:
        sent, own = inner.encode(state, own, marked.update, sender)
        return Marked(sent, marked.liar), own

    def expand(state: Any, message: Marked, shapes: Marked) -> Marked:
        return Marked(inner.expand(state, message.update, shapes.update), message.liar)

    def finish(state: Any, value: Marked, info: Info, key: Key) -> tuple[Marked, Any]:
        update, state = inner.finish(state, value.update, info, key)
        return Marked(update, value.liar), state

    return inner._replace(
        init=lambda shapes: inner.init(shapes.update),
        init_client=lambda shapes: inner.init_client(shapes.update),
        encode=encode,
        expand=expand,
        finish=finish,
    )


def _met(inner: Aggregator, attack: Attack) -> Aggregator:
    """The aggregator for marked reports, with those of liars replaced."""
    kept: Any = of_reports(inner.name, lambda rows, here, weights, key: rows[0])

    def prepared(acc: Any, key: Key) -> tuple[Any, Key]:
        """(the accumulator of `inner`, its key)."""
        attack_key, after = jax.random.split(key)
        marked: Marked = acc.updates
        rows, here = rows_of(acc._replace(updates=marked.update))
        if attack.together is not None:
            lies = attack.together(rows, here & (marked.liar > 0), here, attack_key)
            rows = jnp.where((here & (marked.liar > 0))[:, None], lies.astype(rows.dtype), rows)
        one: Any = jax.tree.map(lambda x: x[0], marked.update)
        weights = jnp.where(here, acc.weights, 0)
        updates = jax.vmap(ravel_pytree(one)[1])(rows)
        places = jnp.where(here, jnp.arange(len(rows), dtype=jnp.int32), len(rows))
        return inner.add(inner.zero(tree.shapes(one), len(rows)), updates, weights, places), after

    def value(acc: Any, state: Any, key: Key) -> tuple[Marked, Any]:
        inside, after = prepared(acc, key)
        update, state = inner.value(inside, state, after)
        return Marked(update, jnp.float32(0)), state

    def kept_by(acc: Any, state: Any, key: Key) -> Array:
        inside, after = prepared(acc, key)
        assert inner.kept is not None
        return inner.kept(inside, state, after)

    return inner._replace(
        zero=kept.zero,
        add=kept.add,
        merge=kept.merge,
        keeps="reports",
        value=value,
        init=lambda shapes: inner.init(shapes.update),
        kept=None if inner.kept is None else kept_by,
    )
