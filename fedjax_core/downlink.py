"""Messages as differences from what clients have: the algorithm that `compose` makes of another one and a
`fc.uplink.delta`.

    server: sent = delta.encode(message, memory)        client: memory <- delta.decode(sent, memory), and begins from it

Both ends compute the same memory. The server moves its own only by reports that count, since only then a
client keeps what it received. In one stream a message says from which one before it differs; a client has
the last two that may be named.

>>> import jax, optax
>>> from fedjax_core import algorithms, models, uplink
>>> algorithm = algorithms.fedavg(models.linear(features=2), optax.sgd(0.1))
>>> remembering = with_memory(algorithm, uplink.delta(uplink.half(), population=3, per_client=True))
>>> server = remembering.init(remembering.init_params(jax.random.key(0)))
>>> server.params["w"].shape, server.memory[0]["w"].shape
((2,), (3, 2))
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, Told
from fedjax_core.types import Array, Batch, Carry, Key, Message, Own, Params, Server, Update
from fedjax_core.uplink.base import Stage
from fedjax_core.uplink.delta import Delta, as_it_is, coded

RECEIVED = "received"
"""The number by which a report says that its client has the message, where the server keeps one for each."""


class Remembering(NamedTuple):
    """The server of an algorithm, and the messages that it knows clients to have, exchange by exchange."""

    server: Server
    memory: tuple[Any, ...]  # a `Common`, or leaves [N, ...] with a message for each client
    draws: Array  # uint32, of which the draws of the next message are made

    @property
    def params(self) -> Params:
        """The global model."""
        return self.server.params


class Common(NamedTuple):
    """The memory that all clients have of one exchange's messages."""

    message: Update
    number: Array  # int32: which message that was
    last: Array  # int32: the number of the last that was sent


class Keeping(NamedTuple):
    """A client's state: the algorithm's own, and its memory of the messages of each exchange."""

    own: Own
    memory: tuple[Any, ...]  # `Two`, or a message


class Two(NamedTuple):
    """Two messages that a client received: the last, and the one from which that differed."""

    before: Update
    number_before: Array  # int32
    last: Update
    number_last: Array  # int32


class Streamed(NamedTuple):
    """A message as it is sent to all."""

    change: Any
    rest: Message  # the leaves that are sent as they are
    of: Array  # int32: the number of the message from which it differs
    number: Array  # int32: its own


class Working(NamedTuple):
    """A client's carry."""

    inner: Carry
    memory: tuple[Any, ...]


def with_memory(algorithm: Algorithm, delta: Delta) -> Algorithm:
    """The algorithm with its messages sent as `delta` says; raises where its rounds do not show who has
    them."""
    for e, exchange in enumerate(algorithm.exchanges):
        if exchange.update is None:
            raise ValueError(
                f"in exchange {e} of {algorithm.name} no report leaves a client, so the server would not know who has "
                f"its message, from which {delta.name} sends the difference: use the bare stage, downlink={delta.inner.name}"
            )
    if algorithm.population not in (None, delta.population):
        raise ValueError(
            f"{algorithm.name} was made with population={algorithm.population}, and {delta.name} with "
            f"population={delta.population}: both are the number of clients"
        )
    made = (_per_client if delta.per_client else _in_one_stream)(algorithm, delta)
    personal = algorithm.personal

    def messages(params: Params) -> list[Update]:
        server = algorithm.init(params)
        return [tree.wide(coded(exchange.broadcast(server))) for exchange in algorithm.exchanges]

    for shapes in jax.eval_shape(lambda key: messages(algorithm.init_params(key)), keys.shape()):
        delta.check(shapes)

    def init(params: Params) -> Remembering:
        memory = tuple(made.at_server(jax.tree.map(jnp.copy, one)) for one in messages(params))
        return Remembering(algorithm.init(params), memory, jnp.uint32(0))

    def init_client(params: Params) -> Keeping:
        memory = tuple(map(made.at_client, messages(params)))
        return Keeping(algorithm.init_client(params), memory)

    return algorithm._replace(
        init=init,
        init_client=init_client,
        exchanges=made.exchanges,
        personal=None if personal is None else lambda server, keeps: personal(server.server, keeps.own),
        population=delta.population,
    )


def check_known(delta: Delta, uplink: Stage) -> None:
    """Raises where a memory for each client would need to know whose reports count, and the uplink hides
    them."""
    if delta.per_client and uplink.hides:
        raise ValueError(
            f"{delta.name} with per_client=True has to know whose reports count, and {uplink.name!r} reveals only the "
            "sum of all: leave per_client= out, for one stream to all clients"
        )


def counts_clients(server: Server) -> bool:
    """Whether this server takes as many reports as there are clients for a report of each: in one stream."""
    return isinstance(server, Remembering) and any(isinstance(one, Common) for one in server.memory)


class _Coded(NamedTuple):
    """An algorithm's exchanges with coded messages, and the memories that both ends begin with."""

    exchanges: tuple[Exchange, ...]
    at_server: Any
    at_client: Any


def _in_one_stream(algorithm: Algorithm, delta: Delta) -> _Coded:
    def exchange_of(e: int, exchange: Exchange) -> Exchange:
        def change(state: Remembering) -> Any:
            message = exchange.broadcast(state.server)
            return delta.encode(message, state.memory[e].message, _key(state, e))

        def broadcast(state: Remembering) -> Streamed:
            common, message = state.memory[e], exchange.broadcast(state.server)
            return Streamed(change(state), as_it_is(message), common.number, common.last + 1)

        def receive(sent: Streamed, own_part: Any, keeps: Two) -> Two:
            is_last = sent.of == keeps.number_last
            memory = tree.where(is_last, keeps.last, keeps.before)
            message = delta.decode(sent.change, memory)
            has_it = is_last | (sent.of == keeps.number_before)  # by what the server does, always
            message = jax.tree.map(lambda x: jnp.where(has_it, x, jnp.nan).astype(x.dtype), message)
            return Two(memory, sent.of, message, sent.number)

        def update(state: Remembering, reports: Aggregate) -> Remembering:
            common = state.memory[e]
            by_all, number = reports.clients >= delta.population, common.last + 1
            received = delta.decode(change(state), common.message)
            message = tree.where(by_all, received, common.message)
            after = Common(message, jnp.where(by_all, number, common.number), number)
            return _moved(exchange, e, state, reports, after)

        def message_of(sent: Streamed, keeps: Two) -> Message:
            return _whole(algorithm, exchange, keeps.last, sent.rest)

        client = _client(exchange, e, receive, message_of)
        address = exchange.address
        return exchange._replace(
            broadcast=broadcast,
            client=client,
            update=update,
            address=None if address is None else lambda state, clients: address(state.server, clients),
        )

    zero = jnp.int32(0)
    return _Coded(
        tuple(exchange_of(e, exchange) for e, exchange in enumerate(algorithm.exchanges)),
        lambda message: Common(message, zero, zero),
        lambda message: Two(message, zero, message, zero),
    )


def _per_client(algorithm: Algorithm, delta: Delta) -> _Coded:
    def exchange_of(e: int, exchange: Exchange) -> Exchange:
        inner_address = exchange.address

        def changes(state: Remembering, clients: Array) -> tuple[Update, Any]:
            """(the memories of these clients, the messages sent to them), leaves [K, ...]."""
            message, rows = exchange.broadcast(state.server), tree.take(state.memory[e], clients)
            draws = jax.vmap(lambda client: jax.random.fold_in(_key(state, e), client))(clients)
            return rows, jax.vmap(lambda row, key: delta.encode(message, row, key))(rows, draws)

        def address(state: Remembering, clients: Array) -> tuple[Any, Any]:
            inner = () if inner_address is None else inner_address(state.server, clients)
            return changes(state, clients)[1], inner

        def receive(sent: Message, own_part: Any, keeps: Update) -> Update:
            return delta.decode(own_part[0], keeps)

        def update(state: Remembering, reports: Aggregate) -> Remembering:
            each = reports.each
            assert each is not None
            rows, sent = changes(state, each.position)
            place = jnp.where(each.stats[RECEIVED] > 0, each.position, delta.population)
            after = tree.put(state.memory[e], place, jax.vmap(delta.decode)(sent, rows))
            stats = {name: value for name, value in each.stats.items() if name != RECEIVED}
            inner = each._replace(stats=stats) if stats or exchange.reports == "all" else None
            return _moved(exchange, e, state, reports._replace(each=inner), after)

        def message_of(sent: Message, keeps: Update) -> Message:
            return _whole(algorithm, exchange, keeps, sent)

        client = _client(exchange, e, receive, message_of, stats={RECEIVED: jnp.float32(1)})
        return exchange._replace(
            broadcast=lambda state: as_it_is(exchange.broadcast(state.server)),
            client=client,
            update=update,
            address=address,
        )

    def for_each(message: Update) -> Update:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (delta.population, *x.shape)), message)

    exchanges = tuple(exchange_of(e, exchange) for e, exchange in enumerate(algorithm.exchanges))
    return _Coded(exchanges, for_each, lambda message: message)


def _client(
    exchange: Exchange, e: int, receive: Any, message_of: Any, stats: dict[str, Array] | None = None
) -> Client:
    """The exchange's client, which decodes its message, and keeps it."""
    inner = exchange.client

    def apart(sent: Any) -> tuple[Any, Any]:
        """(the message to all, the part for this client alone)."""
        return (sent.message, sent.mine) if isinstance(sent, Told) else (sent, ())

    def read(sent: Any, memory: tuple[Any, ...]) -> Message:
        common, own_part = apart(sent)
        message = message_of(common, memory[e])
        if exchange.address is None:
            return message
        return Told(message, own_part if stats is None else own_part[1])

    def begin(sent: Any, keeps: Keeping, key: Key) -> Working:
        received = receive(*apart(sent), keeps.memory[e])
        memory = (*keeps.memory[:e], received, *keeps.memory[e + 1 :])
        return Working(inner.begin(read(sent, memory), keeps.own, key), memory)

    def step(sent: Any, carry: Working, batch: Batch, key: Key) -> tuple[Working, dict[str, Any]]:
        after, metrics = inner.step(read(sent, carry.memory), carry.inner, batch, key)
        return Working(after, carry.memory), metrics

    def finish(sent: Any, carry: Working, seen: Seen) -> Report:
        report = inner.finish(read(sent, carry.memory), carry.inner, seen)
        return report._replace(own=Keeping(report.own, carry.memory), stats={**report.stats, **(stats or {})})

    return Client(begin, step, finish)


def _moved(exchange: Exchange, e: int, state: Remembering, reports: Aggregate, after: Any) -> Remembering:
    """The server after an exchange, when clients have `after` of its messages."""
    assert exchange.update is not None
    return Remembering(
        exchange.update(state.server, reports),
        (*state.memory[:e], after, *state.memory[e + 1 :]),
        jax.random.bits(reports.key, dtype=jnp.uint32),
    )


def _key(state: Remembering, e: int) -> Key:
    return jax.random.fold_in(jax.random.key(state.draws), e)


def _whole(algorithm: Algorithm, exchange: Exchange, received: Update, rest: Message) -> Message:
    """A message of the leaves that were coded, in 32 bits at least, and those that were not."""
    shapes = jax.eval_shape(
        lambda key: exchange.broadcast(algorithm.init(algorithm.init_params(key))), keys.shape()
    )
    return tree.like(tree.combine(received, rest), shapes)
